"""What every file of tokens is to a `TokenDataset`, whoever wrote it."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from pycooldown import _core

__all__ = ["MappedEnds", "TokenFile", "map_file", "one_block"]

Numbers = npt.NDArray[np.uint64]


def map_file(path: str, size: int) -> npt.NDArray[np.uint8]:
    """Map the bytes of a file, read-only; the file does not stay open.

    Raises:
        OSError: If it cannot be read or does not have `size` bytes.
    """
    return _core.map_file(os.fsencode(path), size)


@dataclass(frozen=True)
class MappedEnds:
    """Ends of documents in a file, uint64, little endian; they are mapped, and so shared by all processes.

    Attributes:
        path: The file.
        size: Bytes of the file.
        offset: Where the numbers begin, in bytes; a multiple of 8. They go on to the end of the file.
    """

    path: str
    size: int
    offset: int = 0

    def array(self) -> Numbers:
        """Map the file.

        Raises:
            OSError: If it cannot be read or no longer has its size.
        """
        return map_file(self.path, self.size)[self.offset :].view("<u8")


@dataclass(frozen=True)
class TokenFile:
    """Tokens in a file, and where their documents end.

    It can be pickled: mapped ends by their place, others by value.

    Attributes:
        path: The file.
        size: Its bytes. A file that has another size when it is mapped is refused.
        dtype: Of the tokens: int8 to int64 or uint8 to uint32, little endian.
        tokens: Number of tokens.
        block_offsets: Where the tokens of each block begin in the file, in bytes; uint64 of shape (blocks,).
        block_ends: Exclusive end of each block, in tokens from the first one; uint64 of shape (blocks,), ascending.
        ends: Exclusive end of each document, likewise; uint64 of shape (documents,). Equal ones are documents of no
            tokens.
    """

    path: str
    size: int
    dtype: np.dtype[Any]
    tokens: int
    block_offsets: Numbers = field(repr=False)
    block_ends: Numbers = field(repr=False)
    ends: Numbers | MappedEnds = field(repr=False)

    def document_ends(self) -> Numbers:
        """Return the exclusive end of each document, mapped if the ends are in a file.

        Raises:
            OSError: If they cannot be mapped.
            ValueError: If they do not end where the tokens do.
        """
        ends = self.ends.array() if isinstance(self.ends, MappedEnds) else self.ends
        if (int(ends[-1]) if len(ends) else 0) != self.tokens:
            last = f"at {int(ends[-1])}" if len(ends) else "nowhere"
            raise ValueError(f"{self.path} is damaged: it has {self.tokens} tokens, but its last document ends {last}")
        return ends

    def check(self) -> None:
        """Read the ends of all documents.

        Raises:
            OSError: If they cannot be mapped.
            ValueError: If they do not ascend.
        """
        ends = self.document_ends()
        for begin in range(0, len(ends) - 1, step := 1 << 20):
            falls = ends[begin + 1 : begin + step + 1] < ends[begin : min(begin + step, len(ends) - 1)]
            if falls.any():
                at = begin + 1 + int(falls.argmax())
                raise ValueError(f"{self.path} is damaged: the ends of its documents do not ascend at document {at}")


def one_block(path: str, size: int, dtype: np.dtype[Any], offset: int, tokens: int) -> dict[str, Any]:
    """Return the fields of a `TokenFile`, except for the ends, whose tokens lie end to end from a byte on."""
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
