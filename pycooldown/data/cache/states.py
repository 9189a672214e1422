"""The blocks that have files, in memory that the fetcher shares with all reading processes."""

from __future__ import annotations

import mmap
import struct

__all__ = ["BlockStates"]

_EVICTIONS = struct.Struct("=Q")  # the number of evictions so far, stored before the states


class BlockStates:
    """Two bytes for each block, which readers read instead of the folder.

    The first is 0 if the block has no file, and another number for each new file. Only the fetcher writes it. The
    second becomes that number once a reader has checked the file, so that other processes need not check it again; see
    `csrc/include/pycooldown/block_states.h`.

    Args:
        path: The file to create.
        blocks: Number of blocks.

    Raises:
        OSError: If there is no room for it.
    """

    def __init__(self, path: str, blocks: int) -> None:
        size = _EVICTIONS.size + 2 * blocks
        with open(path, "xb+") as file:
            file.write(bytes(size))  # allocate now: a page without room later would end the process
            file.flush()
            self._states = mmap.mmap(file.fileno(), size)
        self._evictions, self._blocks = 0, blocks
        self._last = bytearray(blocks)  # the state of each block's latest file

    def appear(self, number: int) -> None:
        """Note that a block has a new file."""
        self._last[number] = self._last[number] % 255 + 1
        self._states[_EVICTIONS.size + self._blocks + number] = 0  # not checked
        self._states[_EVICTIONS.size + number] = self._last[number]

    def vanish(self, number: int) -> None:
        """Note that a block's file is about to be deleted."""
        if self._states[_EVICTIONS.size + number]:
            self._states[_EVICTIONS.size + number] = 0
            self._evictions += 1
            _EVICTIONS.pack_into(self._states, 0, self._evictions)
