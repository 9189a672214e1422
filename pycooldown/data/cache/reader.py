"""Read blocks in any process of a job: from their files, or through the fetcher if there is no file."""

from __future__ import annotations

import errno
import os
import socket
import threading
from collections.abc import Sequence
from typing import Any

from pycooldown.data.byte_ranges import Buffer
from pycooldown.data.cache.block_files import BlockFiles, BlockMaps
from pycooldown.data.cache.messages import receive, send
from pycooldown.data.cache.starting import connect, states_path
from pycooldown.data.stores import StoreError
from pycooldown.mixture import Integers

__all__ = ["BlockReader"]

_MAPPED = 16_384  # maximum number of blocks that a process keeps mapped


class BlockReader:
    """A reader of ranges of bytes from blocks.

    It can be pickled and used after a fork: each process has its own connection and its own maps.

    Args:
        files: The files of the blocks.
        address: The fetcher's address.
    """

    def __init__(self, files: BlockFiles, address: str) -> None:
        self._files, self._address = files, address
        self._reset()

    def _reset(self) -> None:
        self._process = os.getpid()
        self._connection: socket.socket | None = None
        self._maps: BlockMaps | None = None
        self._lock = threading.Lock()  # guards the connection

    def read(self, objects: Integers, starts: Integers, ends: Integers) -> Sequence[Buffer]:
        """Return the bytes of n ranges; see `ByteRanges.read`.

        Raises:
            ValueError: If a range is not within blocks.
            StoreError: If a block cannot be read from its store.
            OSError: If the fetcher has ended.
        """
        if self._process != os.getpid():
            self._reset()
        if self._maps is None:
            try:
                self._maps = self._files.map(states_path(self._address), _MAPPED)
            except FileNotFoundError as error:
                raise self._ended(error) from error
        found = self._maps.read(objects, starts, ends)
        while missing := found.missing:
            answer, payload = self._want(missing, found.damaged)
            at = 0
            for number, size in zip(missing, answer["sizes"], strict=True):
                if size is not None:
                    found.give(number, payload[at : at + size])
                    at += size
            found.retry()  # read again blocks that were evicted after the answer
        return found

    def statistics(self) -> dict[str, Any]:
        """Return the fetcher's counts, also while another thread waits for blocks.

        Raises:
            OSError: If the fetcher has ended.
        """
        try:
            with connect(self._address) as connection:
                return _ask(connection, {"kind": "statistics"})[0]
        except OSError as error:
            raise self._ended(error) from error

    def _want(self, missing: list[int], damaged: list[int]) -> tuple[dict[str, Any], memoryview]:
        """Wait until missing blocks have files, and return the contents of those that have none."""
        try:
            with self._lock:
                if self._connection is None:
                    self._connection = connect(self._address)
                answer, payload = _ask(self._connection, {"kind": "want", "numbers": missing, "damaged": damaged})
        except OSError as error:
            raise self._ended(error) from error
        if "errno" in answer:
            raise StoreError(answer["errno"] or errno.EIO, answer["strerror"], answer["filename"])
        return answer, payload

    def close(self) -> None:
        """Close the connection of this process."""
        if self._connection is not None:
            self._connection.close()
        self._reset()

    def _ended(self, error: OSError) -> ConnectionError:
        reason = f"the fetcher of {self._files.folder} has ended ({error}); start again from the last checkpoint"
        return ConnectionError(error.errno, reason)

    def __reduce__(self) -> tuple[Any, ...]:
        return BlockReader, (self._files, self._address)


def _ask(connection: socket.socket, message: dict[str, Any]) -> tuple[dict[str, Any], memoryview]:
    send(connection, message)
    return receive(connection)
