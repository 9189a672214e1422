"""Which blocks have files and which steps are reported, in memory that the fetcher shares with a node's processes."""

from __future__ import annotations

import mmap
from collections.abc import Sequence

__all__ = ["BlockStates", "map_first_reported"]

_COUNTERS = 16  # bytes before the states: evictions so far, and the first step that ranks report


class BlockStates:
    """Two bytes for each block, which readers read instead of the folder.

    Before them are the number of evictions so far and the first step that ranks must report to the fetcher.

    Of a block's bytes, the first is 0 if the block has no file, and another number for each new file. Only the fetcher
    writes it. The second becomes that number once a reader has checked the file, so that other processes need not check
    it again; see `csrc/include/pycooldown/block_states.h`.

    Args:
        path: The file to create.
        blocks: Number of blocks.

    Raises:
        OSError: If there is no room for it.
    """

    def __init__(self, path: str, blocks: int) -> None:
        size = _COUNTERS + 2 * blocks
        with open(path, "xb+") as file:
            file.write(bytes(size))  # allocate now: a page without room later would end the process
            file.flush()
            content = memoryview(mmap.mmap(file.fileno(), size))
        self._counters, self._states = content[:_COUNTERS].cast("Q"), content[_COUNTERS:]
        self._blocks = blocks
        self._last = bytearray(blocks)  # the state of each block's latest file

    def appear(self, number: int) -> None:
        """Note that a block has a new file."""
        self._last[number] = self._last[number] % 255 + 1
        self._states[self._blocks + number] = 0  # not checked
        self._states[number] = self._last[number]

    def vanish(self, number: int) -> None:
        """Note that a block's file is about to be deleted."""
        if self._states[number]:
            self._states[number] = 0
            self._counters[0] += 1

    def report_from(self, step: int) -> None:
        """Let ranks report only the steps from this one on, and jumps to other steps."""
        self._counters[1] = step


def map_first_reported(path: str) -> Sequence[int]:
    """Return a sequence whose only item always is the first step that ranks report.

    Args:
        path: The file of `BlockStates`.

    Raises:
        OSError: If the file cannot be mapped.
    """
    with open(path, "rb") as file:
        return memoryview(mmap.mmap(file.fileno(), _COUNTERS, access=mmap.ACCESS_READ)).cast("Q")[1:]
