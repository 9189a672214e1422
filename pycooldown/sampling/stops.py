"""The rules that end a pass, and their numbers of steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, get_args

import numpy as np

from pycooldown.mixture import Integers
from pycooldown.sampling.changes import NEVER, Job
from pycooldown.sampling.seeking import Planner
from pycooldown.schedules import AdaptiveSchedule, Schedule

StopRule = Literal["first_exhausted", "all_exhausted", "all_exhausted_without_replacement"]
STOP_RULES = get_args(StopRule)
ONCE: StopRule = "all_exhausted_without_replacement"

# A condition on four values: a step; the draws before it, (K,); the samples in each domain's first epoch, (K,); and the
# draws at which each domain has had an epoch over all of its samples, (K,).
_Condition = Callable[[int, Integers, Integers, Integers], bool]


def check_stop(stop: str | None, num_steps: int | None, schedule: Schedule, *, homogeneous: bool = False) -> None:
    """Check the rule that ends a pass.

    Raises:
        ValueError: If the rule is unknown, or cannot be applied.
    """
    if stop is None:
        return
    if stop not in STOP_RULES:
        raise ValueError(f"stop = {stop!r}; expected None or one of {', '.join(map(repr, STOP_RULES))}")
    if num_steps is not None:
        raise ValueError(f"stop = {stop!r} sets num_steps, but num_steps = {num_steps} is given too; leave one out")
    if homogeneous and stop == ONCE:
        raise ValueError(
            f"stop = {stop!r} gives slots of exhausted domains to others, so batches would mix domains; with "
            "homogeneous=True use stop='first_exhausted' or 'all_exhausted'"
        )
    if isinstance(schedule, AdaptiveSchedule) and stop != ONCE:
        raise ValueError(
            f"stop = {stop!r} needs a schedule that is known beforehand; for one that learns, pass num_steps, or stop "
            f"= {ONCE!r}"
        )


def steps_of_pass(stop: StopRule, planner: Planner, job: Job) -> int:
    """Return the number of steps of a pass that ends by a rule.

    Raises:
        ValueError: If it has no end, as the schedule stops drawing a domain before all of its samples were drawn.
    """
    if stop == "first_exhausted":
        return _first_step(planner, job, lambda step, draws, first, last: bool((draws > first).any())) - 1
    if stop == "all_exhausted":
        return _first_step(planner, job, lambda *state: _exhausted(job, *state))
    assert job.batch_sizes.num_steps is not None
    return job.batch_sizes.num_steps


def _exhausted(job: Job, step: int, draws: Integers, first: Integers, last: Integers) -> bool:
    change = job.history.at(step)
    if job.history.end(step) == NEVER and change.schedule.next_change(step) is None:
        never = (draws < last) & (change.schedule.mixture(step).sampling == 0)
        if never.any():
            raise ValueError(
                f"stop = 'all_exhausted', but from step {step} on the schedule does not draw domain "
                f"{change.first.domains[int(np.argmax(never))]!r}, although some of its samples are left; pass "
                "num_steps instead"
            )
    return bool((draws >= last).all())


def _first_step(planner: Planner, job: Job, condition: _Condition) -> int:
    """Return the first step at which a condition holds. It must hold at all later steps too."""

    def holds(step: int) -> bool:
        draws, credits = planner.before(step)
        first = job.history.newest.first.sizes.copy()
        last = first.copy()
        for domain, epochs in job.history.epoch_sizes().items():  # for domains that have grown
            place = job.history.newest.first.domains.index(domain)
            first[place], last[place] = epochs[0][1], epochs[-1][0] + last[place]
        if condition(step, draws, first, last):
            return True
        planner.remember(step, (draws, credits))  # the next search starts there
        return False

    low, high = 0, 1
    while not holds(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high
