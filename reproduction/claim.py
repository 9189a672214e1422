"""Claims of papers: the measured values of each, and the bounds that decide about it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from pycooldown.mixture import Vector

Verdict = Literal["reproduced", "not reproduced", "inconclusive"]


@dataclass(frozen=True)
class ClaimPart:
    """A measured quantity: one value for each seed, or a single exact value.

    Attributes:
        label: Name of the quantity.
        values: The values, (number of seeds,).
        bound: The mean must exceed this for the claim to hold; ``None`` for a number that decides nothing.
    """

    label: str
    values: Vector
    bound: float | None = 0.0

    @classmethod
    def of(cls, label: str, values: npt.ArrayLike, bound: float | None = 0.0) -> ClaimPart:
        """Return a part of a number or a sequence of numbers."""
        return cls(label, np.atleast_1d(np.asarray(values, dtype=np.float64)), bound)

    @property
    def mean(self) -> float:
        """Mean of the values."""
        return float(self.values.mean())

    def __str__(self) -> str:
        if self.values.size == 1:
            return f"{self.mean:.4g}"
        return f"{self.mean:.4g} ± {self.values.std(ddof=1):.2g}"


@dataclass(frozen=True)
class Bench:
    """The resources of a test.

    Attributes:
        folder: Folder in which the test keeps its trainings.
        data: Folder of packed data, or ``None``.
        seeds: Number of paired seeds.
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
        name: R1 to R4b, R12 to R15.
        item: Figure, table or theorem.
        statement: The paper's statement.
        rule: The condition that must hold, in words; ``test`` measures it.
        paper_scale: The paper's configuration, as far as it is known.
        test: Measure the parts.
        note: Information that a reader needs in addition to the numbers.
        needs_text: Whether ``test`` needs ``Bench.data``.
    """

    name: str
    item: str
    statement: str
    rule: str
    paper_scale: str
    test: Callable[[Bench], Sequence[ClaimPart]]
    note: str = ""
    needs_text: bool = False
