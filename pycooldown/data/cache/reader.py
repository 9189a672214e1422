"""Reading blocks in any process of a job: from their files, or through the fetcher where there is none."""

from __future__ import annotations

import errno
import os
import socket
from collections import OrderedDict
from typing import Any

import numpy as np

from pycooldown.data.byte_ranges import Buffer, Spans
from pycooldown.data.cache.block_files import BlockFiles
from pycooldown.data.cache.messages import receive, send
from pycooldown.data.cache.starting import connect
from pycooldown.data.stores import StoreError
from pycooldown.mixture import Integers

__all__ = ["BlockReader"]

_MAPPED = 1_024  # blocks that a process keeps mapped


class BlockReader:
    """Reads ranges of bytes out of blocks.

    It can be pickled, and used behind a fork: each process has its own connection and its own maps.

    Args:
        files: The files of the blocks.
        address: The fetcher's.
    """

    def __init__(self, files: BlockFiles, address: str) -> None:
        self._files, self._address = files, address
        self._reset()

    def _reset(self) -> None:
        self._process = os.getpid()
        self._connection: socket.socket | None = None
        self._mapped: OrderedDict[int, tuple[str, memoryview]] = OrderedDict()

    def read(self, objects: Integers, starts: Integers, ends: Integers) -> list[Buffer]:
        """Return the bytes of n ranges; see `ByteRanges.read`.

        Raises:
            StoreError: If a block cannot be read from its store.
            OSError: If the fetcher has ended.
        """
        if self._process != os.getpid():
            self._reset()
        blocks, spans = self._files.blocks, Spans(*(np.asarray(a, np.int64) for a in (objects, starts, ends)))
        firsts, lasts = blocks.covering(spans)
        views = self._views(blocks.used_by(spans).tolist())
        begins = blocks.bases[spans.objects] + spans.starts - blocks.bounds[firsts, 0]
        lengths = spans.ends - spans.starts
        found: list[Buffer] = []
        for first, last, at, length in zip(firsts.tolist(), lasts.tolist(), begins.tolist(), lengths.tolist()):
            content = views[first] if first == last else b"".join(views[number] for number in range(first, last + 1))
            found.append(content[at : at + length])
        return found

    def ask(self, message: dict[str, Any]) -> tuple[dict[str, Any], memoryview]:
        """Return the fetcher's answer to this process.

        Raises:
            StoreError: If the answer is an error.
            OSError: If the fetcher has ended.
        """
        try:
            if self._connection is None:
                self._connection = connect(self._address)
            send(self._connection, message)
            answer, payload = receive(self._connection)
        except OSError as error:
            raise ConnectionError(
                error.errno, f"the fetcher of {self._files.folder} has ended ({error}); go on from the last checkpoint"
            ) from error
        if "errno" in answer:
            raise StoreError(answer["errno"] or errno.EIO, answer["strerror"], answer["filename"])
        return answer, payload

    def close(self) -> None:
        """Close the connection of this process."""
        if self._connection is not None:
            self._connection.close()
        self._reset()

    def _views(self, numbers: list[int]) -> dict[int, memoryview]:
        """Return the contents of blocks."""
        views, missing, damaged = {}, [], []
        for number in numbers:
            try:
                view = self._view(number)
            except ValueError:
                damaged.append(number)
                view = None
            if view is None:
                missing.append(number)
            else:
                views[number] = view
        while missing:
            answer, payload = self.ask({"kind": "want", "numbers": missing, "damaged": damaged})
            again, damaged, at = [], [], 0
            for number, size in zip(missing, answer["sizes"], strict=True):
                if size is not None:
                    views[number] = payload[at : at + size]
                    at += size
                elif (view := self._view(number)) is not None:
                    views[number] = view
                else:  # evicted since the answer
                    again.append(number)
            missing = again
        return views

    def _view(self, number: int) -> memoryview | None:
        """Return the content of a block's file, if there is one."""
        if number in self._mapped:
            path, view = self._mapped[number]
            # What was evicted is let go as well, though it could still be read: else its room on the disk stays taken.
            if os.path.exists(path):
                self._mapped.move_to_end(number)
                return view
            del self._mapped[number]
        found = self._files.open(number)
        if found is not None:
            self._mapped[number] = os.fspath(self._files.path(number)), found
            if len(self._mapped) > _MAPPED:
                self._mapped.popitem(last=False)
        return found

    def __reduce__(self) -> tuple[Any, ...]:
        return BlockReader, (self._files, self._address)
