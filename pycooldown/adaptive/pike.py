"""PiKE: draw the domains whose gradients are long and vary little."""

from __future__ import annotations

from typing import Any

import numpy as np

from pycooldown.adaptive._updates import (
    check_all_drawn,
    check_least,
    check_probes,
    exponentiated_gradient,
    proportional_with_floor,
)
from pycooldown.adaptive.schedule import LearnedSchedule
from pycooldown.mixture import Mixture, Vector


def pike_step(
    weights: Vector,
    squared_norms: Vector,
    variances: Vector,
    batch_size: int,
    gradient_rate: float,
    variance_rate: float,
) -> Vector:
    """Return w_k exp(zeta_1 |grad L_k|^2 - zeta_2 sigma_k^2 / (2 b)), normalised: line 6 and 7 of PiKE's algorithm 1.

    It is a step of mirror descent on the paper's bound sum_k w_k lambda_k + w_k^2 kappa_k / 2. This bounds the loss
    after one step of SGD on a batch of b samples. Constants replace the factors of both terms.

    Args:
        weights: (K,) w on the simplex.
        squared_norms: (K,) Squared length of each domain's mean gradient, >= 0.
        variances: (K,) Trace of the covariance of the gradients of its samples.
        batch_size: The batch size b.
        gradient_rate: The rate zeta_1 >= 0.
        variance_rate: The rate zeta_2 >= 0.
    """
    scores = gradient_rate * squared_norms - variance_rate / (2 * batch_size) * variances
    return exponentiated_gradient(weights, scores, 1.0)


class PiKE(LearnedSchedule):
    """Target and sampling that `pike_step` moves every ``interval`` steps, with the gradients of a probe batch.

    Li et al., "PiKE: Adaptive Data Mixing for Large-Scale Multi-Task Learning Under Low Gradient Conflicts", NeurIPS
    2025 (arXiv 2502.06244). If a domain's gradients are long, its loss can fall; if they vary, they are noisy. The
    method descends the plain mean of the batch, so target and sampling are equal. It does not consider sizes or
    repetition: a domain that is passed through often is not drawn less.

    The paper's appendix, with its rates and estimators, was not available. Two points are ours. The squared length of
    the mean gradient is estimated as the mean squared length of the probe's gradients minus the trace of their
    covariance, which is unbiased; negative values count as 0. And there is the floor ``least``, without which a domain
    could vanish forever. The variant Balanced-PiKE is not implemented.

    Args:
        start: Target and first sampling, every domain above 0; uniform in the paper.
        batch_size: Samples in a batch of the run.
        gradient_rate: The rate zeta_1. Lengths are those of gradients of a sample's summed token losses, which grow
            with the model and the length of samples, so both rates must be tuned. With the defaults, one probe with
            squared norms near 50 and traces near 2,000 moves the weights by some percent. We saw these values in a
            decoder of width 64 on pairs of 32 tokens.
        variance_rate: The rate zeta_2.
        interval: Number of steps between two probes; T_0 in the paper.
        least: Lower bound of each domain's share, at most 1/K.
        delay: See `LearnedSchedule`.
    """

    def __init__(
        self,
        start: Mixture,
        *,
        batch_size: int,
        gradient_rate: float = 0.002,
        variance_rate: float = 0.002,
        interval: int = 20,
        least: float = 1e-3,
        delay: int = 4,
    ) -> None:
        super().__init__(start, delay=delay)
        check_all_drawn(start)
        check_probes(interval, 0.0)
        if batch_size < 1:
            raise ValueError(f"batch_size = {batch_size}; expected at least 1")
        for name, value in (("gradient_rate", gradient_rate), ("variance_rate", variance_rate)):
            if not 0 <= value < np.inf:
                raise ValueError(f"{name} = {value}; expected a finite number >= 0")
        check_least(least, start.num_domains)
        self.batch_size = batch_size
        self.gradient_rate = gradient_rate
        self.variance_rate = variance_rate
        self.interval = interval
        self.least = least
        self._state = {"weights": start.sampling.copy()}

    @property
    def statistics(self) -> frozenset[str]:
        """See `LearnedSchedule.statistics`."""
        return frozenset({"probe_gradient_variance", "probe_gradient_second_moment"})

    def needs(self, step: int) -> frozenset[str]:
        """See `LearnedSchedule.needs`."""
        return self.statistics if (step + 1) % self.interval == 0 else frozenset()

    def settings(self) -> dict[str, Any]:
        """See `LearnedSchedule.settings`."""
        names = ("batch_size", "gradient_rate", "variance_rate", "interval", "least")
        return {name: getattr(self, name) for name in names}

    def _learn(self, step: int, stats: dict[str, Vector]) -> Mixture:
        if not self.needs(step):
            return self.current
        variances = stats["probe_gradient_variance"]
        squared_norms = (stats["probe_gradient_second_moment"] - variances).clip(min=0)
        rates = (self.gradient_rate, self.variance_rate)
        weights = pike_step(self._state["weights"], squared_norms, variances, self.batch_size, *rates)
        weights = proportional_with_floor(weights, self.least, np.ones(len(weights), dtype=np.bool_))
        self._state = {"weights": weights}
        return self._mixture(weights, weights)
