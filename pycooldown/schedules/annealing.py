"""Temperature sampling whose temperature changes at every step."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from pycooldown.mixture import Mixture, Vector, temperature_of_logs
from pycooldown.schedules.protocol import Schedule, check_step

Shape = Literal["linear", "cosine", "exponential"]

# The temperature between a (at x = 0) and b (at x = 1).
_SHAPES: dict[str, Callable[[float, float, float], float]] = {
    "linear": lambda a, b, x: a + (b - a) * x,
    "cosine": lambda a, b, x: b + (a - b) * (1 + math.cos(math.pi * x)) / 2,
    "exponential": lambda a, b, x: a * (b / a) ** x,
}


def anneal(
    sizes: Mapping[str, int], *, tau: float, final_tau: float, num_steps: int, shape: Shape = "linear"
) -> Schedule:
    """Return temperature sampling that moves from ``tau`` to ``final_tau`` over ``num_steps`` steps, then stays.

    Args:
        sizes: Number of samples of each domain.
        tau: Temperature of step 0, finite and > 0.
        final_tau: Temperature from step ``num_steps`` on, finite and > 0; higher or lower than ``tau``.
        num_steps: Number of steps from the first temperature to the last, > 0.
        shape: How the temperature moves: "linear", "cosine" (half a period, flat at both ends) or "exponential" (a
            constant factor for each step).

    Raises:
        ValueError: If a temperature is not positive and finite, ``num_steps`` is not positive, or ``shape`` is unknown.
    """
    for name, value in (("tau", tau), ("final_tau", final_tau)):
        if not 0 < value < math.inf:
            raise ValueError(f"{name} = {value}; expected a finite temperature > 0")
    if num_steps <= 0:
        raise ValueError(f"num_steps = {num_steps}; expected at least 1")
    if shape not in _SHAPES:
        raise ValueError(f"shape = {shape!r}; expected one of {', '.join(map(repr, _SHAPES))}")
    return Annealing(Mixture.temperature_sampling(sizes, tau), float(tau), float(final_tau), num_steps, shape)


@dataclass(frozen=True)
class Annealing:
    """A schedule whose temperature changes at every step; see `ContinuousSchedule` for its methods.

    Attributes:
        start: The mixture of step 0, whose domains and sizes have been checked.
        tau: Temperature of step 0.
        final_tau: Temperature from step ``num_steps`` on.
        num_steps: Number of steps from the first temperature to the last.
        shape: A key of ``_SHAPES``.
    """

    start: Mixture
    tau: float
    final_tau: float
    num_steps: int
    shape: str

    @property
    def settled_from(self) -> int:
        """The step from which the mixture no longer changes."""
        return self.num_steps

    def temperature(self, step: int) -> float:
        """Return the temperature of a step."""
        return _SHAPES[self.shape](self.tau, self.final_tau, min(check_step(step) / self.num_steps, 1.0))

    def mixture(self, step: int) -> Mixture:
        """Return the mixture of a step."""
        return self.start.at_temperature(self.temperature(step))

    def sampling(self, first_step: int, last_step: int) -> Vector:
        """Return the sampling probabilities of steps [first_step, last_step), a row for each."""
        taus = np.array([self.temperature(step) for step in range(first_step, last_step)])
        return temperature_of_logs(np.log(self.start.sizes), taus[:, np.newaxis])

    def next_change(self, step: int) -> int | None:
        """Return the first step after ``step`` with another mixture."""
        return step + 1 if step < self.num_steps else None

    def describe(self) -> str:
        """Return a text that is equal for equal schedules over the same sizes."""
        return f"anneal(tau={self.tau}, final_tau={self.final_tau}, num_steps={self.num_steps}, shape={self.shape})"
