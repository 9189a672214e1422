"""The values that decide the order of samples, and their changes in a running job: schedules and batch sizes."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

from pycooldown.mixture import Mixture
from pycooldown.sampling.block_shuffle import BlockShuffle
from pycooldown.schedules import AdaptiveSchedule, ContinuousSchedule, Schedule

NEVER = 2**64 - 1  # a step that is not reached


@dataclass
class ScheduleChange:
    """A schedule that decides the steps from ``from_step`` on.

    Attributes:
        from_step: Its first step.
        schedule: The schedule.
        first: The mixture of ``from_step``, with the schedule's domains and their sizes.
        new_sizes: Sizes of the domains that join or grow.
        draws: For each domain that grows, the samples drawn from it before ``from_step``; empty until this is known.
        delay: How many steps ahead of training a learning schedule is known; 0 if all mixtures are known.
        continuous: The schedule, if it computes the mixtures of many steps at once.
    """

    from_step: int
    schedule: Schedule
    first: Mixture
    new_sizes: dict[str, int] = field(default_factory=dict)
    draws: dict[str, int] = field(default_factory=dict)
    delay: int = field(init=False)
    continuous: ContinuousSchedule | None = field(init=False)

    def __post_init__(self) -> None:
        # Stored, because checking whether an object follows a protocol takes longer than planning a batch.
        self.delay = self.schedule.delay if isinstance(self.schedule, AdaptiveSchedule) else 0
        self.continuous = self.schedule if isinstance(self.schedule, ContinuousSchedule) else None

    @property
    def num_samples(self) -> int:
        """Samples of all domains."""
        return int(self.first.sizes.sum())

    @property
    def sizes(self) -> dict[str, int]:
        """Samples of each domain, in order."""
        return dict(zip(self.first.domains, self.first.sizes.tolist(), strict=True))


class ScheduleHistory:
    """The schedule of a job's start, and the changes since."""

    def __init__(self, schedule: Schedule) -> None:
        self.changes = [ScheduleChange(0, _checked(schedule), schedule.mixture(0))]

    def copy(self) -> ScheduleHistory:
        """Return a copy that later changes of this history do not affect."""
        other = object.__new__(ScheduleHistory)
        other.changes = [
            ScheduleChange(c.from_step, c.schedule, c.first, dict(c.new_sizes), dict(c.draws)) for c in self.changes
        ]
        return other

    @property
    def newest(self) -> ScheduleChange:
        """The last change."""
        return self.changes[-1]

    def at(self, step: int) -> ScheduleChange:
        """Return the change in force at a step."""
        return next(change for change in reversed(self.changes) if change.from_step <= step)

    def end(self, step: int) -> int:
        """Return the first step after ``step`` that another schedule decides."""
        return next((change.from_step for change in self.changes if change.from_step > step), NEVER)

    def in_force_from(self, step: int) -> list[ScheduleChange]:
        """Return the changes that decide a step or later ones."""
        return [change for change in self.changes if self.end(change.from_step) > step]

    def next_change(self, schedule: Schedule, from_step: int, *, once: bool = False) -> ScheduleChange:
        """Return a change that may be appended to the others.

        Args:
            schedule: The new schedule.
            from_step: Its first step.
            once: Whether each sample is drawn once, so that no domain can grow.

        Raises:
            ValueError: If it does not come after them, or the schedule drops, moves or shrinks a domain.
        """
        last = self.newest.from_step
        if from_step <= last:
            raise ValueError(f"from_step = {from_step}; expected a step after {last}, where the newest schedule begins")
        change = ScheduleChange(from_step, _checked(schedule), schedule.mixture(from_step))
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
        change.new_sizes = {domain: size for domain, size in new.items() if size != old.get(domain)}
        if once and (grown := [domain for domain in change.new_sizes if domain in old]):
            raise ValueError(
                f"domain {grown[0]!r} would grow, but a pass that draws each sample once keeps to the order of its "
                "samples; put the new ones into another domain"
            )
        return change

    def growing_at(self, step: int) -> list[str]:
        """Return the domains that grow at ``step`` and whose draws before it are not known yet."""
        for before, change in pairwise(self.changes):
            if change.from_step == step and not change.draws:
                return [domain for domain in change.new_sizes if domain in before.first.domains]
        return []

    def epoch_sizes(self) -> dict[str, list[tuple[int, int]]]:
        """Return (first draw, size) pairs of each domain that grows: a larger size holds from the next epoch on."""
        sizes: dict[str, list[tuple[int, int]]] = {}
        for before, change in pairwise(self.changes):
            old, new = before.sizes, change.sizes
            for domain in change.new_sizes.keys() & old.keys():
                known = sizes.setdefault(domain, [(0, old[domain])])
                if domain not in change.draws:
                    continue
                draws = change.draws[domain]
                begin, size = [pair for pair in known if pair[0] <= draws][-1]
                next_epoch = begin - (begin - draws) // size * size
                sizes[domain] = [pair for pair in known if pair[0] < next_epoch] + [(next_epoch, new[domain])]
        return sizes

    def state(self) -> list[dict[str, Any]]:
        """Return the changes after the first schedule, as JSON values."""
        return [
            {"from_step": c.from_step, "schedule": c.schedule.describe(), "sizes": c.new_sizes, "draws": dict(c.draws)}
            for c in self.changes[1:]
        ]


class BatchSizes:
    """The batch size of a job's start, and the changes since.

    Args:
        pairs: (first step, batch size) pairs in order, the first one from step 0.
        total: Samples of a pass that draws each sample once, whose last batch has the remainder. None for other passes.

    Attributes:
        pairs: As given.
        num_steps: Steps of a pass of ``total`` samples, or None.
        all_pairs: The pairs, and the last batch of such a pass.
    """

    def __init__(self, pairs: Sequence[tuple[int, int]], total: int | None = None) -> None:
        self.become(pairs, total)

    def become(self, pairs: Sequence[tuple[int, int]], total: int | None) -> None:
        """Replace the pairs and the total."""
        self.pairs = list(pairs)
        self.total = total
        self.all_pairs = self.pairs
        self.num_steps: int | None = None
        if total is not None:
            begin, size = next(pair for pair in reversed(self.pairs) if _samples_before(self.pairs, pair[0]) < total)
            full, rest = divmod(total - _samples_before(self.pairs, begin), size)
            self.num_steps = begin + full + (rest > 0)
            self.all_pairs = [pair for pair in self.pairs if pair[0] < begin + full]
            if rest:
                self.all_pairs.append((begin + full, rest))

    def of_pass(self, num_samples: int) -> BatchSizes:
        """Return the same sizes for a pass of ``num_samples`` samples."""
        return BatchSizes(self.pairs, None if self.total is None else num_samples)

    @property
    def newest(self) -> int:
        """The newest batch size."""
        return self.pairs[-1][1]

    def at(self, step: int) -> int:
        """Return the batch size of a step."""
        return next(size for first_step, size in reversed(self.all_pairs) if first_step <= step)

    def part(self, step: int, rank: int, world_size: int) -> tuple[int, int]:
        """Return the slots [begin, end) of a step's batch that belong to a rank."""
        size = self.at(step)
        return size * rank // world_size, size * (rank + 1) // world_size

    def end(self, step: int) -> int:
        """Return the first step after ``step`` from which batches have another size."""
        return next((first_step for first_step, _ in self.all_pairs if first_step > step), NEVER)

    def samples_before(self, step: int) -> int:
        """Return the number of samples in the batches before ``step``."""
        return _samples_before(self.all_pairs, step)


def _samples_before(pairs: Sequence[tuple[int, int]], step: int) -> int:
    total = 0
    for first_step, size in reversed(pairs):
        if step > first_step:
            total += (step - first_step) * size
            step = first_step
    return total


@dataclass(frozen=True)
class Job:
    """Everything that decides the order of samples.

    Attributes:
        history: The schedules.
        batch_sizes: The sizes of batches.
        seed: The seed of epoch 0.
        allocation: The name of the allocation.
        shuffle: Whether the samples of a domain are shuffled, or the options of the shuffle by blocks.
        homogeneous: Whether each batch is of one domain.
    """

    history: ScheduleHistory
    batch_sizes: BatchSizes
    seed: int
    allocation: str
    shuffle: bool | BlockShuffle
    homogeneous: bool = False

    @property
    def once(self) -> bool:
        """Whether a pass draws each sample once."""
        return self.batch_sizes.total is not None

    def identity(self) -> dict[str, Any]:
        """Return the JSON values that a state must share with this job. Changes are compared separately."""
        first = self.history.changes[0]
        identity = {
            "sizes": first.sizes,
            "schedule": first.schedule.describe(),
            "batch_size": self.batch_sizes.pairs[0][1],
            "seed": self.seed,
            "allocation": self.allocation,
            "shuffle": self.shuffle.describe() if isinstance(self.shuffle, BlockShuffle) else self.shuffle,
        }
        return identity | ({"homogeneous": True} if self.homogeneous else {})

    def next_change(self, schedule: Schedule, from_step: int) -> ScheduleChange:
        """Return a change that may be appended to the history; see `ScheduleHistory.next_change`."""
        change = self.history.next_change(schedule, from_step, once=self.once)
        if isinstance(self.shuffle, BlockShuffle):
            self.shuffle.check(change.first)
        return change

    def copy(self) -> Job:
        """Return a copy that later changes of this job do not affect."""
        return replace(self, history=self.history.copy(), batch_sizes=copy(self.batch_sizes))


def _checked(schedule: Schedule) -> Schedule:
    if not isinstance(schedule, Schedule):
        raise TypeError(f"schedule is a {type(schedule).__name__}; expected one made by pycooldown.schedules")
    return schedule
