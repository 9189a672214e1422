"""The mixing methods that a recipe can name, each as its options and the schedule that they make.

A further method is one more class in `METHODS`: its fields are the recipe's keys.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from pycooldown import schedules
from pycooldown.mixture import Mixture
from pycooldown.schedules import Schedule, Shape


class Method(Protocol):
    """The options of a mixing method, checked by the schedule that they make."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    def schedule(self, sizes: Mapping[str, int], num_steps: int) -> Schedule:
        """The schedule over ``num_steps`` steps for domains of these sizes."""
        ...


@dataclass(frozen=True)
class Temperature:
    """Temperature sampling: domains are drawn with p(i; tau), losses weigh the same."""

    tau: float

    def schedule(self, sizes: Mapping[str, int], num_steps: int) -> Schedule:
        """One mixture throughout."""
        return schedules.constant(Mixture.temperature_sampling(sizes, self.tau))


@dataclass(frozen=True)
class Scalarization:
    """Scalarization: domains are drawn in proportion to size, losses are weighed with p(i; tau) / p(i; 1)."""

    tau: float

    def schedule(self, sizes: Mapping[str, int], num_steps: int) -> Schedule:
        """One mixture throughout."""
        return schedules.constant(Mixture.scalarization(sizes, self.tau))


@dataclass(frozen=True)
class Cooldown:
    """Temperature sampling with ``tau`` until ``switch_at``, a share of the steps, then with ``final_tau``."""

    tau: float = 5.0
    final_tau: float = 1.0
    switch_at: float = 0.5

    def schedule(self, sizes: Mapping[str, int], num_steps: int) -> Schedule:
        """Two stages."""
        return schedules.cooldown(
            sizes,
            tau=self.tau,
            final_tau=self.final_tau,
            switch_step=_step_at("switch_at", self.switch_at, num_steps, smallest=1),
        )


@dataclass(frozen=True)
class Anneal:
    """Temperature sampling whose temperature moves from ``tau`` to ``final_tau`` over all steps."""

    tau: float = 5.0
    final_tau: float = 1.0
    shape: Shape = "linear"

    def schedule(self, sizes: Mapping[str, int], num_steps: int) -> Schedule:
        """A temperature for each step."""
        return schedules.anneal(sizes, tau=self.tau, final_tau=self.final_tau, num_steps=num_steps, shape=self.shape)


@dataclass(frozen=True)
class Staircase:
    """Temperature sampling in stages, each ``[share of the steps at which it starts, tau]``."""

    stages: tuple[tuple[float, float], ...]

    def schedule(self, sizes: Mapping[str, int], num_steps: int) -> Schedule:
        """One mixture for each stage."""
        return schedules.staircase(
            [
                (_step_at("stages", start, num_steps, smallest=0), Mixture.temperature_sampling(sizes, tau))
                for start, tau in self.stages
            ]
        )


METHODS: dict[str, type[Method]] = {
    "temperature": Temperature,
    "scalarization": Scalarization,
    "cooldown": Cooldown,
    "anneal": Anneal,
    "staircase": Staircase,
}


def _step_at(name: str, share: float, num_steps: int, *, smallest: int) -> int:
    step = round(share * num_steps) if math.isfinite(share) else -1
    if not smallest <= step < num_steps:
        raise ValueError(f"{name} = {share} is step {step} of {num_steps}; expected a share of the steps in [0, 1)")
    return step
