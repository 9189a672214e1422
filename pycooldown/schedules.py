"""Mixtures as functions of the optimizer step."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, Protocol, runtime_checkable

from pycooldown.mixture import Mixture

Shape = Literal["linear", "cosine", "exponential"]


@runtime_checkable
class Schedule(Protocol):
    """What a sampler needs to know of a schedule. All its mixtures share the same domains and sizes."""

    def mixture(self, step: int) -> Mixture:
        """The mixture of optimizer step ``step`` (from 0)."""
        ...

    def next_change(self, step: int) -> int | None:
        """The first step after ``step`` whose mixture may differ from that of ``step``; ``None`` if there is none."""
        ...

    def describe(self) -> str:
        """A text that is equal for equal schedules over the same sizes; saved states are checked against it."""
        ...


def constant(mixture: Mixture) -> Schedule:
    """The same mixture at every step."""
    return _Staircase((0,), (mixture,), f"constant({mixture.describe()})")


def staircase(stages: Sequence[tuple[int, Mixture]]) -> Schedule:
    """A mixture for each stage.

    Args:
        stages: (start_step, mixture) pairs with increasing start steps, the first one 0.

    Raises:
        ValueError: if there is no stage, the start steps do not increase from 0, or domains or sizes differ.
    """
    if not stages:
        raise ValueError("stages is empty; expected at least one (start_step, mixture) pair")
    starts, mixtures = zip(*stages, strict=True)
    if starts[0] != 0 or any(a >= b for a, b in pairwise(starts)):
        raise ValueError(f"stages start at steps {list(starts)}; expected 0 and then increasing steps")
    for start, mixture in stages[1:]:
        _check_same_domains(mixtures[0], mixture, f"the stage at step {start}")
    return _Staircase(starts, mixtures, f"staircase({', '.join(f'{s}: {m.describe()}' for s, m in stages)})")


def cooldown(sizes: Mapping[str, int], *, tau: float = 5.0, final_tau: float = 1.0, switch_step: int) -> Schedule:
    """Temperature sampling with ``tau`` until ``switch_step``, with ``final_tau`` from there on.

    Li et al. (NAACL 2025), section 4: 5 to 1 at half of the steps.

    Args:
        sizes: number of samples of each domain.
        tau: temperature before the switch, > 0.
        final_tau: temperature from the switch on, > 0.
        switch_step: first step with ``final_tau``, > 0.

    Raises:
        ValueError: if a temperature or ``switch_step`` is not positive.
    """
    if switch_step <= 0:
        raise ValueError(f"switch_step = {switch_step}; expected a step > 0: use constant() for a single temperature")
    mixtures = tuple(Mixture.temperature_sampling(sizes, t) for t in (tau, final_tau))
    return _Staircase(
        (0, switch_step),
        mixtures,
        f"cooldown(tau={float(tau)}, final_tau={float(final_tau)}, switch_step={switch_step})",
    )


def anneal(
    sizes: Mapping[str, int], *, tau: float, final_tau: float, num_steps: int, shape: Shape = "linear"
) -> Schedule:
    """Temperature sampling whose temperature moves from ``tau`` to ``final_tau`` over ``num_steps`` steps, then stays.

    Args:
        sizes: number of samples of each domain.
        tau: temperature of step 0, finite and > 0.
        final_tau: temperature from step ``num_steps`` on, finite and > 0; higher or lower than ``tau``.
        num_steps: length of the way, > 0.
        shape: how the temperature moves: "linear", "cosine" (half a period, flat at both ends) or "exponential" (a
            constant factor for each step).

    Raises:
        ValueError: if a temperature is not positive and finite, ``num_steps`` is not positive, or ``shape`` is unknown.
    """
    for name, value in (("tau", tau), ("final_tau", final_tau)):
        if not 0 < value < math.inf:
            raise ValueError(f"{name} = {value}; expected a finite temperature > 0")
    if num_steps <= 0:
        raise ValueError(f"num_steps = {num_steps}; expected at least 1")
    if shape not in _SHAPES:
        raise ValueError(f"shape = {shape!r}; expected one of {', '.join(map(repr, _SHAPES))}")
    Mixture.temperature_sampling(sizes, tau)  # reports bad sizes now, not in the middle of a run
    return _Anneal(dict(sizes), float(tau), float(final_tau), num_steps, shape)


_SHAPES: dict[str, Callable[[float, float, float], float]] = {
    "linear": lambda a, b, x: a + (b - a) * x,
    "cosine": lambda a, b, x: b + (a - b) * (1 + math.cos(math.pi * x)) / 2,
    "exponential": lambda a, b, x: a * (b / a) ** x,
}


@dataclass(frozen=True)
class _Staircase:
    starts: tuple[int, ...]
    mixtures: tuple[Mixture, ...]
    description: str

    def mixture(self, step: int) -> Mixture:
        return self.mixtures[bisect_right(self.starts, _check_step(step)) - 1]

    def next_change(self, step: int) -> int | None:
        return next((start for start in self.starts if start > step), None)

    def describe(self) -> str:
        return self.description


@dataclass(frozen=True)
class _Anneal:
    sizes: dict[str, int]
    tau: float
    final_tau: float
    num_steps: int
    shape: str

    def mixture(self, step: int) -> Mixture:
        progress = min(_check_step(step) / self.num_steps, 1.0)
        return Mixture.temperature_sampling(self.sizes, _SHAPES[self.shape](self.tau, self.final_tau, progress))

    def next_change(self, step: int) -> int | None:
        return step + 1 if step < self.num_steps else None

    def describe(self) -> str:
        return f"anneal(tau={self.tau}, final_tau={self.final_tau}, num_steps={self.num_steps}, shape={self.shape})"


def _check_step(step: int) -> int:
    if step < 0:
        raise ValueError(f"step = {step}; expected a step >= 0")
    return step


def _check_same_domains(first: Mixture, other: Mixture, where: str) -> None:
    if first.domains != other.domains:
        difference = sorted(set(first.domains) ^ set(other.domains)) or "their order"
        raise ValueError(f"{where} has other domains than the first: {difference}; give absent domains a target of 0")
    if (first.sizes != other.sizes).any():
        i = int((first.sizes != other.sizes).argmax())
        raise ValueError(
            f"{where} has {other.sizes[i]} samples of domain {first.domains[i]!r}, the first stage {first.sizes[i]}; "
            "expected the same sizes throughout"
        )
