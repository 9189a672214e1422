"""One-shot feasible generalized least squares: domains weigh by the inverse of their noise."""

from __future__ import annotations

from typing import Any

import numpy as np

from pycooldown.adaptive.schedule import LearnedSchedule
from pycooldown.mixture import Mixture, Vector

_SMALLEST_VARIANCE = 1e-12


def aitken_weights(target: Vector, variance: Vector) -> Vector:
    """w_i proportional to 1 / variance_i with sum_i target_i w_i = 1.

    For linear regression with noise of known variance in each domain these make least squares the best linear unbiased
    estimator (Aitken, 1936).
    """
    inverse = 1 / np.maximum(variance, _SMALLEST_VARIANCE)
    return np.asarray(inverse / (target * inverse).sum())


def moving_average(old: Vector, new: Vector, decay: float) -> Vector:
    """Exponential moving average of each domain, where NaN means that there is no value yet."""
    mixed = np.where(np.isnan(old), new, decay * old + (1 - decay) * new)
    return np.where(np.isnan(new), old, mixed)


class FGLS(LearnedSchedule):
    """target_i = start target_i * w_i with w_i inverse to the domain's squared error on held-out training data.

    One-shot FGLS of Salmani et al., arXiv 2511.06913: the errors are measured while training goes on, on a part of each
    domain's training data that is held out, and averaged over time. Our reconstruction of what its summary leaves open:
    the normalisation (sum_i pi_i w_i = 1), the moving average and the interval. The error contains that of the model,
    so early weights favour easy domains: hence the warm-up. Sound where all domains share the parameters to be found.
    With a loss other than the squared error the mean loss takes the place of the variance.

    Args:
        start: importances pi as ``target``; its ``sampling`` stays.
        interval: number of steps between two probes.
        decay: of the moving average of the errors, in [0, 1).
        warmup: steps before the weights first change.
        delay: see `LearnedSchedule`.
    """

    def __init__(
        self, start: Mixture, *, interval: int = 20, decay: float = 0.8, warmup: int = 0, delay: int = 4
    ) -> None:
        super().__init__(start, delay=delay)
        check_probes(interval, decay)
        if warmup < 0:
            raise ValueError(f"warmup = {warmup}; expected a number of steps >= 0")
        self.interval = interval
        self.decay = decay
        self.warmup = warmup
        self._state = {"error": np.full(start.num_domains, np.nan)}

    @property
    def statistics(self) -> frozenset[str]:
        """See `LearnedSchedule.statistics`."""
        return frozenset({"probe_loss"})

    def needs(self, step: int) -> frozenset[str]:
        """See `LearnedSchedule.needs`."""
        return self.statistics if (step + 1) % self.interval == 0 else frozenset()

    def settings(self) -> dict[str, Any]:
        """See `LearnedSchedule.settings`."""
        return {"interval": self.interval, "decay": self.decay, "warmup": self.warmup}

    def _learn(self, step: int, stats: dict[str, Vector]) -> Mixture:
        if not self.needs(step):
            return self.current
        self._state = {"error": moving_average(self._state["error"], stats["probe_loss"], self.decay)}
        error, pi = self._state["error"], self.start.target
        if step + 1 < self.warmup or np.isnan(error[pi > 0]).any():
            return self.current
        return self._mixture(pi * aitken_weights(pi, np.where(pi > 0, error, 1.0)))


def check_probes(interval: int, decay: float) -> None:
    """Raises ValueError for arguments that probing cannot use."""
    if interval < 1:
        raise ValueError(f"interval = {interval}; expected at least 1 step")
    if not 0 <= decay < 1:
        raise ValueError(f"decay = {decay}; expected a number in [0, 1)")
