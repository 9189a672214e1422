"""The plan of a cache in real time: when each fetch and each eviction happens. What happens is the plan's alone."""

from __future__ import annotations

import asyncio
from collections import deque

import numpy as np

from pycooldown.data.cache.job import NEVER, CacheJob
from pycooldown.data.cache.plan import Actions
from pycooldown.data.cache.supply import Supply

__all__ = ["Replay"]


class Replay:
    """Fetches and evicts as planned, behind the consumption of the slowest rank.

    Args:
        job: Whose plan it is.
        supply: Where blocks come from.
        start: The first step.
    """

    def __init__(self, job: CacheJob, supply: Supply, start: int) -> None:
        self._job, self._supply = job, supply
        self.begun = asyncio.Event()  # when the first steps are planned
        self.warnings: list[str] = []
        self._moved = asyncio.Event()  # when something that the plan waits for has happened
        self._went_on = asyncio.Event()  # when the plan has gone on
        self._restarts = 0
        self.restart(start)

    def restart(self, step: int) -> None:
        """Plan anew from a step on, with the blocks that are there."""
        self._start = self._consumed = self._until = step
        self._front = step - 1
        self._restarts += 1
        self._places: dict[int, deque[tuple[int, int]]] = {}  # by block, the places and steps of its fetches to come
        self._place = 0  # of the next fetch
        self._wanted = -1  # fetches up to this place are made at once
        self._moved.set()

    def consume(self, consumed: int, front: int) -> None:
        """Note that all ranks have consumed the steps before ``consumed``, and that one has come to step ``front``."""
        self._consumed, self._front = max(self._consumed, consumed), max(self._front, front)
        self._moved.set()

    async def want(self, number: int) -> memoryview | None:
        """Return a block that has no file, or nothing when it has one.

        A block that is planned for now is fetched at once, with all that the plan has before it, whatever has been
        consumed: who asks for it cannot wait for others.
        """
        while not self._supply.has(number):
            place, step = (self._places.get(number) or [(-1, NEVER)])[0]
            # A reader may be faster than the news of the step that it reads.
            if step <= self._front + self._job.prefetched + 1:
                self._wanted = max(self._wanted, place)
                self._moved.set()
            elif not (self._until <= self._front and self._until < self._job.stop):
                break  # all that is read now is planned, and this is not part of it
            self._went_on.clear()
            await self._went_on.wait()
        return await self._supply.get(number)

    async def run(self) -> None:
        """Follow the plan for ever, through all restarts."""
        while True:
            restarts = self._restarts
            actions = self._job.actions(self._start, np.array(sorted(self._supply.held), np.int64))
            while restarts == self._restarts and self._until < self._job.stop:
                # What a schedule that learns is given meanwhile must not meet it in another thread.
                part = next(actions) if self._job.learns else await asyncio.to_thread(next, actions)
                if restarts == self._restarts:
                    await (self._wait() if part is None else self._follow(part, restarts))
                self.begun.set()
            self.begun.set()
            while restarts == self._restarts:
                await self._wait()

    async def _wait(self) -> None:
        self.begun.set()
        self._moved.clear()
        await self._moved.wait()

    async def _follow(self, part: Actions, restarts: int) -> None:
        first = self._place
        for place, (number, step) in enumerate(zip(part.fetches.tolist(), part.steps.tolist()), first):
            self._places.setdefault(number, deque()).append((place, step))
        self._until = part.planned
        self._warn(part)
        self.begun.set()
        self._went_on.set()
        evicted = 0
        ends, after, evictions = part.evict_ends.tolist(), part.after.tolist(), part.evictions.tolist()
        for i, number in enumerate(part.fetches.tolist()):
            while self._consumed < after[i] and self._wanted < first + i:
                await self._wait()
                if restarts != self._restarts:
                    return
            for victim in evictions[evicted : ends[i]]:
                await self._supply.evict(victim)
            evicted = ends[i]
            if restarts != self._restarts:
                return
            if not self._supply.has(number):
                self._supply.fetch(number)
            places = self._places[number]
            places.popleft()
            if not places:
                del self._places[number]
            self._place = first + i + 1
            self._went_on.set()

    def _warn(self, part: Actions) -> None:
        if self.begun.is_set():
            return
        if part.steps_over_limit:
            self.warnings.append(
                f"limit = {self._job.limit} bytes is less than the blocks of one step, at {part.steps_over_limit} "
                f"steps before step {part.planned}: the cache grows beyond it there; give a greater limit or smaller "
                "blocks"
            )
        elif part.steps_shrunk:
            self.warnings.append(
                f"limit = {self._job.limit} bytes is less than the open window of depth = {self._job.depth} bytes and "
                f"the blocks of a step, at {part.steps_shrunk} steps before step {part.planned}: less is fetched "
                "ahead; give a greater limit, smaller blocks or shuffle='blocks'"
            )
