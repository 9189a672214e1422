"""The schedules that a job has been told to mix by, each from a step on, and how much data each domain then had."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise, zip_longest
from typing import Any

from pycooldown.mixture import Mixture
from pycooldown.sampling.batches import NEVER
from pycooldown.schedules import AdaptiveSchedule, Schedule


@dataclass
class Change:
    """A schedule that holds from ``from_step`` on.

    Attributes:
        first: the mixture of ``from_step``, with the schedule's domains and their sizes.
        added: sizes of the domains that join or grow.
        draws: for each domain that grows, the samples drawn from it before ``from_step``; empty until this is known.
        delay: how many steps ahead of training a schedule that learns is known; 0 for one that is known for good.
    """

    from_step: int
    schedule: Schedule
    first: Mixture
    added: dict[str, int] = field(default_factory=dict)
    draws: dict[str, int] = field(default_factory=dict)
    delay: int = field(init=False)

    def __post_init__(self) -> None:
        self.delay = self.schedule.delay if isinstance(self.schedule, AdaptiveSchedule) else 0

    @property
    def sizes(self) -> dict[str, int]:
        """Samples of each domain, in order."""
        return dict(zip(self.first.domains, self.first.sizes.tolist(), strict=True))


class Journal:
    """Which schedule holds at which step."""

    def __init__(self, schedule: Schedule) -> None:
        self.changes = [Change(0, _checked(schedule), schedule.mixture(0))]

    @property
    def newest(self) -> Change:
        """The last change."""
        return self.changes[-1]

    def at(self, step: int) -> Change:
        """The change in force at a step."""
        return next(change for change in reversed(self.changes) if change.from_step <= step)

    def end(self, step: int) -> int:
        """The first step after ``step`` that has another schedule."""
        return next((change.from_step for change in self.changes if change.from_step > step), NEVER)

    def next_change(self, schedule: Schedule, from_step: int) -> Change:
        """A change that may be appended to the others.

        Raises:
            ValueError: if it does not come after them, or the schedule drops, moves or shrinks a domain.
        """
        last = self.newest.from_step
        if from_step <= last:
            raise ValueError(f"from_step = {from_step}; expected a step after {last}, where the newest schedule begins")
        change = Change(from_step, _checked(schedule), schedule.mixture(from_step))
        old, new = self.newest.sizes, change.sizes
        if list(new)[: len(old)] != list(old):
            raise ValueError(
                f"the schedule has domains {list(new)}; expected {list(old)}, in this order, and new ones after them: "
                "to stop drawing a domain, give it a sampling probability of 0"
            )
        if shrunk := [domain for domain, size in old.items() if new[domain] < size]:
            raise ValueError(
                f"domain {shrunk[0]!r} has {new[shrunk[0]]} samples in the schedule and {old[shrunk[0]]} so far; "
                "expected no fewer: a domain can grow, but samples that may have been drawn cannot go"
            )
        change.added = {domain: size for domain, size in new.items() if size != old.get(domain)}
        return change

    def grown_at(self, step: int) -> list[str]:
        """Domains that grow at ``step`` and whose draws before it are not known yet."""
        for before, change in pairwise(self.changes):
            if change.from_step == step and not change.draws:
                return [domain for domain in change.added if domain in before.first.domains]
        return []

    def extents(self) -> dict[str, list[tuple[int, int]]]:
        """Of each domain that grows, (first draw, size) pairs: a larger size holds from the next epoch on."""
        extents: dict[str, list[tuple[int, int]]] = {}
        for before, change in pairwise(self.changes):
            old, new = before.sizes, change.sizes
            for domain in change.added.keys() & old.keys():
                known = extents.setdefault(domain, [(0, old[domain])])
                if domain not in change.draws:
                    continue
                draws = change.draws[domain]
                begin, size = [extent for extent in known if extent[0] <= draws][-1]
                next_epoch = begin - (begin - draws) // size * size
                extents[domain] = [e for e in known if e[0] < next_epoch] + [(next_epoch, new[domain])]
        return extents

    def state(self) -> list[dict[str, Any]]:
        """The changes after the first schedule, as JSON values."""
        return [
            {"from_step": c.from_step, "schedule": c.schedule.describe(), "sizes": c.added, "draws": dict(c.draws)}
            for c in self.changes[1:]
        ]

    def draws_of(self, state: Sequence[Mapping[str, Any]], step: int) -> list[dict[str, int]]:
        """The draws that a saved journal knows of; `changes` may then take them over.

        Raises:
            ValueError: if the saved changes are not those of this job.
        """
        draws: list[dict[str, int]] = []
        for theirs, mine in zip_longest(state, self.state()):
            if mine is None:
                raise ValueError(
                    f"the state has a schedule {theirs['schedule']} from step {theirs['from_step']} on, this job has "
                    "none: call set_schedule() for it before load_state_dict()"
                )
            if theirs is None:
                raise ValueError(
                    f"this job has a schedule {mine['schedule']} from step {mine['from_step']} on, the state has none: "
                    "call set_schedule() for it after load_state_dict()"
                )
            for name in ("from_step", "schedule", "sizes"):
                if theirs[name] != mine[name]:
                    raise ValueError(
                        f"state is of another job: {name} of change {len(draws) + 1} is {theirs[name]!r} in the state "
                        f"and {mine[name]!r} here"
                    )
            before = self.changes[len(draws)].sizes
            grown = {domain for domain in mine["sizes"] if domain in before}
            known = {domain: int(n) for domain, n in theirs["draws"].items()}
            if (known or mine["from_step"] <= step) and (set(known) != grown or any(n < 0 for n in known.values())):
                raise ValueError(f"state is damaged: change {len(draws) + 1} knows the draws of {sorted(known)} alone")
            draws.append(known)
        return draws


def _checked(schedule: Schedule) -> Schedule:
    if not isinstance(schedule, Schedule):
        raise TypeError(f"schedule is a {type(schedule).__name__}; expected one made by pycooldown.schedules")
    return schedule


def difference(name: str, theirs: Any, mine: Any) -> str:
    """What a saved value of this name has other than this job's."""
    if name == "sizes" and isinstance(theirs, Mapping):
        if only := set(theirs) ^ set(mine):
            where = "the state" if next(iter(sorted(only))) in theirs else "this job"
            return f"domain {min(only)!r} is only in {where}"
        if changed := [d for d in mine if theirs[d] != mine[d]]:
            return f"domain {changed[0]!r} has {theirs[changed[0]]} samples in the state and {mine[changed[0]]} here"
        return "the domains are in another order"
    return f"{name} is {theirs!r} in the state and {mine!r} here"
