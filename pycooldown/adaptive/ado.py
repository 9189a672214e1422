"""Adaptive data optimization: draw the domains whose loss is predicted to fall fastest."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from pycooldown.adaptive._updates import (
    check_all_drawn,
    check_least,
    check_probes,
    check_warmup,
    proportional_with_floor,
)
from pycooldown.adaptive.schedule import LearnedSchedule
from pycooldown.mixture import Mixture, Vector

Table = npt.NDArray[np.float64]

_SLOTS = 32  # number of loss averages kept for the fit
_EXPONENTS = np.linspace(0.01, 1.0, 199)


class PowerLaw(NamedTuple):
    """Loss of a domain after n tokens: epsilon + beta n^-alpha.

    Attributes:
        epsilon: The part of the loss that never falls, >= 0.
        beta: Factor of the part that falls, >= 0.
        alpha: Exponent, in [0.01, 1].
    """

    epsilon: float
    beta: float
    alpha: float


def fit_power_law(counts: Vector, losses: Vector, weights: Vector) -> PowerLaw:
    """Fit a power law by weighted least squares.

    For each exponent of a grid, epsilon and beta are the exact non-negative least-squares solution; the exponent with
    the smallest error is taken.

    Args:
        counts: (T,) Tokens n > 0, T >= 3.
        losses: (T,) Mean losses at these numbers of tokens.
        weights: (T,) Weights >= 0, three of them positive; losses of weight 0 are ignored.
    """
    used = weights > 0
    scale, unit = max(float(np.abs(losses[used]).max()), 1e-300), float(counts[used].max())
    y, w = losses[used] / scale, weights[used] / weights[used].sum()
    x = (counts[used] / unit) ** -_EXPONENTS[:, None]  # (exponents, T)
    x_mean, y_mean = x @ w, y @ w
    covariance, variance = ((x - x_mean[:, None]) * (y - y_mean)) @ w, ((x - x_mean[:, None]) ** 2) @ w
    beta = np.divide(covariance, variance, out=np.zeros_like(variance), where=variance > 0).clip(min=0)
    epsilon = y_mean - beta * x_mean
    through_zero = epsilon < 0
    beta = np.where(through_zero, ((x * y) @ w / (x**2 @ w)).clip(min=0), beta)
    epsilon = np.where(through_zero, 0.0, epsilon)
    errors = (epsilon[:, None] + beta[:, None] * x - y) ** 2 @ w
    best = int(errors.argmin())
    alpha = float(_EXPONENTS[best])
    return PowerLaw(float(epsilon[best]) * scale, float(beta[best]) * scale * unit**alpha, alpha)


class ADO(LearnedSchedule):
    """Sampling in proportion to the predicted fall of each domain's loss, from power laws fitted during training.

    Jiang et al., "Adaptive Data Optimization: Dynamic Sample Selection with Scaling Laws", ICLR 2025. The loss of
    domain k after n_k tokens is modelled by L_k = epsilon_k + beta_k n_k^-alpha_k. With the prior mu and the moving
    average h of the sampling, the preference is

        p_k proportional to mu_k h_k^(1/2) alpha_k (L_k - epsilon_k) / n_k,

    with a floor for each domain. The sampling is 0.9 times the mean of all preferences so far plus 0.1 p. All losses
    weigh the same.

    The fit is ours: least squares on means of the batch losses, at most 32 of them, in place of a Huber loss of
    logarithms on every tenth batch. The public code takes (h_k (1 - h_k))^(1/2), keeps alpha_k >= 0.05, and by default
    counts the tokens of all domains as n.

    Args:
        start: Prior mu as ``target``, and the sampling until the first fit; in proportion to size in the paper.
        warmup: Steps whose losses are not fitted; 1,000 in the public code.
        interval: Steps between two fits, and from the warm-up to the first one; 1,000 in the public code.
        least: Floor of p_k, at most 1/K.
        shared_count: Whether n is the number of tokens of all domains, as in the public code, or of the domain itself.
        delay: See `LearnedSchedule`.
    """

    def __init__(
        self,
        start: Mixture,
        *,
        warmup: int = 1000,
        interval: int = 1000,
        least: float = 0.01,
        shared_count: bool = False,
        delay: int = 4,
    ) -> None:
        super().__init__(start, delay=delay)
        check_all_drawn(start)
        check_warmup(warmup)
        check_probes(interval, 0.0)
        check_least(least, start.num_domains)
        self.warmup = warmup
        self.interval = interval
        self.least = least
        self.shared_count = shared_count
        zeros, unknown = np.zeros(start.num_domains), np.full(start.num_domains, np.nan)
        self._state = {"history": start.sampling.copy(), "mean": start.target.copy(), "tokens_before": zeros}
        self._state |= dict.fromkeys(PowerLaw._fields, unknown)
        self._state |= {f"{name}_{slot}": zeros for name in ("loss", "tokens") for slot in range(_SLOTS)}

    def settings(self) -> dict[str, Any]:
        """See `LearnedSchedule.settings`."""
        names = ("warmup", "interval", "least", "shared_count")
        return {name: getattr(self, name) for name in names}

    def _learn(self, step: int, stats: dict[str, Vector]) -> Mixture:
        tokens = stats["token_count"]
        loss = np.where(tokens > 0, stats["loss_sum"], 0.0)
        state = {**self._state, "history": 0.9 * self._state["history"] + 0.1 * self.mixture(step).sampling}
        if step < self.warmup:
            self._state = {**state, "tokens_before": state["tokens_before"] + tokens}
            return self.current
        fitted_steps = step - self.warmup
        state |= _add(state, fitted_steps, loss, tokens)
        counts = self._counts(state)
        if (fitted_steps + 1) % self.interval == 0:
            state |= _fit(state, counts)
        self._state = state
        if np.isnan(state["alpha"]).any():
            return self.current
        n = np.maximum(counts[-1], 1)
        slope = state["alpha"] * state["beta"] * n ** -(state["alpha"] + 1)
        preference = self.start.target * np.sqrt(state["history"]) * slope
        if not preference.any():  # no loss falls any more
            return self.current
        p = proportional_with_floor(preference, self.least, np.ones(len(preference), dtype=np.bool_))
        sampling = 0.9 * state["mean"] + 0.1 * p
        self._state = {**state, "mean": state["mean"] + (p - state["mean"]) / (step + 1)}
        return self._mixture(sampling / sampling.sum(), sampling / sampling.sum())

    def _counts(self, state: dict[str, Vector]) -> Table:
        """Return the tokens seen at the start and by the end of each slot, (1 + slots, K)."""
        tokens = [state["tokens_before"], *(state[f"tokens_{slot}"] for slot in range(_SLOTS))]
        counts = np.cumsum(tokens, axis=0)
        return np.repeat(counts.sum(axis=1, keepdims=True), counts.shape[1], axis=1) if self.shared_count else counts


def _add(state: dict[str, Vector], step: int, loss: Vector, tokens: Vector) -> dict[str, Vector]:
    """Add a step's sums to its slot. When all slots are full, two steps' worth go into each, then four, and so on."""
    width = 1
    while step >= _SLOTS * width:
        width *= 2
    slots = {name: [state[f"{name}_{slot}"] for slot in range(_SLOTS)] for name in ("loss", "tokens")}
    if step and step == _SLOTS * width // 2:  # the first step of this width
        for name, vectors in slots.items():
            pairs = [a + b for a, b in zip(vectors[::2], vectors[1::2], strict=True)]
            slots[name] = pairs + [np.zeros_like(loss)] * (_SLOTS // 2)
    for name, vector in (("loss", loss), ("tokens", tokens)):
        slots[name][step // width] = slots[name][step // width] + vector
    return {f"{name}_{slot}": vector for name, vectors in slots.items() for slot, vector in enumerate(vectors)}


def _fit(state: dict[str, Vector], counts: Table) -> dict[str, Vector]:
    """Return the power laws of all domains; a domain with fewer than three means of losses keeps its law."""
    tokens = np.array([state[f"tokens_{slot}"] for slot in range(_SLOTS)])
    losses = np.array([state[f"loss_{slot}"] for slot in range(_SLOTS)]) / np.maximum(tokens, 1)
    laws = np.array([state[name] for name in PowerLaw._fields])
    for k in range(tokens.shape[1]):
        if (tokens[:, k] > 0).sum() >= 3:
            middle = _middle(np.maximum(counts[:-1, k], 1), np.maximum(counts[1:, k], 1))
            laws[:, k] = fit_power_law(middle, losses[:, k], tokens[:, k])
    return dict(zip(PowerLaw._fields, laws, strict=True))


def _middle(first: Vector, last: Vector) -> Vector:
    """Return the tokens at which a slot's mean loss is taken, by the mean logarithm, from the counts at its ends."""
    width = last - first
    rise = last * np.log(last) - first * np.log(first)
    return np.where(width > 0, np.exp(np.divide(rise, width, out=np.ones_like(rise), where=width > 0) - 1), first)
