"""The files of a cache, one per block. Each is written under another name and then renamed, and ends with a checksum.

A file is named by the object's URL and version and by the block's range of bytes, so a changed object gets other files.
`manifest` lists all names that were ever written; no other file of the folder is deleted.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pycooldown._core import SEAL_BYTES, BlockMaps, seal_block
from pycooldown._files import write_atomically
from pycooldown.data.cache.blocks import Blocks
from pycooldown.data.stores import StoredObject

__all__ = ["BlockFiles", "BlockMaps"]

_NAME = re.compile(r"([0-9a-f]{32})-([0-9a-f]+)-([0-9a-f]+)\.block")


class BlockFiles:
    """The files of a data set's blocks in a folder.

    Args:
        folder: An existing folder.
        objects: The objects of the blocks.
        blocks: The blocks.
    """

    def __init__(self, folder: str | os.PathLike[str], objects: Sequence[StoredObject], blocks: Blocks) -> None:
        self.folder = Path(folder)
        self.blocks = blocks
        self._stems = [_stem(item) for item in objects]
        self._manifest = self.folder / "manifest"

    def path(self, number: int) -> Path:
        """Return the path of a block's file."""
        item, start, end = self.blocks.span(number)
        return self.folder / f"{self._stems[item]}-{start:x}-{end:x}.block"

    def map(self, states: str, max_maps: int) -> BlockMaps:
        """Return an object that reads the files in this process; `states` is the file of `BlockStates`.

        Raises:
            OSError: If `states` cannot be mapped.
        """
        return BlockMaps(
            folder=f"{self.folder}/",
            bases=self.blocks.bases,
            bounds=self.blocks.bounds.ravel(),
            stems=self._stems,
            states=states,
            max_maps=max_maps,
        )

    def write(self, number: int, content: bytes | memoryview) -> None:
        """Write a block. It appears under its name only when it is complete.

        Raises:
            OSError: If it cannot be written. Then no file is left behind.
        """
        path = self.path(number)
        aside = _aside(path)
        try:
            # After a power failure the content may be missing, which the checksum detects. `open_atomically` is not
            # used because `take_over` must know the names of files that a killed process left.
            with open(aside, "wb") as file:
                file.write(content)
                file.write(seal_block(content))
            os.replace(aside, path)
        except BaseException:
            with contextlib.suppress(OSError):
                aside.unlink(missing_ok=True)
            raise

    def note(self, numbers: Sequence[int]) -> None:
        """List blocks in the manifest, before they are written.

        Raises:
            OSError: If the manifest cannot be written.
        """
        lines = "".join(f"{self.path(number).name}\n" for number in numbers).encode()
        with open(self._manifest, "ab") as file:
            file.write(lines)

    def delete(self, number: int) -> None:
        """Delete a block's file, if there is one."""
        self.path(number).unlink(missing_ok=True)

    def take_over(self) -> tuple[list[int], int]:
        """Return the blocks that have files, and the number of other cache files that were deleted.

        The deleted files belong to former versions or other data sets, or are parts left by a killed process. Then the
        manifest lists the existing files. Files that it does not list are neither deleted nor used.

        Raises:
            OSError: If the folder cannot be read or written.
        """
        listed = set(_read_lines(self._manifest))
        there = {entry.name for entry in os.scandir(self.folder)}
        numbers, deleted = [], 0
        by_stem = {stem: item for item, stem in enumerate(self._stems)}
        for name in sorted(listed & there):
            number = self._number(name, by_stem)
            if number is not None and (self.folder / name).is_file():
                numbers.append(number)
            else:
                (self.folder / name).unlink()
                deleted += 1
        for name in sorted(listed):
            aside = _aside(self.folder / name)
            if aside.name in there:
                aside.unlink()
                deleted += 1
        rest = "".join(f"{self.path(number).name}\n" for number in numbers)
        write_atomically(self._manifest, rest, durable=False)
        return numbers, deleted

    def _number(self, name: str, by_stem: dict[str, int]) -> int | None:
        """Return the block of a file with this name and size, or None."""
        match = _NAME.fullmatch(name)
        if match is None or (item := by_stem.get(match[1])) is None:
            return None
        start, end = int(match[2], 16), int(match[3], 16)
        begin = int(self.blocks.bases[item]) + start
        number = int(np.searchsorted(self.blocks.bounds[:, 0], begin))
        if number == len(self.blocks) or self.blocks.span(number) != (item, start, end):
            return None
        size = (self.folder / name).lstat().st_size
        return number if size == end - start + SEAL_BYTES else None


def _stem(item: StoredObject) -> str:
    return hashlib.blake2b(f"{item.url}\0{item.version}".encode(), digest_size=16).hexdigest()


def _aside(path: Path) -> Path:
    return path.with_name(f"{path.name}.partial")


def _read_lines(path: Path) -> list[str]:
    """Return the complete lines; a killed process may have written only a part of the last one."""
    try:
        text = path.read_text(errors="replace")
    except FileNotFoundError:
        return []
    return [line for line in text.split("\n") if _NAME.fullmatch(line)]
