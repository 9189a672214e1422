"""Run a cache's plan in real time: decide when each fetch and eviction happens. The plan decides what happens."""

from __future__ import annotations

import asyncio
from collections import deque

import numpy as np

from pycooldown.data.cache.job import NEVER, CacheJob
from pycooldown.data.cache.plan import Actions
from pycooldown.data.cache.supply import Supply

__all__ = ["GRACE", "Replay"]

# Seconds that a read waits for other ranks while the plan waits for them too. The plan waits because it must not evict
# what they may still read; but they may have stopped.
GRACE = 30.0
_NEWS = 0.005  # seconds in which asyncio handles messages sent before, such as a new step


class Replay:
    """The planned fetches and evictions, made while ranks request batches. A step's actions wait for the slowest rank.

    Args:
        job: The job whose plan is run.
        supply: The source of blocks.
        start: The first step.
    """

    def __init__(self, job: CacheJob, supply: Supply, start: int) -> None:
        self._job, self._supply = job, supply
        self.begun = asyncio.Event()  # when the first steps are planned
        self.warnings: list[str] = []
        self.is_leaving = False  # some ranks have jumped to another step; a restart there follows soon
        self._moved = asyncio.Event()  # set when something happens that the plan waits for
        self._went_on = asyncio.Event()  # set when the plan has advanced
        self._restarts = 0
        self.restart(start, 0)

    def restart(self, step: int, leap: int) -> None:
        """Plan again from a step on, with the blocks that are held, after so many jumps of ranks."""
        self._start = self.asked = self._until = step
        self._front = step - 1
        self._restarts += 1
        self._steps: dict[int, deque[int]] = {}  # by block, the steps of its future fetches
        self._leap = leap
        self._silent_until = 0  # ranks may have requested any step before this one without a report
        self._supply.report_from(0, leap)
        self.is_leaving = False
        self._moved.set()

    def ask(self, step: int, front: int) -> None:
        """Note that all ranks have requested the batch of a step, and that one has reached step ``front``."""
        self.asked, self._front = max(self.asked, step), max(self._front, front)
        self._moved.set()

    def reaches_others(self, step: int) -> bool:
        """Return whether a step is at least that of the slowest rank, as far as is known."""
        return step >= max(self.asked, self._silent_until)

    async def want(self, number: int) -> memoryview | None:
        """Return a block that has no file, or None as soon as it has one.

        Wait for a block that the plan fetches for a step being read now. Read other blocks directly from the store.
        """
        if not self._supply.has(number) and not self._is_planned(number):
            await asyncio.sleep(_NEWS)
        while not self._supply.has(number) and self._is_planned(number):
            self._went_on.clear()
            try:
                await asyncio.wait_for(self._went_on.wait(), GRACE)
            except asyncio.TimeoutError:
                break
        return await self._supply.get(number)

    def _is_planned(self, number: int) -> bool:
        """Return whether a block will be fetched for a step that some rank has reached."""
        steps = self._steps.get(number)
        is_known = self._until > self._front or self._until >= self._job.stop
        return self.is_leaving or not is_known or (steps[0] if steps else NEVER) <= self._front

    async def run(self) -> None:
        """Follow the plan forever, through all restarts."""
        for number in await asyncio.to_thread(self._job.surplus, self._start, self._supply.held):
            self._supply.drop(number)  # nobody reads yet
        while True:
            restarts = self._restarts
            actions = self._job.actions(self._start, np.array(sorted(self._supply.held), np.int64))
            while restarts == self._restarts and self._until < self._job.stop:
                begin = self._until
                # A learning schedule is updated in this thread, so another thread must not read it meanwhile.
                part = next(actions) if self._job.learns else await asyncio.to_thread(next, actions)
                if restarts != self._restarts:
                    break
                if part is None:
                    await self._wait()
                    continue
                await self._follow(part, restarts)
                # If nothing is fetched, plan nothing ahead either, except the next part.
                if not len(part.fetches) and not self._job.learns:
                    await self._rest(begin, restarts)
            self.begun.set()
            await self._rest(NEVER, restarts)

    async def _rest(self, step: int, restarts: int) -> None:
        """Wait until a rank reaches a step before which nothing is fetched or evicted. Meanwhile ranks are silent."""
        # Each report wakes this process, which takes a processor from a rank's loader. But those of a schedule that
        # learns have its state.
        silent_until = 0 if self._job.learns else step
        while restarts == self._restarts and self._front < step:
            self._silent_until = silent_until
            self._supply.report_from(silent_until, self._leap)
            await self._wait()
        self._supply.report_from(0, self._leap)

    async def _wait(self) -> None:
        self.begun.set()
        self._moved.clear()
        await self._moved.wait()

    async def _follow(self, part: Actions, restarts: int) -> None:
        fetches = list(zip(*(array.tolist() for array in (part.fetches, part.steps, part.after, part.evict_ends))))
        for number, step, _, _ in fetches:
            self._steps.setdefault(number, deque()).append(step)
        self._until = part.planned
        self._warn(part)
        self.begun.set()
        self._went_on.set()
        evicted, evictions = 0, part.evictions.tolist()
        for number, _, after, evict_end in fetches:
            while self.asked < after:
                await self._wait()
                if restarts != self._restarts:
                    return
            for victim in evictions[evicted:evict_end]:
                await self._supply.evict(victim)
            evicted = evict_end
            if restarts != self._restarts:
                return
            if not self._supply.has(number):
                self._supply.fetch(number)
            steps = self._steps[number]
            steps.popleft()
            if not steps:
                del self._steps[number]
            self._went_on.set()

    def _warn(self, part: Actions) -> None:
        if self.begun.is_set():
            return
        if part.steps_over_limit:
            self.warnings.append(
                f"limit = {self._job.limit} bytes is less than the blocks of the batches in use at one time "
                f"(prefetched = {self._job.prefetched}, plus one), at {part.steps_over_limit} steps before step "
                f"{part.planned}. The cache exceeds the limit there; set a larger limit, smaller blocks or a smaller "
                "prefetched"
            )
        elif part.steps_shrunk:
            self.warnings.append(
                f"limit = {self._job.limit} bytes is less than the open window of depth = {self._job.depth} bytes plus "
                f"the blocks of the batches in use, at {part.steps_shrunk} steps before step {part.planned}. Less is "
                "fetched ahead; set a larger limit, smaller blocks or shuffle='blocks'"
            )
