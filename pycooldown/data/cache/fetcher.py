"""The fetcher of a node: a process that fetches blocks ahead of their use and evicts them by their next use.

It is a program of its own, started by `KnownFutureCache`: nothing is forked, and no process that reads has a client of
an object store. What it does is the plan's (`pycooldown.data.cache.plan`); what it adds is waiting.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import pickle
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pycooldown._files import lock_folder, write_atomically
from pycooldown.data.cache.job import CacheJob
from pycooldown.data.cache.messages import receive_async, send_async
from pycooldown.data.cache.replay import Replay
from pycooldown.data.cache.supply import Supply

__all__ = ["main"]

_ALONE = 60.0  # seconds that it waits for its first reader


@dataclass
class _Member:
    """A rank, or the rank of another job with the same plan: what it has consumed, and the step it has come to."""

    consumed: int
    step: int


@dataclass
class Fetcher:
    """Serves the blocks of a job to the processes of its node.

    Args:
        job: What is fetched.
    """

    job: CacheJob
    start: int
    members: dict[asyncio.StreamWriter, _Member] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.supply = Supply(self.job)
        self.replay = Replay(self.job, self.supply, self.start)
        self.joined = self.leap = 0
        self.done = asyncio.Event()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer one process until it goes."""
        try:
            while (received := await receive_async(reader)) is not None:
                message, _ = received
                with contextlib.suppress(ConnectionError):
                    await getattr(self, f"_on_{message.pop('kind')}")(writer, **message)
        finally:
            if self.members.pop(writer, None) is not None:
                self._note_consumed()
                self.end_if_alone()
            writer.close()

    async def _on_join(self, writer: asyncio.StreamWriter, identity: dict[str, Any], start: int) -> None:
        if self.done.is_set():  # the others have gone: a new fetcher serves this rank
            writer.close()
            return
        mine = self.job.identity()
        if differing := [name for name in {**mine, **identity} if mine.get(name) != identity.get(name)]:
            await send_async(writer, {"differing": differing})
            return
        self.joined += 1
        self.members[writer] = _Member(start, start - 1)
        self._note_consumed()
        await self.replay.begun.wait()
        await send_async(writer, {"warnings": self.replay.warnings})

    async def _on_step(
        self, writer: asyncio.StreamWriter, step: int, epoch: int, leap: int, learned: dict[str, Any] | None = None
    ) -> None:
        """A rank has come to a step; `leap` counts how often it did not go on from the step before."""
        if learned is not None:
            self.job.sampler.schedule.load_state_dict(learned)  # type: ignore[attr-defined]
        if leap > self.leap:  # the first rank that leaps; the others follow
            self.leap = leap
            self.job.sampler.set_epoch(epoch)
            self.replay.restart(step)
            for member in self.members.values():
                member.consumed, member.step = step, step - 1
        if leap == self.leap:
            member = self.members[writer]
            member.step = step
            member.consumed = max(member.consumed, step - self.job.prefetched)
        self._note_consumed()

    async def _on_want(self, writer: asyncio.StreamWriter, numbers: list[int], damaged: list[int]) -> None:
        try:
            for number in damaged:
                self.supply.drop(number)
                self.supply.fetch(number)
            contents = await asyncio.gather(*(self.replay.want(number) for number in numbers))
        except OSError as error:
            url = error.filename or self.job.folder
            await send_async(writer, {"errno": error.errno, "strerror": error.strerror, "filename": str(url)})
            return
        sizes = [None if content is None else len(content) for content in contents]
        await send_async(writer, {"sizes": sizes}, b"".join(content for content in contents if content is not None))

    async def _on_statistics(self, writer: asyncio.StreamWriter) -> None:
        await send_async(writer, self.supply.statistics())

    def end_if_alone(self) -> None:
        """End if no rank is there."""
        if not self.members:
            self.done.set()

    def _note_consumed(self) -> None:
        """Let the plan go on behind the slowest rank; until all ranks are there, none is consumed."""
        if self.members:
            missing = self.joined < self.job.ranks[1] - self.job.ranks[0]
            consumed = self.start if missing else min(member.consumed for member in self.members.values())
            self.replay.consume(consumed, max(member.step for member in self.members.values()))


async def _run(job: CacheJob, start: int) -> None:
    with tempfile.TemporaryDirectory(prefix="pycooldown-") as folder:
        path = os.path.join(folder, "fetcher")
        fetcher = Fetcher(job, start)
        server = await asyncio.start_unix_server(fetcher.serve, path)
        replaying = asyncio.create_task(fetcher.replay.run())
        async with server:
            write_atomically(Path(job.folder) / "fetcher.json", json.dumps({"socket": path}), durable=False)
            print("ready", flush=True)
            sys.stdout.close()  # who started it reads no further
            waiting = asyncio.create_task(fetcher.done.wait())
            alone = asyncio.get_running_loop().call_later(_ALONE, fetcher.end_if_alone)
            done, _ = await asyncio.wait({waiting, replaying}, return_when=asyncio.FIRST_COMPLETED)
            alone.cancel()
            replaying.cancel()
            for task in done - {waiting}:
                task.result()  # an error ends the fetcher
        with contextlib.suppress(OSError):
            os.unlink(Path(job.folder) / "fetcher.json")


def main() -> None:
    """Read a pickled job and its first step from standard input, and serve it until its last rank has gone."""
    job, start = pickle.load(sys.stdin.buffer)  # from the process that started this one
    try:
        with lock_folder(job.folder, wait=False):
            asyncio.run(_run(job, start))
    except BlockingIOError:
        print("locked", flush=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
