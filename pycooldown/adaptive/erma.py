"""Empirical risk minimization with adaptation: domains with noisy losses get smaller weights."""

from __future__ import annotations

from typing import Any, Literal, get_args

import numpy as np

from pycooldown.adaptive._updates import check_probes
from pycooldown.adaptive.schedule import LearnedSchedule
from pycooldown.mixture import Mixture, Vector

Normalization = Literal["projected", "printed"]

_LARGEST_EXPONENT = 1.0


def erma_step(
    weights: Vector,
    target: Vector,
    loss: Vector,
    variance: Vector,
    bias_rate: float,
    variance_rate: float,
    normalization: Normalization = "projected",
) -> Vector:
    """Return the weights after one multiplicative step on a variance-based bound of the generalisation error.

    w_i <- w_i exp(gamma_1 pi_i G L_i - gamma_2 pi_i w_i Var_i), G = sum_i pi_i (1 - w_i) L_i, with the exponent kept
    within +-1. Then sum_i pi_i w_i = 1 is restored in one of two ways, which are two methods:

    * "printed", as the paper prints it: all weights are divided by the same number. With gamma_1 = 0 the fixed point is
      w_i proportional to 1 / (pi_i Var_i).
    * "projected", ours: the projection in the Kullback-Leibler divergence, which multiplies by exp(-mu pi_i). It makes
      the step mirror descent. With gamma_1 = 0 the fixed point is w_i proportional to 1 / Var_i.

    Args:
        weights: (K,) w > 0.
        target: (K,) pi, on the simplex and > 0.
        loss: (K,) Mean loss L.
        variance: (K,) Variance Var of the loss over examples.
        bias_rate: The rate gamma_1 >= 0.
        variance_rate: The rate gamma_2 >= 0.
        normalization: "projected" or "printed".
    """
    gap = (target * (1 - weights) * loss).sum()
    exponent = bias_rate * target * gap * loss - variance_rate * target * weights * variance
    grown = weights * np.exp(np.clip(exponent, -_LARGEST_EXPONENT, _LARGEST_EXPONENT))
    return _project(grown, target) if normalization == "projected" else grown / (target * grown).sum()


def _project(weights: Vector, target: Vector) -> Vector:
    """Return the vector w_i exp(-mu target_i) whose product with target is 1, by Newton's method in mu."""
    mu = 0.0
    for _ in range(100):
        part = target * weights * np.exp(-mu * target)
        total = part.sum()
        step = np.log(total) * total / (part * target).sum()
        mu += step
        if abs(step) < 1e-15 * max(1.0, abs(mu)):
            break
    projected = weights * np.exp(-mu * target)
    return np.asarray(projected / (target * projected).sum())


class ERMA(LearnedSchedule):
    """Targets target_i = start target_i * w_i, with w from `erma_step` on a probe batch every ``interval`` steps.

    ERM with adaptation of Salmani et al., arXiv 2511.06913. We know only a summary of the paper, which leaves two
    points open; these are our reconstruction. One is G(t), which makes the step descend (sum_i pi_i (1 - w_i) L_i)^2 /
    2 + lambda sum_i pi_i w_i^2 Var_i / 2 with gamma_2 = gamma_1 lambda. The other is the bound on the exponent. The
    normalisation is the paper's with "printed" and ours with "projected".

    Args:
        start: Importances pi as ``target``, all > 0; its ``sampling`` stays.
        bias_rate: The rate gamma_1 >= 0.
        variance_rate: The rate gamma_2 >= 0.
        normalization: "projected" or "printed"; see `erma_step`.
        interval: Number of steps between two probes.
        delay: See `LearnedSchedule`.
    """

    def __init__(
        self,
        start: Mixture,
        *,
        bias_rate: float = 0.002,
        variance_rate: float = 0.02,
        normalization: Normalization = "projected",
        interval: int = 20,
        delay: int = 4,
    ) -> None:
        super().__init__(start, delay=delay)
        check_probes(interval, 0.0)
        for name, value in (("bias_rate", bias_rate), ("variance_rate", variance_rate)):
            if not 0 <= value < np.inf:
                raise ValueError(f"{name} = {value}; expected a finite number >= 0")
        if normalization not in get_args(Normalization):
            raise ValueError(f"normalization = {normalization!r}; expected 'projected' or 'printed'")
        if not start.target.all():
            absent = start.domains[int((start.target == 0).argmax())]
            raise ValueError(f"start has a target of 0 for domain {absent!r}; expected all importances > 0")
        self.bias_rate = bias_rate
        self.variance_rate = variance_rate
        self.normalization = normalization
        self.interval = interval
        self._state = {"weights": np.ones(start.num_domains)}

    @property
    def statistics(self) -> frozenset[str]:
        """See `LearnedSchedule.statistics`."""
        return frozenset({"probe_loss", "probe_loss_variance"})

    def needs(self, step: int) -> frozenset[str]:
        """See `LearnedSchedule.needs`."""
        return self.statistics if (step + 1) % self.interval == 0 else frozenset()

    def settings(self) -> dict[str, Any]:
        """See `LearnedSchedule.settings`."""
        settings = {"bias_rate": self.bias_rate, "variance_rate": self.variance_rate, "interval": self.interval}
        return settings if self.normalization == "projected" else {**settings, "normalization": self.normalization}

    def _learn(self, step: int, stats: dict[str, Vector]) -> Mixture:
        if not self.needs(step):
            return self.current
        loss, variance = stats["probe_loss"], stats["probe_loss_variance"]
        pi, rates = self.start.target, (self.bias_rate, self.variance_rate)
        weights = erma_step(self._state["weights"], pi, loss, variance, *rates, self.normalization)
        self._state = {"weights": weights}
        return self._mixture(pi * weights / (pi * weights).sum())
