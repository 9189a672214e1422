"""What a sampler returns: the samples of a batch, and how often each domain has been drawn."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np
import numpy.typing as npt

from pycooldown.mixture import Mixture
from pycooldown.schedules import AdaptiveSchedule, Schedule

Integers = npt.NDArray[np.int64]

_MAX_CHECKED = 16  # mixtures of a schedule
_SETTLED = 10**12  # a step by which a schedule without an end no longer changes


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


def check_batches_fit(schedule: Schedule, batch_size: int, first_step: int, num_steps: int | None) -> None:
    """Check that batches from ``first_step`` on hold each sample at most once on average.

    Looks at the mixture of ``first_step``, at the first ones that follow a change, and at the last one. Of a schedule
    that learns, only the first is known.

    Raises:
        ValueError: If a batch would draw more samples of a domain than the domain has.
    """
    for step in _steps_to_check(schedule, first_step, num_steps):
        mixture = schedule.mixture(step)
        draws = batch_size * mixture.sampling
        if (draws > mixture.sizes).any():
            i = int((draws / mixture.sizes).argmax())
            raise ValueError(
                f"batch_size = {batch_size} would draw domain {mixture.domains[i]!r} {draws[i]:.1f} times on "
                f"average in a batch at step {step}, but it has {mixture.sizes[i]} samples: every batch would repeat "
                "some; use a smaller batch_size, a lower sampling probability, or merge the domain with another"
            )


def _steps_to_check(schedule: Schedule, first_step: int, num_steps: int | None) -> Iterator[int]:
    if isinstance(schedule, AdaptiveSchedule):
        steps = [first_step]
    else:
        last_step = _SETTLED if num_steps is None else num_steps - 1
        steps = [*islice(_steps_of_changes(schedule, first_step), _MAX_CHECKED), last_step]
    return (step for step in steps if num_steps is None or first_step <= step < num_steps)


def _steps_of_changes(schedule: Schedule, step: int | None) -> Iterator[int]:
    while step is not None:
        yield step
        step = schedule.next_change(step)
