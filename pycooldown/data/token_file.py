"""A file of tokens from any source, in the form that `TokenDataset` needs."""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from pycooldown import _core

__all__ = ["MappedEnds", "TokenFile", "map_file", "one_block", "read_array"]

Numbers = npt.NDArray[np.uint64]


def map_file(path: str, size: int) -> npt.NDArray[np.uint8]:
    """Map the bytes of a file, read-only; the file does not stay open.

    Only the C++ core may read them, under its guard: reading pages that the file has lost would end the process. NumPy
    reads copies, through `read_array`.

    Raises:
        OSError: If it cannot be read or does not have `size` bytes.
    """
    return _core.map_file(os.fsencode(path), size)


def read_array(path: str, dtype: npt.DTypeLike, count: int, offset: int = 0) -> npt.NDArray[Any]:
    """Return a copy of numbers in a file.

    Args:
        path: The file.
        dtype: Type of the numbers.
        count: How many numbers to read.
        offset: Where they begin, in bytes.

    Raises:
        OSError: If they cannot be read or the file ends before them.
    """
    numbers = np.fromfile(path, dtype, count, offset=offset)
    if len(numbers) < count:
        raise OSError(errno.ESTALE, f"{path} was truncated while it was read")
    return numbers


@dataclass(frozen=True)
class MappedEnds:
    """Ends of documents in a file, uint64, little endian. They are mapped, and so shared by all processes.

    Attributes:
        path: The file.
        size: Bytes of the file.
        offset: Where the numbers begin, in bytes; a multiple of 8. They extend to the end of the file.
    """

    path: str
    size: int
    offset: int = 0

    def __len__(self) -> int:
        return (self.size - self.offset) // 8

    def array(self) -> Numbers:
        """Map the file, for the C++ core.

        Raises:
            OSError: If it cannot be read or no longer has its size.
        """
        return map_file(self.path, self.size)[self.offset :].view("<u8")

    def open(self) -> _core.MappedNumbers:
        """Map the file, to look up single numbers.

        Raises:
            OSError: If it cannot be read or no longer has its size.
        """
        return _core.MappedNumbers(os.fsencode(self.path), self.size, self.offset)

    def read(self, begin: int, end: int) -> Numbers:
        """Return a copy of some of the numbers.

        Raises:
            OSError: If they cannot be read.
        """
        return read_array(self.path, "<u8", end - begin, self.offset + 8 * begin)


@dataclass(frozen=True)
class TokenFile:
    """Tokens in a file, and where their documents end.

    When it is pickled, mapped ends are stored by their place, others by value.

    Attributes:
        path: The file.
        size: Its bytes. A file that has another size when it is mapped is refused.
        dtype: Type of the tokens: int8 to int64 or uint8 to uint32, little endian.
        tokens: Number of tokens.
        block_offsets: Where the tokens of each block begin in the file, in bytes; uint64 of shape (blocks,).
        block_ends: Exclusive end of each block, in tokens from the first one; uint64 of shape (blocks,), ascending.
        ends: Exclusive end of each document, in the same way; uint64 of shape (documents,). Equal ends mean documents
            without tokens.
        version: Version of an object in a store, whose `path` is its URL; empty for a file.
    """

    path: str
    size: int
    dtype: np.dtype[Any]
    tokens: int
    block_offsets: Numbers = field(repr=False)
    block_ends: Numbers = field(repr=False)
    ends: Numbers | MappedEnds = field(repr=False)
    version: str = ""

    @property
    def documents(self) -> int:
        """Number of documents."""
        return len(self.ends)

    def document_ends(self) -> Numbers:
        """Return a copy of the exclusive end of each document.

        Raises:
            OSError: If they cannot be read.
            ValueError: If they do not end where the tokens do.
        """
        self.check_last_end()
        return self._ends(0, self.documents)

    def check_last_end(self) -> None:
        """Check where the last document ends.

        Raises:
            OSError: If it cannot be read.
            ValueError: If that is not where the tokens end.
        """
        last = self._ends(max(self.documents - 1, 0), self.documents).tolist()
        if (last[0] if last else 0) != self.tokens:
            where = f"at {last[0]}" if last else "nowhere"
            raise ValueError(f"{self.path} is damaged: it has {self.tokens} tokens, but its last document ends {where}")

    def check(self) -> None:
        """Check the ends of all documents.

        Raises:
            OSError: If they cannot be read.
            ValueError: If they do not ascend to the last token.
        """
        self.check_last_end()
        for begin in range(0, self.documents - 1, step := 1 << 20):
            ends = self._ends(begin, min(begin + step + 1, self.documents))
            falls = ends[1:] < ends[:-1]
            if falls.any():
                at = begin + 1 + int(falls.argmax())
                raise ValueError(f"{self.path} is damaged: the ends of its documents do not ascend at document {at}")

    def _ends(self, begin: int, end: int) -> Numbers:
        return self.ends.read(begin, end) if isinstance(self.ends, MappedEnds) else self.ends[begin:end]


def one_block(path: str, size: int, dtype: np.dtype[Any], offset: int, tokens: int) -> dict[str, Any]:
    """Return the fields of a `TokenFile`, except for the ends, if all tokens follow each other from one byte on."""
    blocks = ([offset], [tokens]) if tokens else ([], [])
    block_offsets, block_ends = (np.array(numbers, np.uint64) for numbers in blocks)
    return {
        "path": path,
        "size": size,
        "dtype": dtype,
        "tokens": tokens,
        "block_offsets": block_offsets,
        "block_ends": block_ends,
    }
