"""Paired differences between runs of the same seeds, with Student's t intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

import numpy as np


@dataclass(frozen=True)
class PairedDifference:
    """The mean difference over seeds and its 95 % interval; the interval is ``None`` for a single seed."""

    mean: float
    low: float | None
    high: float | None

    def __str__(self) -> str:
        interval = "" if self.low is None else f" [{self.low:+.3f}, {self.high:+.3f}]"
        return f"{self.mean:+.3f}{interval}"


def paired_difference(values: Sequence[float], baseline: Sequence[float]) -> PairedDifference:
    """Return the mean of ``values - baseline`` with its 95 % interval.

    Runs of the same seed share initial weights and order of samples, so much of their spread cancels in the difference.

    Args:
        values: One value for each seed.
        baseline: Values of the same seeds in the same order.
    """
    differences = [a - b for a, b in zip(values, baseline, strict=True)]
    mean = fmean(differences)
    if len(differences) < 2:
        return PairedDifference(mean, None, None)
    half = t_quantile(len(differences) - 1) * deviation(differences) / math.sqrt(len(differences))
    return PairedDifference(mean, mean - half, mean + half)


def deviation(values: Sequence[float]) -> float:
    """Return the sample standard deviation; NaN if a value is not finite, such as the loss of a diverged run."""
    return stdev(values) if all(map(math.isfinite, values)) else math.nan


def clear_best(values: Sequence[Sequence[float]], *, lowest: bool = True) -> int | None:
    """Return the position of a candidate that is better than each other one, beyond the interval of their difference.

    Args:
        values: The measures of each candidate, one per seed, in the same order of seeds.
        lowest: Whether low values are good.

    Returns:
        The position, or ``None`` if no candidate is that clearly better or there is a single seed.
    """
    sign = 1 if lowest else -1
    signed = [[sign * value for value in column] for column in values]
    best = min(range(len(signed)), key=lambda i: fmean(signed[i]))
    others = [paired_difference(column, signed[best]) for i, column in enumerate(signed) if i != best]
    return best if others and all(other.low is not None and other.low > 0 for other in others) else None


def t_quantile(degrees: int, coverage: float = 0.95) -> float:
    """Return t with P(-t <= T <= t) = coverage for Student's T with ``degrees`` degrees of freedom.

    With T = sqrt(degrees) tan(angle), the density of the angle is proportional to cos^(degrees - 1).
    """
    nodes, weights = np.polynomial.legendre.leggauss(100)

    def area(angle: float) -> float:
        return float(angle / 2 * (weights @ np.cos(angle / 2 * (nodes + 1)) ** (degrees - 1)))

    wanted, low, high = coverage * area(math.pi / 2), 0.0, math.pi / 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if area(middle) < wanted else (low, middle)
    return math.sqrt(degrees) * math.tan(low)
