"""A fetcher's blocks and how it gets them: with requests to stores, into files, or past a full disk."""

from __future__ import annotations

import asyncio
import errno
import sys
from collections import OrderedDict
from typing import Any

from pycooldown.data.cache.block_files import BlockFiles
from pycooldown.data.cache.job import CacheJob
from pycooldown.data.cache.states import BlockStates
from pycooldown.data.range_requests import read_range
from pycooldown.data.stores import StoreError

__all__ = ["Supply"]

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class Supply:
    """Blocks in files, and blocks that are being fetched.

    Args:
        job: The job to fetch for.
        states: Path of the `BlockStates` that readers use.
    """

    def __init__(self, job: CacheJob, states: str) -> None:
        self._job = job
        self._states = BlockStates(states, len(job.blocks))
        self._files = BlockFiles(job.folder, job.dataset.objects, job.blocks)
        numbers, self.deleted = self._files.take_over()
        self.held = set(numbers)
        for number in numbers:
            self._states.appear(number)
        self._coming: dict[int, asyncio.Task[memoryview | None]] = {}
        # Blocks for which the disk had no room, the newest last, up to the depth.
        self._past_disk: OrderedDict[int, memoryview] = OrderedDict()
        self._past_bytes = 0
        self._slots = asyncio.Semaphore(job.concurrency)
        self._counts = dict.fromkeys(("requests", "fetched_bytes", "retries", "unplanned", "streamed"), 0)

    def has(self, number: int) -> bool:
        """Return whether a block is held or being fetched."""
        return number in self.held or number in self._coming or number in self._past_disk

    def fetch(self, number: int) -> asyncio.Task[memoryview | None]:
        """Start to fetch a block, unless it is being fetched already."""
        if (task := self._coming.get(number)) is None:
            task = self._coming[number] = asyncio.create_task(self._fetch(number))
            task.add_done_callback(lambda _: self._coming.pop(number, None))
            task.add_done_callback(lambda done: done.cancelled() or done.exception())  # the reader gets the error
        return task

    async def get(self, number: int) -> memoryview | None:
        """Return a block that has no file, or None if it has one.

        A block that is neither held nor being fetched is read from the store and not kept.

        Raises:
            StoreError: If it cannot be read.
        """
        if number in self.held:
            return None
        if number in self._past_disk:
            return self._past_disk[number]
        if number in self._coming:
            return await asyncio.shield(self.fetch(number))
        if not self._counts["unplanned"]:
            _say("blocks are read that the plan does not contain now; see 'Unplanned reads' in the documentation")
        self._counts["unplanned"] += 1
        async with self._slots:
            return await self._download(number)

    async def evict(self, number: int) -> None:
        """Delete a block, after waiting for it if it is being fetched."""
        if (task := self._coming.get(number)) is not None:
            await asyncio.wait([task])
        self.drop(number)

    def drop(self, number: int) -> None:
        """Delete a block's file."""
        self.held.discard(number)
        if (content := self._past_disk.pop(number, None)) is not None:
            self._past_bytes -= len(content)
        self._states.vanish(number)
        self._files.delete(number)

    def report_from(self, step: int, leap: int) -> None:
        """Let ranks that have jumped `leap` times report only the steps from this one on."""
        self._states.report_from(step, leap)

    def statistics(self) -> dict[str, int]:
        """Return counts since the start; see `CacheStatistics`."""
        return {**self._counts, "held": len(self.held)}

    async def _fetch(self, number: int) -> memoryview | None:
        async with self._slots:
            content = await self._download(number)
        try:
            await asyncio.to_thread(self._store, number, content)
        except OSError as error:
            if error.errno not in _NO_ROOM:
                raise
            self._keep_past_disk(number, content)
            return content
        self.held.add(number)
        self._states.appear(number)
        return None

    def _store(self, number: int, content: memoryview) -> None:
        self._files.note([number])
        self._files.write(number, content)

    def _keep_past_disk(self, number: int, content: memoryview) -> None:
        if not self._counts["streamed"]:
            _say(f"{self._job.folder} is full before the limit is reached; blocks without room are not stored")
        self._counts["streamed"] += 1
        self._past_disk[number] = content
        self._past_bytes += len(content)
        while self._past_bytes > self._job.depth and len(self._past_disk) > 1:
            _, oldest = self._past_disk.popitem(last=False)
            self._past_bytes -= len(oldest)

    async def _download(self, number: int) -> memoryview:
        item, start, end = self._job.blocks.span(number)
        options: dict[str, Any] = {"timeout": self._job.timeout, "patience": self._job.patience}
        content = await read_range(self._job.dataset.objects[item], start, end, on_retry=self._note_retry, **options)
        self._counts["requests"] += 1
        self._counts["fetched_bytes"] += len(content)
        return content

    def _note_retry(self, error: StoreError) -> None:
        if not self._counts["retries"]:
            _say(f"{error.filename}: {error.strerror}; trying again")
        self._counts["retries"] += 1


def _say(text: str) -> None:
    print(f"pycooldown's cache: {text}", file=sys.stderr, flush=True)
