"""Group distributionally robust optimization: descend the worst domain."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from pycooldown.adaptive.schedule import LearnedSchedule
from pycooldown.mixture import Mixture, Vector


def exponentiated_gradient(
    weights: Vector,
    scores: Vector,
    step_size: float,
    smoothing: float = 0.0,
    present: npt.NDArray[np.bool_] | None = None,
) -> Vector:
    """weights_i exp(step_size * scores_i), normalised and then mixed with the uniform distribution.

    Computed in log space, so that no score overflows. Domains that are not present keep their weight, and the others
    share the rest: nobody loses weight by being absent. A weight of 0 stays 0 but for the smoothing.

    Args:
        weights: (K,) on the simplex.
        scores: (K,) finite where present.
        step_size: eta >= 0.
        smoothing: c in [0, 1): the result is (1 - c) * normalised + c / K.
        present: (K,) which domains have a score; by default all.
    """
    present = np.ones(len(weights), dtype=np.bool_) if present is None else present & (weights > 0)
    grown = np.where(present, weights, 0.0)
    if grown.any():
        scores = np.where(grown > 0, step_size * scores, -np.inf)
        grown = grown * np.exp(scores - scores.max())
        grown *= weights[present].sum() / grown.sum()
    return np.asarray((1 - smoothing) * np.where(present, grown, weights) + smoothing / len(weights))


def mean_loss(loss_sum: Vector, count: Vector) -> Vector:
    """Loss of each domain, NaN for those without data."""
    return np.divide(loss_sum, count, out=np.full_like(loss_sum, np.nan), where=count > 0)


class GroupDRO(LearnedSchedule):
    """target_i grows with the loss: target_i <- target_i exp(eta L_i), normalised; sampling stays as at the start.

    Sagawa et al., "Distributionally Robust Neural Networks for Group Shifts", ICLR 2020, algorithm 1; DoReMi is the
    same with the excess over a reference in place of the loss. L_i is the mean loss of domain i in the batch; a domain
    that a batch lacks keeps its target.

    Args:
        start: first mixture; ``Mixture.temperature_sampling(sizes, math.inf)`` draws all domains alike.
        step_size: eta > 0, in 1/nats.
        smoothing: share of the uniform distribution in the target, in [0, 1); the paper has 0.
        delay: see `LearnedSchedule`.
    """

    def __init__(self, start: Mixture, *, step_size: float = 0.01, smoothing: float = 0.0, delay: int = 4) -> None:
        super().__init__(start, delay=delay)
        check_steps(start, step_size, smoothing)
        self.step_size = step_size
        self.smoothing = smoothing

    def settings(self) -> dict[str, Any]:
        """See `LearnedSchedule.settings`."""
        return {"step_size": self.step_size, "smoothing": self.smoothing}

    def _learn(self, step: int, stats: dict[str, Vector]) -> Mixture:
        loss = mean_loss(stats["loss_sum"], stats["token_count"])
        target = exponentiated_gradient(
            self.current.target, loss, self.step_size, self.smoothing, present=~np.isnan(loss)
        )
        return self._mixture(target)


def check_steps(start: Mixture, step_size: float, smoothing: float) -> None:
    """Raises ValueError for arguments that an exponentiated step cannot use."""
    if not 0 < step_size < np.inf:
        raise ValueError(f"step_size = {step_size}; expected a finite number > 0")
    if not 0 <= smoothing < 1:
        raise ValueError(f"smoothing = {smoothing}; expected a share in [0, 1)")
    if not start.sampling.all():
        never = start.domains[int((start.sampling == 0).argmax())]
        raise ValueError(f"start never draws domain {never!r}, so its loss is never seen; give it a positive sampling")
