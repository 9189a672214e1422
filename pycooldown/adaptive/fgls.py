"""One-shot feasible generalized least squares: the weight of a domain is the inverse of its noise."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np

from pycooldown.adaptive._updates import check_probes, check_warmup, moving_average
from pycooldown.adaptive.schedule import LearnedSchedule
from pycooldown.mixture import Mixture, Vector

_SMALLEST_VARIANCE = 1e-12
_TOLERATED = 0.1  # relative difference of a target from the share of samples, before a warning


def aitken_weights(target: Vector, variance: Vector) -> Vector:
    """Return w_i proportional to 1 / variance_i with sum_i target_i w_i = 1.

    Generalized least squares gives each *sample* the weight 1 / variance (Aitken, 1936). The objective
    sum_i target_i w_i L_i, with L_i the mean over the n_i samples of domain i, does so only if target_i is proportional
    to n_i. Then least squares with these weights is the best linear unbiased estimator. With any other target it is
    still unbiased, but not the best.

    Args:
        target: (K,) float64 on the simplex.
        variance: (K,) Variance of the noise in each domain.
    """
    inverse = 1 / np.maximum(variance, _SMALLEST_VARIANCE)
    return np.asarray(inverse / (target * inverse).sum())


class FGLS(LearnedSchedule):
    """Targets start target_i * w_i, with w_i inverse to the domain's squared error on held-out training data.

    One-shot FGLS of Salmani et al., arXiv 2511.06913. The errors are measured during training, on a part of each
    domain's training data that is held out, and averaged over time. We know only a summary of the paper, which leaves
    three points open; these are our reconstruction: the normalisation (sum_i pi_i w_i = 1), the moving average and the
    interval. The error contains the model's own, so early weights favour easy domains; the warm-up avoids this. The
    method assumes that all domains share the true parameters. With a loss other than the squared error, the mean loss
    takes the place of the variance.

    The result is generalized least squares only if the start's target is in proportion to the sizes
    (``Mixture.proportional`` or `Mixture.temperature_sampling` with tau = 1); see `aitken_weights`. Other importances
    are allowed and give a warning.

    Args:
        start: Importances pi as ``target``; its ``sampling`` stays.
        interval: Number of steps between two probes.
        decay: Decay of the moving average of the errors, in [0, 1).
        warmup: Steps before the weights first change.
        delay: See `LearnedSchedule`.
    """

    def __init__(
        self, start: Mixture, *, interval: int = 20, decay: float = 0.8, warmup: int = 0, delay: int = 4
    ) -> None:
        super().__init__(start, delay=delay)
        check_probes(interval, decay)
        check_warmup(warmup)
        _warn_unless_proportional(start)
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


def _warn_unless_proportional(start: Mixture) -> None:
    shares = start.sizes / start.sizes.sum()
    off = np.abs(start.target / shares - 1)
    if off.max() > _TOLERATED:
        i = int(off.argmax())
        warnings.warn(
            f"FGLS starts with a target of {start.target[i]:.3g} for domain {start.domains[i]!r}, which has "
            f"{shares[i]:.3g} of the samples. Weights of 1 / variance are those of generalized least squares only for "
            "targets in proportion to the sizes; for that, start with tau = 1",
            stacklevel=3,
        )
