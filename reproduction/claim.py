"""Claims of papers, and the outcomes of testing them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

Verdict = Literal["reproduced", "not reproduced", "inconclusive", "not testable here"]


@dataclass(frozen=True)
class Quantity:
    """A measured number: the mean of ``count`` values (one for each seed) with their standard deviation.

    Attributes:
        mean: Mean of the values.
        sd: Sample standard deviation of the values; 0 for a single exact number.
        count: Number of values.
    """

    mean: float
    sd: float = 0.0
    count: int = 1

    @classmethod
    def of(cls, values: npt.ArrayLike) -> Quantity:
        """Return the quantity of one value for each seed; differences must be of paired seeds."""
        x = np.asarray(values, dtype=np.float64)
        return cls(float(x.mean()), float(x.std(ddof=1)) if x.size > 1 else 0.0, x.size)

    @property
    def standard_error(self) -> float:
        """Standard error of the mean."""
        return self.sd / math.sqrt(self.count)

    @property
    def is_positive(self) -> bool:
        """Whether the mean is above 0 by more than two standard errors."""
        return self.mean > 2 * self.standard_error

    def __str__(self) -> str:
        return f"{self.mean:.4g} ± {self.sd:.2g}" if self.count > 1 else f"{self.mean:.4g}"


@dataclass(frozen=True)
class Outcome:
    """What a test of a claim found.

    Attributes:
        verdict: Verdict of the claim's rule.
        measured: Measured numbers by name.
        epochs: Passes through each domain, of each system that was trained.
        note: What a reader must know beside the numbers.
    """

    verdict: Verdict
    measured: Mapping[str, Quantity] = field(default_factory=dict)
    epochs: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    note: str = ""


@dataclass(frozen=True)
class Bench:
    """What a test may use.

    Attributes:
        folder: Folder in which it keeps its trainings.
        data: Folder of packed data, or ``None``.
        seeds: Number of paired seeds, at least 4.
        workers: Number of processes.
    """

    folder: Path
    data: Path | None
    seeds: int = 4
    workers: int = 1


@dataclass(frozen=True)
class Claim:
    """One claim, with the rule that decides it.

    Attributes:
        name: R1 to R15.
        item: Figure, table or theorem.
        statement: What the paper says.
        rule: When it counts as reproduced; ``test`` implements this.
        paper_scale: The paper's configuration, as far as it is known.
        test: Run the scaled-down version.
        needs_text: Whether ``test`` needs ``Bench.data``.
    """

    name: str
    item: str
    statement: str
    rule: str
    paper_scale: str
    test: Callable[[Bench], Outcome]
    needs_text: bool = False


def verdict(holds: bool) -> Verdict:
    """Return the verdict of a rule that could be applied."""
    return "reproduced" if holds else "not reproduced"
