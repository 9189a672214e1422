"""Variance-aware sampling: the sampling that minimises the variance of the minibatch gradient."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, get_args

import numpy as np

from pycooldown.adaptive._updates import check_least, check_probes, moving_average, proportional_with_floor
from pycooldown.adaptive.schedule import LearnedSchedule
from pycooldown.adaptive.statistics import Statistics
from pycooldown.mixture import Mixture, Vector

SamplerAllocation = Literal["multinomial", "systematic", "quota"]


def best_sampling(target: Vector, moments: Vector, least: float = 0.0) -> Vector:
    """Return the sampling q that minimises sum_i target_i^2 moments_i / q_i with q_i >= least.

    Without the floor, q_i is proportional to target_i * sqrt(moments_i). Which moment is right depends on how batches
    are allocated (`pycooldown.theory.gradient_variance`). If the number of samples of each domain is fixed, it is the
    trace of the covariance of the gradient within the domain (Neyman, 1934). If each sample's domain is drawn
    independently, it is the second moment: the trace plus the squared length of the domain's mean gradient.

    Args:
        target: (K,) float64 on the simplex. Domains with target 0 are not drawn.
        moments: (K,) float64 >= 0.
        least: Lower bound of the sampling of drawn domains, at most 1 / K.
    """
    drawn = target > 0
    shares = np.where(drawn, target * np.sqrt(moments), 0.0)
    return proportional_with_floor(shares, least, drawn) if shares.any() else np.array(target)


class VarianceAware(LearnedSchedule):
    """Sampling in proportion to target_i v_i, with v_i^2 a moment of domain i's gradients in probe batches.

    Variance-aware sampling of Salmani et al., arXiv 2511.06913, which is Neyman's allocation of the batch. The moment
    is the best one for the sampler's ``allocation``; see `best_sampling`. The target is that of ``objective``.
    If this one learns too (FGLS or ERMA: the paper's joint methods), it learns first and the sampling follows its new
    target. The moving average and its start are our reconstruction.

    Args:
        objective: The mixture or the learning schedule that gives the target, and the sampling of the first steps. A
            schedule must have the same ``delay``.
        allocation: That of the sampler, and by default the sampler's default: "multinomial" learns from second moments,
            "systematic" and "quota" from the traces of the covariances. `MixtureTrainer` refuses a schedule whose
            allocation is not its own.
        interval: Number of steps between two probes.
        decay: Decay of the moving average of v^2, in [0, 1).
        least: Lower bound of each domain's sampling probability. 1 / batch size gives a domain one sample in each
            batch on average.
        delay: See `LearnedSchedule`.
    """

    def __init__(
        self,
        objective: Mixture | LearnedSchedule,
        *,
        allocation: SamplerAllocation = "multinomial",
        interval: int = 20,
        decay: float = 0.7,
        least: float = 1e-3,
        delay: int = 4,
    ) -> None:
        start = objective if isinstance(objective, Mixture) else objective.start
        super().__init__(start, delay=delay)
        check_probes(interval, decay)
        if allocation not in get_args(SamplerAllocation):
            raise ValueError(f"allocation = {allocation!r}; expected 'multinomial', 'systematic' or 'quota'")
        if isinstance(objective, LearnedSchedule) and objective.delay != delay:
            raise ValueError(f"delay = {delay}, but objective has {objective.delay}; expected the same")
        check_least(least, start.num_domains)
        self._warned = True  # the objective itself warns of its target
        self.objective = objective
        self.allocation = allocation
        self.interval = interval
        self.decay = decay
        self.least = least
        self._learn_from("gradient_second_moment" if allocation == "multinomial" else "gradient_variance")

    def _learn_from(self, moment: str) -> None:
        self._moment = moment
        self._state = {moment: np.full(self.start.num_domains, np.nan)}

    @property
    def domain_means(self) -> bool:  # type: ignore[override]
        """Whether the objective averages each domain's tokens; see `LearnedSchedule`."""
        return not isinstance(self.objective, Mixture) and self.objective.domain_means

    @property
    def statistics(self) -> frozenset[str]:
        """See `LearnedSchedule.statistics`."""
        inner = frozenset() if isinstance(self.objective, Mixture) else self.objective.statistics
        return inner | {f"probe_{self._moment}"}

    def needs(self, step: int) -> frozenset[str]:
        """See `LearnedSchedule.needs`."""
        inner = frozenset() if isinstance(self.objective, Mixture) else self.objective.needs(step)
        return inner | {f"probe_{self._moment}"} if self._is_due(step) else inner

    def settings(self) -> dict[str, Any]:
        """See `LearnedSchedule.settings`."""
        mine: dict[str, Any] = {"interval": self.interval, "decay": self.decay, "least": self.least}
        if self._moment == "gradient_second_moment":  # the other allocations learn the same
            mine["allocation"] = self.allocation
        if isinstance(self.objective, Mixture):
            return mine
        return {**mine, "objective": type(self.objective).__name__, **_prefixed(self.objective.settings())}

    def state_dict(self) -> dict[str, Any]:
        """See `LearnedSchedule.state_dict`."""
        state = super().state_dict()
        if not isinstance(self.objective, Mixture):
            state["objective"] = self.objective.state_dict()
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a saved state; see `LearnedSchedule.load_state_dict`.

        A job that was started with version 0.1 keeps learning from the traces, as that version always did.
        """
        before = self._moment, self._state
        if self.allocation == "multinomial" and isinstance(state, Mapping):
            settings = state.get("settings")
            of_first_version = isinstance(settings, Mapping) and "allocation" not in settings
            self._learn_from("gradient_variance" if of_first_version else "gradient_second_moment")
        try:
            mine = self._read_state(state)
            if not isinstance(self.objective, Mixture):  # first, because a refused state must not change either
                self.objective.load_state_dict(state["objective"])
        except ValueError:
            self._moment, self._state = before
            raise
        self._go_on(*mine)

    def _is_due(self, step: int) -> bool:
        return (step + 1) % self.interval == 0

    def _learn(self, step: int, stats: dict[str, Vector]) -> Mixture:
        if isinstance(self.objective, Mixture):
            target = self.objective.target
        else:
            self.objective.update(step, Statistics(**stats))
            target = self.objective.current.target
        if self._is_due(step):
            measured = stats[f"probe_{self._moment}"]
            self._state = {self._moment: moving_average(self._state[self._moment], measured, self.decay)}
        moments = self._state[self._moment]
        if np.isnan(moments).any():  # no probe yet
            return self._mixture(target)
        return self._mixture(target, best_sampling(target, moments, self.least))


def _prefixed(settings: dict[str, Any]) -> dict[str, Any]:
    return {f"objective_{name}": value for name, value in settings.items()}
