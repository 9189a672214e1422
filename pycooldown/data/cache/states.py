"""Which blocks have files and which steps are not reported, in memory that the fetcher shares with its node."""

from __future__ import annotations

import mmap

__all__ = ["BlockStates", "SilentSteps"]

_COUNTERS = 16  # bytes before the states: evictions so far, and the silent steps
# The silent steps are one number, since a reader must not see a step without the jump that it belongs to.
_STEPS, _LEAPS = 2**40, 2**24


class BlockStates:
    """Two bytes for each block, which readers read instead of the folder.

    Before them are the number of evictions so far and the steps that ranks need not report; see `SilentSteps`.

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

    def report_from(self, step: int, leap: int) -> None:
        """Let ranks that have jumped `leap` times report only the steps from this one on, and further jumps."""
        self._counters[1] = leap % _LEAPS * _STEPS + min(step, _STEPS - 1)


class SilentSteps:
    """The steps that ranks need not report to the fetcher now.

    Args:
        path: The file of `BlockStates`.

    Raises:
        OSError: If the file cannot be mapped.
    """

    def __init__(self, path: str) -> None:
        with open(path, "rb") as file:
            content = memoryview(mmap.mmap(file.fileno(), _COUNTERS, access=mmap.ACCESS_READ))
        self._published = content.cast("Q")[1:]

    def include(self, step: int, leap: int) -> bool:
        """Return whether a rank that has jumped `leap` times need not report a step.

        After a jump a rank reports all steps until the fetcher has followed it. Otherwise the fetcher would start there
        without the steps that loaders have requested meanwhile.
        """
        followed, first_reported = divmod(self._published[0], _STEPS)
        return step < first_reported and leap % _LEAPS == followed
