"""The blocks that have files, in memory that the fetcher shares with all reading processes."""

from __future__ import annotations

import mmap
import struct

__all__ = ["BlockStates"]

_EVICTIONS = struct.Struct("=Q")  # the number of evictions so far, stored before the states


class BlockStates:
    """A byte for each block: 0 if it has no file, and another number for each new file.

    Readers read it instead of the folder (see `csrc/include/pycooldown/block_maps.h`). Only the fetcher writes it.

    Args:
        path: The file to create.
        blocks: Number of blocks.

    Raises:
        OSError: If there is no room for it.
    """

    def __init__(self, path: str, blocks: int) -> None:
        size = _EVICTIONS.size + blocks
        with open(path, "xb+") as file:
            file.write(bytes(size))  # allocate now: a page without room later would end the process
            file.flush()
            self._states = mmap.mmap(file.fileno(), size)
        self._evictions = 0
        self._last = bytearray(blocks)  # the state of each block's latest file

    def appear(self, number: int) -> None:
        """Note that a block has a new file."""
        self._last[number] = self._last[number] % 255 + 1
        self._states[_EVICTIONS.size + number] = self._last[number]

    def vanish(self, number: int) -> None:
        """Note that a block's file is about to be deleted."""
        if self._states[_EVICTIONS.size + number]:
            self._states[_EVICTIONS.size + number] = 0
            self._evictions += 1
            _EVICTIONS.pack_into(self._states, 0, self._evictions)
