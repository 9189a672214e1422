"""UniMax: a budget spread as evenly over domains as a cap on their epochs allows."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from typing import Literal

import numpy as np
import numpy.typing as npt

from pycooldown.mixture import Mixture, Vector
from pycooldown.schedules.protocol import Schedule
from pycooldown.schedules.staircase import Staircase


def unimax(
    sizes: Mapping[str, int],
    *,
    budget: float,
    max_epochs: float = 1.0,
    mode: Literal["static", "frontload"] = "static",
    num_steps: int | None = None,
) -> Schedule:
    """Return a schedule that draws as evenly as possible, with at most ``max_epochs`` passes through each domain.

    `unimax_budgets` has the formula.

    Args:
        sizes: Number of samples of each domain.
        budget: Number of samples that the whole run draws: batch size times steps.
        max_epochs: Largest number of passes through a domain; 1, 5 and 10 in the paper.
        mode: "static" keeps one mixture throughout (Chung et al., ICLR 2023); "frontload" draws uniformly and drops
            each domain when it reaches the cap, as Li et al. (NAACL 2025) describe UniMax: the same totals, the rare
            domains early.
        num_steps: Number of steps that the budget lasts; for "frontload" only, which needs it.

    Raises:
        ValueError: If the caps leave part of the budget over, an argument is not positive, ``mode`` is unknown, or
            ``num_steps`` is missing.
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
    mixtures = tuple(uniform.reweighted(p) for _, p in stages)
    return Staircase(tuple(start for start, _ in stages), mixtures, text + ")")


def unimax_budgets(sizes: npt.ArrayLike, *, budget: float, max_epochs: float) -> Vector:
    """Return the part of ``budget`` for each domain: U_i = min(level, max_epochs * n_i) with sum_i U_i = budget.

    Source: Chung et al., "UniMax: Fairer and more Effective Language Sampling for Large-Scale Multilingual
    Pretraining", ICLR 2023, algorithm 1 (water filling): from the smallest domain up, each gets an even share of what
    is left, or its cap.

    Args:
        sizes: (K,) positive sizes, in the unit of ``budget`` (characters in the paper).
        budget: How much is drawn in all.
        max_epochs: Cap on the number of passes through a domain.

    Returns:
        float64 (K,).

    Raises:
        ValueError: If an argument is not positive, or the caps leave part of the budget over.
    """
    n = np.asarray(sizes, dtype=np.float64)
    for name, value in (("budget", budget), ("max_epochs", max_epochs)):
        if not 0 < value < np.inf:
            raise ValueError(f"{name} = {value}; expected a finite number > 0")
    capacity = max_epochs * n.sum()
    if budget > capacity * (1 + 1e-12):
        raise ValueError(
            f"budget = {budget:.6g} is more than max_epochs = {max_epochs:g} passes through all domains, "
            f"{capacity:.6g}: part of it would be left over; expected max_epochs >= {budget / n.sum():.6g}, or a "
            "smaller budget"
        )
    budgets = np.empty_like(n)
    left = float(budget)
    for rank, i in enumerate(np.argsort(n, kind="stable")):
        budgets[i] = min(left / (len(n) - rank), max_epochs * n[i])
        left -= budgets[i]
    return budgets


def front_loaded(budgets: Vector, num_steps: int) -> list[tuple[int, Vector]]:
    """Return (first step, sampling) pairs that draw uniformly from the domains whose budget is not used up.

    A step in which a domain runs out draws from it what is left, so that each domain's draws over all steps are its
    budget exactly.
    """
    used = np.concatenate([[0.0], np.sort(budgets)])  # draws of each remaining domain when the next one runs out
    in_play = np.arange(len(budgets), 0, -1)
    spent = np.concatenate([[0.0], np.cumsum(np.diff(used) * in_play)])  # draws of all domains by then

    def drawn(share: float) -> Vector:
        """Return each domain's draws when this share of the budget is spent."""
        return np.minimum(budgets, float(np.interp(share * spent[-1], spent, used)))

    switches = np.unique(np.clip(spent[1:-1] / spent[-1] * num_steps, 0, num_steps))
    starts = {0, *(int(switch) + after for switch in switches for after in (0, 1))}
    stages: list[tuple[int, Vector]] = []
    for start in sorted(s for s in starts if s < num_steps):
        rate = drawn((start + 1) / num_steps) - drawn(start / num_steps)
        stages.append((start, rate / rate.sum()))
    return stages
