"""The fetcher of a node: a process that fetches blocks before their use and evicts them by their next use.

It is a separate program, started by `KnownFutureCache`: nothing is forked, and reading processes have no client of an
object store. `pycooldown.data.cache.plan` decides what it does; the fetcher only waits for the right moment.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import pickle
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from pycooldown._files import lock_folder, write_atomically
from pycooldown.data.cache.job import CacheJob
from pycooldown.data.cache.messages import receive_async, send_async
from pycooldown.data.cache.replay import GRACE, Replay
from pycooldown.data.cache.starting import states_path
from pycooldown.data.cache.supply import Supply

__all__ = ["main"]

_ALONE = 60.0  # seconds to wait for the first reader


@dataclass
class _Member:
    """A connected rank, possibly of another job with the same plan, and the step it has reached."""

    step: int
    leap: int = 0
    is_waited_for: bool = True


class _Leap(NamedTuple):
    """A jump of ranks to a step that is not their next one."""

    number: int
    step: int
    epoch: int
    timer: asyncio.TimerHandle


class Fetcher:
    """A server of a job's blocks for the processes of its node.

    Args:
        job: The job to fetch for.
        start: The first step.
        address: Path of the fetcher's socket.
    """

    def __init__(self, job: CacheJob, start: int, address: str) -> None:
        self.job, self.start = job, start
        self.supply = Supply(job, states_path(address))
        self.replay = Replay(job, self.supply, start)
        self.members: dict[asyncio.StreamWriter, _Member] = {}
        self.joined = self.leap = 0
        self.leaving: _Leap | None = None  # a jump that some ranks have made and the others will
        self.done = asyncio.Event()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer one process until it disconnects."""
        try:
            while (received := await receive_async(reader)) is not None:
                message, _ = received
                with contextlib.suppress(ConnectionError):
                    await getattr(self, f"_on_{message.pop('kind')}")(writer, **message)
        except asyncio.CancelledError:
            pass  # the fetcher ends first; asyncio would print an error
        finally:
            if self.members.pop(writer, None) is not None:
                self._note_steps()
                self.end_if_alone()
            writer.close()

    async def _on_join(self, writer: asyncio.StreamWriter, identity: dict[str, Any], start: int) -> None:
        if self.done.is_set():  # the others have disconnected, so a new fetcher serves this rank
            writer.close()
            return
        mine = self.job.identity()
        if differing := [name for name in {**mine, **identity} if mine.get(name) != identity.get(name)]:
            await send_async(writer, {"differing": differing})
            return
        self.joined += 1
        # Do not wait for a job that starts late, until it has caught up.
        self.members[writer] = _Member(start - 1, self.leap, self.replay.reaches_others(start) or self._are_missing())
        self._note_steps()
        await self.replay.begun.wait()
        await send_async(writer, {"warnings": self.replay.warnings})

    async def _on_step(
        self, writer: asyncio.StreamWriter, step: int, epoch: int, leap: int, learned: dict[str, Any] | None = None
    ) -> None:
        """Handle a rank's new step; `leap` counts how often it did not continue with the next step."""
        if learned is not None:
            self.job.sampler.schedule.load_state_dict(learned)  # type: ignore[attr-defined]
        member = self.members[writer]
        member.step, member.leap = step, leap
        member.is_waited_for |= leap == self.leap and self.replay.reaches_others(step)
        # The first rank that jumps; the others follow. A job that joined late must not take them along.
        if member in self._waited_for() and leap > (self.leaving.number if self.leaving else self.leap):
            if self.leaving is not None:
                self.leaving.timer.cancel()
            timer = asyncio.get_running_loop().call_later(GRACE, self._follow)
            self.leaving = _Leap(leap, step, epoch, timer)
            self.replay.is_leaving = True
        self._note_steps()

    def _follow(self) -> None:
        """Continue at the step that ranks have jumped to, without waiting for those that do not follow in time."""
        if self.leaving is None:
            return
        self.leap, step, epoch, timer = self.leaving
        timer.cancel()
        self.leaving = None
        self.job.sampler.set_epoch(epoch)
        self.replay.restart(step, self.leap)
        for member in self.members.values():
            if member.leap != self.leap:
                member.step, member.leap, member.is_waited_for = step - 1, self.leap, False
        self._note_steps()

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
        """End if no rank is connected."""
        if not self.members:
            self.done.set()

    def _are_missing(self) -> bool:
        return self.joined < self.job.ranks[1] - self.job.ranks[0]

    def _waited_for(self) -> list[_Member]:
        return [member for member in self.members.values() if member.is_waited_for] or [*self.members.values()]

    def _note_steps(self) -> None:
        """Advance the plan to the slowest rank; it starts when all ranks are connected."""
        if not self.members:
            return
        waited_for = self._waited_for()
        if self.leaving is not None and all(member.leap == self.leaving.number for member in waited_for):
            self._follow()
            return
        here = [member.step for member in waited_for if member.leap == self.leap]
        if here:
            self.replay.ask(self.start if self._are_missing() else min(here), max(here))


async def _run(job: CacheJob, start: int) -> None:
    with tempfile.TemporaryDirectory(prefix="pycooldown-") as folder:
        path = os.path.join(folder, "fetcher")
        fetcher = Fetcher(job, start, path)
        server = await asyncio.start_unix_server(fetcher.serve, path)
        replaying = asyncio.create_task(fetcher.replay.run())
        async with server:
            write_atomically(Path(job.folder) / "fetcher.json", json.dumps({"socket": path}), durable=False)
            print("ready", flush=True)
            sys.stdout.close()  # the process that started this one reads no further
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
    """Read a pickled job and its first step from standard input, and serve it until its last rank disconnects."""
    job, start = pickle.load(sys.stdin.buffer)  # from the process that started this one
    try:
        with lock_folder(job.folder, wait=False):
            asyncio.run(_run(job, start))
    except BlockingIOError:
        print("locked", flush=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
