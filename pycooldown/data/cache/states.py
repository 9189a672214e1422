"""Which blocks have files, in memory that the fetcher shares with all processes that read."""

from __future__ import annotations

import mmap
import struct

__all__ = ["BlockStates"]

_EVICTIONS = struct.Struct("=Q")  # their number so far, before the states


class BlockStates:
    """Two bytes for each block, for readers to look at in place of the folder.

    The first is 0 where the block has no file, and another number for each new file. Only the fetcher writes it. The
    second is that number once a reader has checked the file, so that other processes need not check it again; see
    `csrc/include/pycooldown/block_states.h`.

    Args:
        path: Where it is made.
        blocks: Number of blocks.

    Raises:
        OSError: If there is no room for it.
    """

    def __init__(self, path: str, blocks: int) -> None:
        size = _EVICTIONS.size + 2 * blocks
        with open(path, "xb+") as file:
            file.write(bytes(size))  # now, since a page that finds no room later would end the process
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
        """Note that a block's file is about to go."""
        if self._states[_EVICTIONS.size + number]:
            self._states[_EVICTIONS.size + number] = 0
            self._evictions += 1
            _EVICTIONS.pack_into(self._states, 0, self._evictions)
