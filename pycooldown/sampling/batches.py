"""The results of a sampler: the samples of a batch, and how often each domain has been drawn."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pycooldown._html import table
from pycooldown.mixture import Integers, Mixture


@dataclass(frozen=True)
class BatchPlan:
    """The samples of one global batch, in slot order; rank r of R takes slots [r B / R, (r + 1) B / R).

    Attributes:
        domain_ids: int32 (B,), positions in ``mixture.domains``.
        indices: int64 (B,), sample indices into the domains laid end to end.
        epochs: int64 (B,), the pass through its domain that a sample belongs to, from 0.
        mixture: The mixture in force.
    """

    domain_ids: npt.NDArray[np.int32]
    indices: Integers
    epochs: Integers
    mixture: Mixture


@dataclass(frozen=True)
class Exposure:
    """How often each domain has been drawn.

    Attributes:
        domains: K names.
        draws: int64 (K,), samples drawn; in an estimate, their expectation rounded to whole samples.
        epochs: float64 (K,), draws over domain size, the newest size if it has grown.
    """

    domains: tuple[str, ...]
    draws: Integers
    epochs: npt.NDArray[np.float64]

    def _repr_html_(self) -> str:
        share = self.draws / max(int(self.draws.sum()), 1)
        values = zip(self.domains, self.draws, share, self.epochs, strict=True)
        rows = [(name, f"{n:,}", f"{s:.4f}", f"{e:.2f}") for name, n, s, e in values]
        return table(("domain", "draws", "share", "epochs"), rows, f"{int(self.draws.sum()):,} draws")
