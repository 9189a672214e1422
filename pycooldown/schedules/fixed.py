"""Schedules that are known beforehand: constant, in stages, annealed."""

from __future__ import annotations

import math
import warnings
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np

from pycooldown.mixture import Mixture
from pycooldown.schedules.protocol import Schedule
from pycooldown.schedules.unimax import front_loaded, unimax_budgets

Shape = Literal["linear", "cosine", "exponential"]


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


def unimax(
    sizes: Mapping[str, int],
    *,
    budget: float,
    max_epochs: float = 1.0,
    mode: Literal["static", "frontload"] = "static",
    num_steps: int | None = None,
) -> Schedule:
    """Draws as evenly as can be without passing through any domain more than ``max_epochs`` times: `unimax_budgets`.

    Args:
        sizes: number of samples of each domain.
        budget: number of samples that the whole run draws: batch size times steps.
        max_epochs: cap on the number of passes through a domain; 1, 5 and 10 in the paper.
        mode: "static" keeps one mixture throughout (Chung et al., ICLR 2023); "frontload" draws uniformly and drops
            each domain when it reaches the cap, as Li et al. (NAACL 2025) describe UniMax: the same totals, the rare
            domains early.
        num_steps: number of steps that the budget lasts; for "frontload" only, which needs it.

    Raises:
        ValueError: if the caps leave part of the budget over, an argument is not positive, ``mode`` is unknown, or
            ``num_steps`` is missing.

    Warns:
        UserWarning: If no domain reaches the cap, so that the result is uniform sampling.
    """
    uniform = Mixture.temperature_sampling(sizes, math.inf)
    budgets = unimax_budgets(uniform.sizes, budget=budget, max_epochs=max_epochs)
    passes = budgets / uniform.sizes
    if uniform.num_domains > 1 and passes.max() < max_epochs * (1 - 1e-9):
        warnings.warn(
            f"max_epochs = {max_epochs:g} binds for no domain: uniform sampling passes through the smallest, "
            f"{uniform.domains[int(passes.argmax())]!r}, {passes.max():.4g} times, so this UniMax is uniform sampling; "
            f"set max_epochs below {passes.max():.4g}",
            stacklevel=2,
        )
    text = f"unimax(budget={float(budget)}, max_epochs={float(max_epochs)}, mode={mode}"
    if mode == "static":
        stages = [(0, budgets / budgets.sum())]
    elif mode == "frontload":
        if num_steps is None or num_steps < 1:
            raise ValueError(f"num_steps = {num_steps}; 'frontload' needs the number of steps that the budget lasts")
        stages = front_loaded(budgets, num_steps)
        text += f", num_steps={num_steps}"
    else:
        raise ValueError(f"mode = {mode!r}; expected 'static' or 'frontload'")
    mixtures = tuple(Mixture(uniform.domains, uniform.sizes, p, p) for _, p in stages)
    return _Staircase(tuple(start for start, _ in stages), mixtures, text + ")")


def order_matters(
    sizes: Mapping[str, int], *, high_resource: Sequence[str] | None = None, switch_step: int, tau: float = 5.0
) -> Schedule:
    """High-resource domains alone, in proportion to size, until ``switch_step``; then all, with temperature ``tau``.

    Choi et al., "Order Matters in the Presence of Dataset Imbalance for Multilingual Learning", NeurIPS 2023, who also
    reset the optimizer and the learning rate at the switch, which is the trainer's part.

    Args:
        sizes: number of samples of each domain.
        high_resource: names of the domains of the first phase; by default those with at least the median size (ours).
        switch_step: first step with all domains, > 0.
        tau: temperature of the second phase, > 0; the paper sweeps over mixtures.

    Raises:
        ValueError: if a name in ``high_resource`` is unknown, it is empty, or a number is not positive.
    """
    joint = Mixture.temperature_sampling(sizes, tau)
    if high_resource is None:
        high_resource = [d for d, n in zip(joint.domains, joint.sizes, strict=True) if n >= np.median(joint.sizes)]
    if unknown := sorted(set(high_resource) - set(joint.domains)):
        raise ValueError(f"high_resource names {unknown}, which sizes lacks; expected some of {list(joint.domains)}")
    if not high_resource:
        raise ValueError("high_resource is empty; expected a domain, or None for those of median size and up")
    if switch_step <= 0:
        raise ValueError(f"switch_step = {switch_step}; expected a step > 0")
    first = np.where(np.isin(joint.domains, list(high_resource)), joint.sizes, 0) / joint.sizes.sum()
    first = first / first.sum()
    phases = Mixture(joint.domains, joint.sizes, first, first), joint
    names = ",".join(d for d in joint.domains if d in set(high_resource))
    text = f"order_matters(high_resource={names}, switch_step={switch_step}, tau={float(tau)})"
    return _Staircase((0, switch_step), phases, text)


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
