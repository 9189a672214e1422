"""The saved state of a sampler: its content, and the checks before any of it is used."""

from __future__ import annotations

import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import numpy as np

from pycooldown.mixture import Integers
from pycooldown.sampling.changes import BatchSizes, Job, ScheduleHistory
from pycooldown.sampling.seeking import MAX_DRAWS, Position

VERSION = 1
# The version of states with one of these keys. A reader of version 1 would ignore the keys and continue wrongly.
LATER_VERSION, LATER_KEYS = 2, {"batch_sizes", "epoch", "homogeneous", "once"}
_UNITS = 2**32  # units of credit per sample


@dataclass(frozen=True)
class SavedPosition:
    """The position of a saved state.

    Attributes:
        step: Number of steps before it.
        epoch: The number of the pass, set by `DomainBatchSampler.set_epoch`.
        position: Draws of each domain before the step, and its credit.
        draws_at_changes: For each change of the job's history, the draws of the domains that grow there.
    """

    step: int
    epoch: int
    position: Position
    draws_at_changes: list[dict[str, int]]


def write_state(job: Job, step: int, epoch: int, position: Position) -> dict[str, Any]:
    """Return the state of a job before a step, as JSON values."""
    domains = job.history.newest.first.domains
    draws, credits = (dict(zip(domains, values.tolist(), strict=True)) for values in position)
    state = {"version": VERSION, "step": step, "draws": draws, **job.identity()}
    if job.allocation == "quota":  # what each domain has earned and not been given, in 2^-32 samples
        state["credits"] = credits
    if len(job.batch_sizes.pairs) > 1:
        state |= {"version": LATER_VERSION, "batch_sizes": [list(pair) for pair in job.batch_sizes.pairs]}
    if epoch:
        state |= {"version": LATER_VERSION, "epoch": epoch}
    if job.once:
        state |= {"version": LATER_VERSION, "once": True}
    if job.homogeneous:
        state["version"] = LATER_VERSION
    if len(job.history.changes) > 1:
        state["changes"] = job.history.state()
    return state


def read_state(state: Any, job: Job) -> SavedPosition:
    """Return the position of a state.

    Args:
        state: A value of `DomainBatchSampler.state_dict`, from any storage.
        job: The job that continues from it.

    Raises:
        ValueError: If the state is damaged, or belongs to another job; the message names the difference.
    """
    identity = job.identity() | {"homogeneous": job.homogeneous}
    history, batch_sizes = job.history, job.batch_sizes
    if not isinstance(state, Mapping):
        raise ValueError(f"state is a {type(state).__name__}; expected a value of DomainBatchSampler.state_dict()")
    later = bool(LATER_KEYS & set(state))
    state = {"homogeneous": False, **state}  # states of non-homogeneous jobs omit the key
    has_credits = job.allocation == "quota"
    needed = {"version", "step", "draws", *identity, *(["credits"] if has_credits else [])}
    if missing := needed - set(state):
        raise ValueError(f"state lacks {sorted(missing)}; expected a value of DomainBatchSampler.state_dict()")
    if not _equal(state["version"], LATER_VERSION if later else VERSION):
        raise ValueError(
            f"state has version {_brief(state['version'])}; this pycooldown reads version {VERSION}, and "
            f"{LATER_VERSION} where it has {', '.join(sorted(LATER_KEYS))}"
        )
    for name, mine in identity.items():
        if not _equal(state[name], mine) or (name == "sizes" and list(state[name]) != list(mine)):
            raise ValueError(f"state is of another job: {_difference(name, state[name], mine)}")

    if not _equal(state.get("once", False), job.once):
        raise ValueError(f"state is of another job: {_difference('once', state.get('once', False), job.once)}")
    _check_batch_sizes(state.get("batch_sizes", [[0, identity["batch_size"]]]), batch_sizes)

    step, epoch = state["step"], state.get("epoch", 0)
    if type(epoch) is not int or not 0 <= epoch < 2**64:
        raise ValueError(f"state is damaged: epoch is {_brief(epoch)}; expected an integer in [0, 2^64)")
    if type(step) is not int or step < 0:
        raise ValueError(f"state is damaged: step is {_brief(step)}; expected an integer >= 0")
    if (samples := batch_sizes.samples_before(step)) >= MAX_DRAWS:
        raise ValueError(f"state is damaged: step is {step!r}; expected one before 2^62 samples are drawn")
    domains = history.newest.first.domains
    draws = _integers("draws", state["draws"], domains)
    if min(draws.values()) < 0 or sum(draws.values()) != samples:
        raise ValueError(
            f"state is damaged: {sum(draws.values())} draws in {step} steps; expected {samples}, and none below 0"
        )
    credits = dict.fromkeys(domains, 0)
    if has_credits:
        credits = _integers("credits", state["credits"], domains)
        # A domain never gets more than the sample that it has begun to earn. Credits sum to 0: what some domains got
        # too early, others still have to get.
        if min(credits.values()) <= -_UNITS or sum(credits.values()) != 0:
            raise ValueError(
                f"state is damaged: credits sum to {sum(credits.values())} and the least is {min(credits.values())}; "
                f"expected 0 and none below {1 - _UNITS}"
            )
    elif "credits" in state:
        raise ValueError("state is damaged: it has credits, which only quota allocation keeps")
    _check_joined(history, step, draws, credits)
    draws_at_changes = _read_changes(state.get("changes", []), history, step, draws, batch_sizes)
    return SavedPosition(step, epoch, (_by_position(draws), _by_position(credits)), draws_at_changes)


def _check_batch_sizes(saved: Any, batch_sizes: BatchSizes) -> None:
    mine = [list(pair) for pair in batch_sizes.pairs]
    well_formed = isinstance(saved, Sequence) and all(
        isinstance(pair, list | tuple) and len(pair) == 2 and all(type(number) is int for number in pair)
        for pair in saved
    )
    if not well_formed:
        raise ValueError(f"state is damaged: batch_sizes is {_brief(saved)}; expected pairs of a step and a size")
    if [list(pair) for pair in saved] != mine:
        raise ValueError(
            f"state is of another job: batch sizes by their first steps are {_brief(saved)} in the state and {mine} "
            "here: make the same calls of set_batch_size() before load_state_dict(), and new ones after it"
        )


def _check_joined(history: ScheduleHistory, step: int, draws: dict[str, int], credits: dict[str, int]) -> None:
    """Check that domains which no step before ``step`` had have been drawn 0 times."""
    had = set(history.at(step - 1).first.domains) if step > 0 else set()
    for domain in draws:
        if domain not in had and (draws[domain] or credits[domain]):
            raise ValueError(
                f"state is damaged: domain {domain!r} has {draws[domain]} draws and a credit of {credits[domain]} at "
                f"step {step}, before which no schedule has it; expected 0"
            )


def _read_changes(
    saved: Any, history: ScheduleHistory, step: int, draws: dict[str, int], batch_sizes: BatchSizes
) -> list[dict[str, int]]:
    """Return the draws at changes that a saved history knows of, checked against this job's history."""
    if not isinstance(saved, Sequence) or isinstance(saved, str | bytes):
        raise ValueError(f"state is damaged: changes is {_brief(saved)}; expected a list")
    known: list[dict[str, int]] = []
    before: dict[str, int] = {}  # the draws of each domain at the last change that knows them
    for number, (theirs, mine) in enumerate(zip_longest(saved, history.state()), 1):
        if number <= len(saved):
            keys = {"from_step", "schedule", "sizes", "draws"}
            if not isinstance(theirs, Mapping) or not keys <= set(theirs) or not isinstance(theirs["draws"], Mapping):
                raise ValueError(
                    f"state is damaged: change {number} is {_brief(theirs)}; expected a mapping with {sorted(keys)}"
                )
        if mine is None:
            raise ValueError(
                f"the state has a schedule {theirs['schedule']} from step {theirs['from_step']} on, but this job has "
                "none: call set_schedule() for it before load_state_dict()"
            )
        if number > len(saved):
            raise ValueError(
                f"this job has a schedule {mine['schedule']} from step {mine['from_step']} on, but the state has none: "
                "call set_schedule() for it after load_state_dict()"
            )
        for name in ("from_step", "schedule", "sizes"):
            if not _equal(theirs[name], mine[name]):
                raise ValueError(
                    f"state is of another job: {name} of change {number} is {_brief(theirs[name])} in the state "
                    f"and {mine[name]!r} here"
                )
        from_step = mine["from_step"]
        grown = [domain for domain in mine["sizes"] if domain in history.changes[number - 1].first.domains]
        if not theirs["draws"] and (from_step > step or not grown):
            known.append({})  # not reached yet, or nothing to know
            continue
        at_change = _integers(f"draws of change {number}", theirs["draws"], grown)
        for domain, count in at_change.items():
            # Draws never decrease, and a step draws at most a batch.
            least, most = before.get(domain, 0), draws[domain]
            if from_step > step:
                between = batch_sizes.samples_before(from_step) - batch_sizes.samples_before(step)
                least, most = max(least, draws[domain]), draws[domain] + between
            if not least <= count <= most:
                raise ValueError(
                    f"state is damaged: change {number} has {count} draws of domain {domain!r} before step "
                    f"{from_step}; expected {least} to {most}"
                )
        before |= at_change
        known.append(at_change)
    return known


def _integers(name: str, values: Any, domains: Sequence[str]) -> dict[str, int]:
    """Return the integers of each domain, in the order of ``domains``."""
    if not isinstance(values, Mapping) or set(values) != set(domains):
        named = sorted(map(str, values)) if isinstance(values, Mapping) else _brief(values)
        raise ValueError(f"state is damaged: {name!r} names different domains: {named}; expected {list(domains)}")
    for value in values.values():
        if type(value) is not int or abs(value) >= MAX_DRAWS:
            raise ValueError(f"state is damaged: {name!r} holds {_brief(value)}; expected integers below 2^62")
    return {domain: values[domain] for domain in domains}


def _by_position(values: dict[str, int]) -> Integers:
    return np.array(list(values.values()), dtype=np.int64)


def _equal(theirs: Any, mine: Any) -> bool:
    """Return whether a saved value of any type equals this job's."""
    if isinstance(mine, dict):
        return (
            isinstance(theirs, Mapping)
            and theirs.keys() == mine.keys()
            and all(_equal(theirs[k], mine[k]) for k in mine)
        )
    return isinstance(theirs, bool | int | float | str) and theirs == mine


def _difference(name: str, theirs: Any, mine: Any) -> str:
    """Return a text that describes how a saved value differs from this job's."""
    if name == "sizes" and isinstance(theirs, Mapping):
        if only := set(theirs) ^ set(mine):
            domain = min(only, key=str)
            return f"domain {domain!r} is only in {'the state' if domain in theirs else 'this job'}"
        if changed := [domain for domain in mine if not _equal(theirs[domain], mine[domain])]:
            domain = changed[0]
            return f"domain {domain!r} has {_brief(theirs[domain])} samples in the state and {mine[domain]} here"
        return "the domains are in another order"
    return f"{name} is {_brief(theirs)} in the state and {mine!r} here"


def _brief(value: Any) -> str:
    """Return a short text of a value of any length and depth."""
    brief = reprlib.Repr()
    brief.maxstring = brief.maxother = 200
    return brief.repr(value)
