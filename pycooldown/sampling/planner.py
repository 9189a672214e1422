"""Plans the batch of any step: stands at one step, and seeks its way to others."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from pycooldown import _core
from pycooldown.sampling.batches import NEVER, BatchPlan, Integers, Stage
from pycooldown.sampling.changes import Journal

# How many past positions are remembered, so that a state a little behind the newest batch costs no replay from step 0.
_MAX_SNAPSHOTS = 16
# How many changes of the mixture quota allocation looks ahead to see deadlines.
_MAX_STAGES = 32
Position = tuple[Integers, Integers]  # draws, and credits in 2^-32 samples


class Planner:
    """The batches of a journal's schedules.

    Args:
        journal: which schedule holds at which step; call `follow_journal` when it has changed.
        batch_size: samples in a batch.
        seed: integer in [0, 2^64).
        allocation: a name of `_core.Allocation`.
        shuffle: whether the samples of a domain are shuffled.
    """

    def __init__(self, journal: Journal, *, batch_size: int, seed: int, allocation: str, shuffle: bool) -> None:
        self._journal = journal
        self._options: dict[str, Any] = {"batch_size": batch_size, "seed": seed, "shuffle": shuffle}
        self._allocation = allocation
        self._snapshots: dict[int, Position] = {0: (np.zeros(0, np.int64), np.zeros(0, np.int64))}
        self.follow_journal()

    def follow_journal(self) -> None:
        """Takes over the newest domains and sizes; then stands at step 0."""
        newest = self._journal.newest
        self._domains = newest.first.domains
        self._core = _core.BatchPlanner(newest.first.sizes, _core.Allocation[self._allocation], **self._options)
        self._set_extents()
        self._step = 0
        self._stages: list[Stage] = []
        for step, position in self._snapshots.items():  # domains that have joined have not been drawn before
            counts, credits = (np.pad(values, (0, len(self._domains) - len(values))) for values in position)
            self._snapshots[step] = counts, credits

    def plan(self, step: int, begin: int, end: int) -> BatchPlan:
        """Slots [begin, end) of the batch of ``step``; far from the last one, the steps between are counted first."""
        self._seek(step)
        if self._journal.newest.delay:  # the schedule forgets the mixtures that a replay would need
            self.keep(step, self._position)
        stages = self._stages_from(step)
        plan = BatchPlan(*self._core.plan([stage.pair for stage in stages], step, begin, end), stages[0].mixture)
        self._arrive(step + 1)
        return plan

    def before(self, step: int) -> Position:
        """How often each domain is drawn before ``step``, and its credit."""
        here = self._step
        self.keep(here, self._position)
        self._seek(step)
        position = self._position
        self._seek(here)
        return position

    def keep(self, step: int, position: Position) -> None:
        """Remembers the position before a step, so that going back there costs no replay."""
        self._snapshots[step] = position
        kept = _MAX_SNAPSHOTS + self._journal.newest.delay
        for oldest in sorted(self._snapshots)[1:-kept]:
            del self._snapshots[oldest]

    def forget_after(self, step: int) -> None:
        """Drops what is remembered of later steps, as they will be planned anew."""
        self.keep(self._step, self._position)
        self._snapshots = {known: position for known, position in self._snapshots.items() if known <= step}

    def go_on(self, step: int, position: Position) -> None:
        """Goes to a step whose position is known from elsewhere."""
        self._snapshots = {0: self._snapshots[0], step: position}
        self.follow_journal()
        self._seek(step)

    @property
    def _position(self) -> Position:
        return self._core.counts, self._core.credits

    def _stages_from(self, step: int) -> list[Stage]:
        """The stage of ``step`` and, for quota allocation, those that follow as far as they are decided for good."""
        now = self._journal.at(step)
        stages = [stage for stage in self._stages if stage.end > step and stage.schedule is now.schedule]
        if not stages or stages[0].start > step:
            stages = [Stage.at(now.schedule, step, now.first)]
        # Changes by set_schedule() are not looked ahead to: they were not known when the steps before were planned.
        look_ahead = self._allocation == "quota" and now.delay == 0
        while look_ahead and len(stages) < _MAX_STAGES and stages[-1].end != NEVER:
            stages.append(Stage.at(now.schedule, stages[-1].end, now.first))
        self._stages = stages
        return stages

    def _seek(self, step: int) -> None:
        """Moves the planner to the start of ``step``, from the nearest position known before it."""
        if step < 0:
            raise ValueError(f"step = {step}; expected a step >= 0")
        start = max(s for s in self._snapshots if s <= step)
        if not start <= self._step <= step:
            self._core.seek(*self._snapshots[start])
            self._arrive(start)
        while self._step < step:
            stages = self._stages_from(self._step)
            last = min(step, stages[0].end, self._journal.end(self._step))
            self._core.skip([stage.pair for stage in stages], self._step, last)
            self._arrive(last)

    def _arrive(self, step: int) -> None:
        """Notes where the planner stands; a domain that grows here does so from its next epoch on."""
        self._step = step
        if grown := self._journal.grown_at(step):
            draws = dict(zip(self._domains, self._core.counts.tolist(), strict=True))
            self._journal.at(step).draws = {domain: draws[domain] for domain in grown}
            self._set_extents()

    def _set_extents(self) -> None:
        for domain, extents in self._journal.extents().items():
            self._core.set_extents(self._domains.index(domain), extents)

    def __getstate__(self) -> dict[str, Any]:
        self.keep(self._step, self._position)
        return {name: value for name, value in self.__dict__.items() if name not in ("_core", "_stages", "_step")}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        self.__dict__.update(state)
        self.follow_journal()
