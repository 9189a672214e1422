"""UniMax: a budget spread as evenly over domains as a cap on their epochs allows."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from pycooldown.mixture import Vector


def unimax_budgets(sizes: npt.ArrayLike, *, budget: float, max_epochs: float) -> Vector:
    """What each domain gets of ``budget``: U_i = min(level, max_epochs * n_i) with sum_i U_i = budget.

    Chung et al., "UniMax: Fairer and more Effective Language Sampling for Large-Scale Multilingual Pretraining", ICLR
    2023, algorithm 1 (water filling): from the smallest domain up, each gets an even share of what is left, or its cap.

    Args:
        sizes: (K,) positive sizes, in the unit of ``budget`` (characters in the paper).
        budget: how much is drawn in all.
        max_epochs: cap on the number of passes through a domain.

    Returns:
        float64 (K,).

    Raises:
        ValueError: if an argument is not positive, or the caps leave part of the budget over.
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
    """Stages that draw uniformly from the domains whose budget is not used up, as (first step, sampling).

    A step in which a domain runs out draws from it what is left, so that each domain's draws over all steps are its
    budget exactly.
    """
    used = np.concatenate([[0.0], np.sort(budgets)])  # what each domain still in play has had when the next runs out
    in_play = np.arange(len(budgets), 0, -1)
    spent = np.concatenate([[0.0], np.cumsum(np.diff(used) * in_play)])  # in all, by then

    def drawn(share: float) -> Vector:
        """Each domain's draws when this share of the budget is spent."""
        return np.minimum(budgets, float(np.interp(share * spent[-1], spent, used)))

    switches = np.unique(np.clip(spent[1:-1] / spent[-1] * num_steps, 0, num_steps))
    starts = {0, *(int(switch) + after for switch in switches for after in (0, 1))}
    stages: list[tuple[int, Vector]] = []
    for start in sorted(s for s in starts if s < num_steps):
        rate = drawn((start + 1) / num_steps) - drawn(start / num_steps)
        stages.append((start, rate / rate.sum()))
    return stages
