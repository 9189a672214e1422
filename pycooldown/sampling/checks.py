"""Checks of a sampler's arguments."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice, pairwise
from typing import Any, Literal, get_args

from pycooldown.sampling.changes import NEVER, BatchSizes
from pycooldown.schedules import AdaptiveSchedule, Schedule

AllocationName = Literal["multinomial", "systematic", "quota"]
ALLOCATIONS = get_args(AllocationName)
_MAX_CHECKED = 16  # maximum number of mixtures of a schedule that are checked
_SETTLED = 10**12  # a step by which a schedule without an end no longer changes


def integer(name: str, value: Any) -> int:
    """Return an integer of any integer type as an int.

    Raises:
        TypeError: If it is not an integer.
    """
    try:
        return operator.index(value)
    except TypeError:
        raise TypeError(f"{name} = {value!r}, a {type(value).__name__}; expected an integer") from None


def step_number(value: Any) -> int:
    """Return a step as an int.

    Raises:
        TypeError: If it is not an integer.
        ValueError: If it is negative.
    """
    if (step := integer("step", value)) < 0:
        raise ValueError(f"step = {step}; expected a step >= 0")
    return step


def batch_size_pairs(batch_size: int | Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return batch sizes as (first step, size) pairs.

    Raises:
        TypeError: If a size is not an integer: a budget in tokens, for example, or a size for each domain.
        ValueError: If the first steps do not increase from 0, or a size is out of range.
    """
    if isinstance(batch_size, Mapping | str):
        raise TypeError(
            f"batch_size = {batch_size!r}; expected an integer, the samples of a batch. With a budget in tokens, or "
            "a size for each domain, the samples before a step would depend on all batches before it, so no step could "
            "be planned from its number. Rows of one length make a number of samples a number of tokens: "
            "TokenDataset(mode='concat' or 'best_fit'), pack_sequences"
        )
    if isinstance(batch_size, list | tuple):
        pairs = [(integer("first step of a batch_size", step), integer("batch_size", n)) for step, n in batch_size]
        starts = [step for step, _ in pairs]
        if not pairs or starts[0] != 0 or any(a >= b for a, b in pairwise(starts)):
            raise ValueError(f"batch sizes start at steps {starts}; expected 0 and then increasing steps")
    else:
        pairs = [(0, integer("batch_size", batch_size))]
    for _, size in pairs:
        if not 0 < size < 2**31:
            raise ValueError(f"batch_size = {size}; expected 1 to 2^31 - 1 samples")
    return pairs


def epoch_number(epoch: int) -> int:
    """Return the number of a pass, checked.

    Raises:
        ValueError: If it is out of range.
    """
    if not 0 <= (epoch := integer("epoch", epoch)) < 2**64:
        raise ValueError(f"epoch = {epoch}; expected an integer in [0, 2^64)")
    return epoch


def check_options(*, seed: int, num_steps: int | None, rank: int, world_size: int, allocation: str) -> None:
    """Check the numbers and the name that a sampler is created with.

    Raises:
        ValueError: If one of them is out of range, or the name is unknown.
    """
    if not 0 <= seed < 2**64:
        raise ValueError(f"seed = {seed}; expected an integer in [0, 2^64)")
    if num_steps is not None and num_steps < 0:
        raise ValueError(f"num_steps = {num_steps}; expected a number >= 0, or None for no end")
    if not 0 <= rank < world_size:
        raise ValueError(f"rank = {rank} of world_size = {world_size}; expected 0 <= rank < world_size")
    if allocation not in ALLOCATIONS:
        raise ValueError(f"allocation = {allocation!r}; expected one of {', '.join(map(repr, ALLOCATIONS))}")


def check_not_yielded(from_step: int, next_step: int) -> None:
    """Check that iteration has yielded no batch that a change would decide.

    Raises:
        ValueError: If it has.
    """
    if from_step < next_step:
        raise ValueError(
            f"from_step = {from_step}, but batches before step {next_step} have been yielded; expected a step >= "
            f"{next_step}, or load an earlier state first"
        )


def check_batches(
    schedule: Schedule,
    batch_sizes: BatchSizes,
    from_step: int,
    num_steps: int | None,
    world_size: int,
    *,
    homogeneous: bool,
) -> None:
    """Check that the ranks can share the batches from a step on, and that the batches fit into the domains.

    If each sample is drawn once, batches always fit, because the slots of an exhausted domain go to others.

    Raises:
        ValueError: If a batch has fewer samples than there are ranks, or would on average hold more samples of a domain
            than the domain has; if batches are homogeneous, one of a domain that is drawn.
    """
    for first_step, size in batch_sizes.all_pairs:
        end = batch_sizes.end(first_step)
        if end <= from_step:
            continue
        if world_size > size:
            last = (first_step, size) not in batch_sizes.pairs
            rest = ", what is left for the last batch of the pass" if last else ""
            raise ValueError(f"world_size = {world_size} is above batch_size = {size}{rest}; some ranks would be idle")
        if batch_sizes.total is not None:
            continue
        if num_steps is not None:
            end = min(end, num_steps)
        _check_batches_fit(schedule, size, max(first_step, from_step), None if end == NEVER else end, homogeneous)


def _check_batches_fit(
    schedule: Schedule, batch_size: int, first_step: int, num_steps: int | None, homogeneous: bool
) -> None:
    """Check that batches from ``first_step`` on hold each sample at most once on average.

    The checked mixtures are that of ``first_step``, the first ones that follow a change, and the last one. For a
    schedule that learns, only the first is checked, and only if it is decided.

    Raises:
        ValueError: If a batch would draw more samples of a domain than the domain has.
    """
    for step in _steps_to_check(schedule, first_step, num_steps):
        try:
            mixture = schedule.mixture(step)
        except LookupError:  # not decided yet by a schedule that learns
            continue
        draws = batch_size * (mixture.sampling > 0 if homogeneous else mixture.sampling)
        if (draws > mixture.sizes).any():
            i = int((draws / mixture.sizes).argmax())
            largest = int(batch_size * mixture.sizes[i] / draws[i])
            if homogeneous:
                raise ValueError(
                    f"batch_size = {batch_size}, but domain {mixture.domains[i]!r} has {mixture.sizes[i]} samples: a "
                    f"homogeneous batch would repeat some; use a batch_size of at most {largest}, or merge it with "
                    "another"
                )
            raise ValueError(
                f"batch_size = {batch_size} would draw domain {mixture.domains[i]!r} {draws[i]:.1f} times on "
                f"average in a batch at step {step}, but it has {mixture.sizes[i]} samples: every batch would repeat "
                f"some; use a batch_size of at most {largest}, a lower sampling probability, or merge the domain with "
                "another"
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
