"""Variance-aware sampling: draw each domain as often as makes the minibatch gradient's variance least."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from pycooldown.adaptive.fgls import check_probes, moving_average
from pycooldown.adaptive.schedule import LearnedSchedule
from pycooldown.adaptive.statistics import Statistics
from pycooldown.mixture import Mixture, Vector


def neyman_allocation(target: Vector, variance: Vector, least: float = 0.0) -> Vector:
    """The sampling q that minimises sum_i target_i^2 variance_i / q_i with q_i >= least.

    Without the bound it is Neyman's allocation (1934), q_i proportional to target_i * sqrt(variance_i); domains that
    fall below the bound are raised to it and the others share the rest. Domains with target 0 are not drawn.

    Args:
        target: (K,) on the simplex.
        variance: (K,) trace of the gradient's covariance within each domain, >= 0.
        least: lower bound of the sampling of drawn domains, at most 1 / K.
    """
    drawn = target > 0
    need = np.where(drawn, target * np.sqrt(variance), 0.0)
    if not need.any():
        return np.array(target)
    q = np.where(drawn, least, 0.0)
    free = need > 0
    while free.any():
        share = (1 - least * (drawn & ~free).sum()) * need / need[free].sum()
        low = free & (share < least)
        if not low.any():
            q[free] = share[free]
            break
        free &= ~low
    return np.asarray(q / q.sum())


class VarianceAware(LearnedSchedule):
    """sampling_i proportional to target_i v_i, with v_i^2 the variance of domain i's gradients in probe batches.

    Variance-aware sampling of Salmani et al., arXiv 2511.06913, which is Neyman's allocation of the batch. The target
    is that of ``objective``; if this one learns too (FGLS or ERMA: the paper's joint methods), it learns first and the
    sampling follows its new target. The moving average and its start are our reconstruction.

    Args:
        objective: the mixture or the learning schedule that gives the target, and the sampling of the first steps. A
            schedule must have the same ``delay``.
        interval: number of steps between two probes.
        decay: of the moving average of v^2, in [0, 1).
        least: lower bound of each domain's sampling probability; 1 / batch size gives a domain one sample in each
            batch on average.
        delay: see `LearnedSchedule`.
    """

    def __init__(
        self,
        objective: Mixture | LearnedSchedule,
        *,
        interval: int = 20,
        decay: float = 0.7,
        least: float = 1e-3,
        delay: int = 4,
    ) -> None:
        start = objective if isinstance(objective, Mixture) else objective.start
        super().__init__(start, delay=delay)
        check_probes(interval, decay)
        if isinstance(objective, LearnedSchedule) and objective.delay != delay:
            raise ValueError(f"delay = {delay}, but objective has {objective.delay}; expected the same")
        if not 0 < least <= 1 / start.num_domains:
            raise ValueError(f"least = {least}; expected a probability > 0, at most 1/K = {1 / start.num_domains:.4g}")
        self._warned = True  # the objective warns where its target needs it
        self.objective = objective
        self.interval = interval
        self.decay = decay
        self.least = least
        self._state = {"gradient_variance": np.full(start.num_domains, np.nan)}

    @property
    def statistics(self) -> frozenset[str]:
        """See `LearnedSchedule.statistics`."""
        inner = frozenset() if isinstance(self.objective, Mixture) else self.objective.statistics
        return inner | {"probe_gradient_variance"}

    def needs(self, step: int) -> frozenset[str]:
        """See `LearnedSchedule.needs`."""
        inner = frozenset() if isinstance(self.objective, Mixture) else self.objective.needs(step)
        return inner | {"probe_gradient_variance"} if self._is_due(step) else inner

    def settings(self) -> dict[str, Any]:
        """See `LearnedSchedule.settings`."""
        mine = {"interval": self.interval, "decay": self.decay, "least": self.least}
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
        """See `LearnedSchedule.load_state_dict`."""
        super().load_state_dict(state)
        if not isinstance(self.objective, Mixture):
            self.objective.load_state_dict(state["objective"])

    def _is_due(self, step: int) -> bool:
        return (step + 1) % self.interval == 0

    def _learn(self, step: int, stats: dict[str, Vector]) -> Mixture:
        if isinstance(self.objective, Mixture):
            target = self.objective.target
        else:
            self.objective.update(step, Statistics(**stats))
            target = self.objective.current.target
        if self._is_due(step):
            old = self._state["gradient_variance"]
            self._state = {"gradient_variance": moving_average(old, stats["probe_gradient_variance"], self.decay)}
        variance = self._state["gradient_variance"]
        if np.isnan(variance).any():  # no probe yet
            return self._mixture(target)
        return self._mixture(target, neyman_allocation(target, variance, self.least))


def _prefixed(settings: dict[str, Any]) -> dict[str, Any]:
    return {f"objective_{name}": value for name, value in settings.items()}
