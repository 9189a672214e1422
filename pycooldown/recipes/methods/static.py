"""The mixing methods that a recipe can name, each as its options and the schedule that they make.

A further method is one more class in `METHODS`: its fields are the recipe's keys.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol

from pycooldown import schedules
from pycooldown.mixture import Mixture
from pycooldown.recipes.learning_methods import LEARNING_METHODS
from pycooldown.schedules import Schedule, Shape


class Method(Protocol):
    """The options of a mixing method, checked by the schedule that they make."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    def schedule(self, sizes: Mapping[str, int], num_steps: int, batch_size: int) -> Schedule:
        """The schedule over ``num_steps`` steps of ``batch_size`` samples for domains of these sizes."""
        ...


@dataclass(frozen=True)
class Temperature:
    """Temperature sampling: domains are drawn with p(i; tau), losses weigh the same."""

    tau: float

    def schedule(self, sizes: Mapping[str, int], num_steps: int, batch_size: int) -> Schedule:
        """One mixture throughout."""
        return schedules.constant(Mixture.temperature_sampling(sizes, self.tau))


@dataclass(frozen=True)
class Scalarization:
    """Scalarization: domains are drawn in proportion to size, losses are weighed with p(i; tau) / p(i; 1)."""

    tau: float

    def schedule(self, sizes: Mapping[str, int], num_steps: int, batch_size: int) -> Schedule:
        """One mixture throughout."""
        return schedules.constant(Mixture.scalarization(sizes, self.tau))


@dataclass(frozen=True)
class Cooldown:
    """Temperature sampling with ``tau`` until ``switch_at``, a share of the steps, then with ``final_tau``."""

    tau: float = 5.0
    final_tau: float = 1.0
    switch_at: float = 0.5

    def schedule(self, sizes: Mapping[str, int], num_steps: int, batch_size: int) -> Schedule:
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

    def schedule(self, sizes: Mapping[str, int], num_steps: int, batch_size: int) -> Schedule:
        """A temperature for each step."""
        return schedules.anneal(sizes, tau=self.tau, final_tau=self.final_tau, num_steps=num_steps, shape=self.shape)


@dataclass(frozen=True)
class Staircase:
    """Temperature sampling in stages, each ``[share of the steps at which it starts, tau]``."""

    stages: tuple[tuple[float, float], ...]

    def schedule(self, sizes: Mapping[str, int], num_steps: int, batch_size: int) -> Schedule:
        """One mixture for each stage."""
        return schedules.staircase(
            [
                (_step_at("stages", start, num_steps, smallest=0), Mixture.temperature_sampling(sizes, tau))
                for start, tau in self.stages
            ]
        )


@dataclass(frozen=True)
class UniMax:
    """As even as can be with no domain passed through more than ``max_epochs`` times."""

    max_epochs: float = 1.0
    mode: Literal["static", "frontload"] = "static"

    def schedule(self, sizes: Mapping[str, int], num_steps: int, batch_size: int) -> Schedule:
        """One mixture, or one for each domain that is dropped."""
        budget = num_steps * batch_size
        return schedules.unimax(sizes, budget=budget, max_epochs=self.max_epochs, mode=self.mode, num_steps=num_steps)


@dataclass(frozen=True)
class OrderMatters:
    """The high-resource domains alone until ``switch_at``, a share of the steps, then all with ``tau``.

    ``reset_optimizer`` empties the optimizer's state at the switch, ``reset_lr`` starts the learning rate again.
    """

    tau: float = 5.0
    switch_at: float = 0.5
    high_resource: tuple[str, ...] | None = None
    reset_optimizer: bool = False
    reset_lr: bool = False

    def switch_step(self, num_steps: int) -> int:
        """First step with all domains."""
        return _step_at("switch_at", self.switch_at, num_steps, smallest=1)

    def schedule(self, sizes: Mapping[str, int], num_steps: int, batch_size: int) -> Schedule:
        """Two stages."""
        return schedules.order_matters(
            sizes, high_resource=self.high_resource, switch_step=self.switch_step(num_steps), tau=self.tau
        )


@dataclass(frozen=True)
class Weights:
    """Fixed probabilities, each ``[domain, weight]``, from another run or a publication; domains in any order."""

    weights: tuple[tuple[str, float], ...]

    def __post_init__(self) -> None:
        names = [name for name, _ in self.weights]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"weights has {twice[0]!r} twice; expected one weight for each domain")

    def schedule(self, sizes: Mapping[str, int], num_steps: int, batch_size: int) -> Schedule:
        """One mixture throughout."""
        weights = dict(self.weights)
        if set(weights) != set(sizes):
            differ = sorted(set(weights) ^ set(sizes))
            raise ValueError(f"weights are for other domains than the data: {differ} are only in one of the two")
        total = sum(weights.values())
        p = [weights[domain] / total if total > 0 else math.nan for domain in sizes]
        return schedules.constant(Mixture(tuple(sizes), list(sizes.values()), p, p))  # type: ignore[arg-type]


METHODS: dict[str, type[Method]] = {
    "temperature": Temperature,
    "scalarization": Scalarization,
    "cooldown": Cooldown,
    "anneal": Anneal,
    "staircase": Staircase,
    "unimax": UniMax,
    "order_matters": OrderMatters,
    "weights": Weights,
    **LEARNING_METHODS,
}


def _step_at(name: str, share: float, num_steps: int, *, smallest: int) -> int:
    step = round(share * num_steps) if math.isfinite(share) else -1
    if not smallest <= step < num_steps:
        raise ValueError(f"{name} = {share} is step {step} of {num_steps}; expected a share of the steps in [0, 1)")
    return step
