"""Which blocks have files, in memory that the fetcher shares with all processes that read."""

from __future__ import annotations

import mmap
import struct

__all__ = ["BlockStates"]

_EVICTIONS = struct.Struct("=Q")  # their number so far, before the states


class BlockStates:
    """A byte for each block: 0 where it has no file, and another number for each new file.

    Readers look at it in place of the folder (see `csrc/include/pycooldown/block_maps.h`). Only the fetcher writes it.

    Args:
        path: Where it is made.
        blocks: Number of blocks.

    Raises:
        OSError: If there is no room for it.
    """

    def __init__(self, path: str, blocks: int) -> None:
        size = _EVICTIONS.size + blocks
        with open(path, "xb+") as file:
            file.write(bytes(size))  # now, since a page that finds no room later would end the process
            file.flush()
            self._states = mmap.mmap(file.fileno(), size)
        self._evictions = 0
        self._last = bytearray(blocks)  # the state of each block's latest file

    def appear(self, number: int) -> None:
        """Note that a block has a new file."""
        self._last[number] = self._last[number] % 255 + 1
        self._states[_EVICTIONS.size + number] = self._last[number]

    def vanish(self, number: int) -> None:
        """Note that a block's file is about to go."""
        if self._states[_EVICTIONS.size + number]:
            self._states[_EVICTIONS.size + number] = 0
            self._evictions += 1
            _EVICTIONS.pack_into(self._states, 0, self._evictions)
