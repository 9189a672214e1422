"""What a sampler plans with, a mixture for some steps, and what it tells: the samples of a batch, counts of draws."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np
import numpy.typing as npt

from pycooldown import _core
from pycooldown._html import table
from pycooldown.mixture import Mixture
from pycooldown.schedules import AdaptiveSchedule, Schedule

Integers = npt.NDArray[np.int64]
NEVER = 2**64 - 1

# How many changes of the mixture are looked at to see whether batches fit into the domains.
_MAX_CHECKED = 16
_FAR = 10**12  # a step by which a schedule without an end has settled


@dataclass(frozen=True)
class BatchPlan:
    """The samples of one global batch, in slot order; rank r of R takes slots [r B / R, (r + 1) B / R).

    Attributes:
        domain_ids: int32 (B,), positions in ``mixture.domains``.
        indices: int64 (B,), sample indices into the domains laid end to end.
        epochs: int64 (B,), the pass through its domain that a sample belongs to, from 0.
        mixture: the mixture in force.
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
        draws: int64 (K,), samples drawn.
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


@dataclass(frozen=True)
class Stage:
    """The mixture in force in steps [start, end), and its alias table."""

    start: int
    end: int
    mixture: Mixture
    table: _core.AliasTable
    schedule: Schedule

    @property
    def pair(self) -> tuple[_core.AliasTable, int]:
        """What the planner needs to know."""
        return self.table, self.end

    @classmethod
    def at(cls, schedule: Schedule, step: int, first: Mixture) -> Stage:
        """What a schedule, which began with the mixture ``first``, decides for ``step`` and those that follow."""
        mixture, change = schedule.mixture(step), schedule.next_change(step)
        if mixture.domains != first.domains or (mixture.sizes != first.sizes).any():
            raise ValueError(
                f"the schedule's mixture at step {step} has other domains or sizes than the one it began with"
            )
        return cls(step, NEVER if change is None else change, mixture, _core.AliasTable(mixture.sampling), schedule)


def check_batches_fit(schedule: Schedule, batch_size: int, first_step: int, num_steps: int | None) -> None:
    """Looks at the mixture of ``first_step``, at the first ones that follow a change, and at the last one."""
    if isinstance(schedule, AdaptiveSchedule):  # what follows is not known
        steps = [first_step]
    else:
        steps = [*islice(_changes(schedule, first_step), _MAX_CHECKED), _FAR if num_steps is None else num_steps - 1]
    for step in steps:
        if num_steps is not None and not first_step <= step < num_steps:
            continue
        mixture = schedule.mixture(step)
        draws = batch_size * mixture.sampling
        if (draws > mixture.sizes).any():
            i = int((draws / mixture.sizes).argmax())
            raise ValueError(
                f"batch_size = {batch_size} would draw domain {mixture.domains[i]!r} {draws[i]:.1f} times on "
                f"average in a batch at step {step}, but it has {mixture.sizes[i]} samples: every batch would repeat "
                "some; use a smaller batch_size, a lower sampling probability, or merge the domain with another"
            )


def _changes(schedule: Schedule, step: int | None) -> Iterator[int]:
    while step is not None:
        yield step
        step = schedule.next_change(step)
