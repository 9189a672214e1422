"""Rows of tokens from files in object stores. The bytes for a batch are fetched and then read as small files."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from pycooldown._core import TokenReader
from pycooldown.data.byte_ranges import Buffer, ByteRanges, Spans
from pycooldown.data.stores import StoredObject
from pycooldown.data.token_file import MappedEnds, TokenFile
from pycooldown.data.token_index import Pieces

__all__ = ["StoredTokens"]


class _Part(NamedTuple):
    """Tokens `begin` to `end` of a file."""

    file: int
    begin: int
    end: int


class StoredTokens:
    """The tokens of files in stores, one file after another.

    Args:
        files: The files in order. An object's number is its position here.
        length: Tokens in a row.
        whole_documents: Whether a piece ends with its document. Otherwise it extends to the end of the row.
        looks_ahead: Whether to return the token after each row too, for shifted labels.
    """

    def __init__(self, files: Sequence[TokenFile], length: int, *, whole_documents: bool, looks_ahead: bool) -> None:
        self.files = files
        self.length, self.whole_documents, self.looks_ahead = length, whole_documents, looks_ahead
        self._starts = np.cumsum([0, *(file.tokens for file in files)], dtype=np.int64)
        self._ends = [file.ends.open() for file in files if isinstance(file.ends, MappedEnds)]
        assert len(self._ends) == len(files), "the ends of files in stores are in local sidecars"

    @property
    def objects(self) -> list[StoredObject]:
        """The files, by number."""
        return [StoredObject(file.path, file.size, file.version) for file in self.files]

    def locate(self, pieces: Pieces) -> Spans:
        """Return the ranges of bytes that rows need, in their order."""
        return self._spans([part for parts in self._parts(pieces) for part in parts])

    def read(
        self, pieces: Pieces, ranges: ByteRanges, vocabulary_size: int
    ) -> tuple[TokenReader, dict[str, npt.NDArray[np.int64]]]:
        """Fetch what rows need.

        Returns:
            A reader of exactly these tokens, and the pieces of the rows in it, as its `fill` takes them.
        """
        by_piece = self._parts(pieces)
        parts = [part for parts in by_piece for part in parts]
        contents = list(ranges.read(*self._spans(parts)))
        reader, taken = TokenReader(), 0
        for part in parts:
            count = len(self._blocks(part))
            self._add(reader, part, contents[taken : taken + count], vocabulary_size)
            taken += count
        sizes = [sum(part.end - part.begin for part in parts) for parts in by_piece]
        bounds = np.cumsum([0, *sizes], dtype=np.int64)
        return reader, {"pieces": pieces.bounds, "begins": bounds[:-1], "limits": bounds[1:]}

    def _add(self, reader: TokenReader, part: _Part, contents: Sequence[Buffer], vocabulary_size: int) -> None:
        file, ends = self.files[part.file], self._ends[part.file]
        content = contents[0] if len(contents) == 1 else b"".join(contents)
        # Documents that end within the part, and the one that ends with it or later.
        first, last = ends.count_up_to(part.begin), ends.count_up_to(part.end - 1)
        size = part.end - part.begin
        if len(content) != size * file.dtype.itemsize:
            raise ValueError(
                f"`ranges` returned {len(content)} bytes for {size} tokens of {file.path}; it must return the "
                "requested bytes"
            )
        reader.add(
            file.path,
            bytes=np.frombuffer(content, np.uint8),
            dtype=file.dtype.name,
            vocabulary_size=vocabulary_size,
            block_offsets=np.zeros(1, np.uint64),
            block_ends=np.array([size], np.uint64),
            ends=np.minimum(ends.copy(first, last + 1), part.end) - np.uint64(part.begin),
            ends_path=None,
        )

    def _parts(self, pieces: Pieces) -> list[list[_Part]]:
        """Return the parts of each piece, one or more per file."""
        parts = []
        for first, last in zip(pieces.bounds[:-1].tolist(), pieces.bounds[1:].tolist()):
            left = self.length
            for begin, limit in zip(pieces.begins[first:last].tolist(), pieces.limits[first:last].tolist()):
                count = min(left, limit - begin)
                if self.whole_documents:
                    count = min(count, self._document_end(begin) - begin)
                left -= count
                parts.append(self._cut(begin, min(begin + count + self.looks_ahead, limit)))
        return parts

    def _document_end(self, token: int) -> int:
        file = int(np.searchsorted(self._starts, token, "right")) - 1
        start, ends = int(self._starts[file]), self._ends[file]
        number = ends.count_up_to(token - start)
        return start + int(ends.copy(number, number + 1)[0])

    def _cut(self, begin: int, end: int) -> list[_Part]:
        parts = []
        file = int(np.searchsorted(self._starts, begin, "right")) - 1
        while begin < end:
            start, stop = int(self._starts[file]), int(self._starts[file + 1])
            if begin < stop:
                parts.append(_Part(file, begin - start, min(end, stop) - start))
            begin, file = max(begin, min(end, stop)), file + 1
        return parts

    def _spans(self, parts: Sequence[_Part]) -> Spans:
        rows = [(part.file, *span) for part in parts for span in self._blocks(part)]
        return Spans(*np.array(rows, np.int64).reshape(-1, 3).T)

    def _blocks(self, part: _Part) -> list[tuple[int, int]]:
        """Return the ranges of bytes of a part: one, or one for each block that it touches."""
        file = self.files[part.file]
        width = file.dtype.itemsize
        first = int(np.searchsorted(file.block_ends, part.begin, "right"))
        last = int(np.searchsorted(file.block_ends, part.end, "left"))
        spans = []
        for block in range(first, last + 1):
            start = int(file.block_ends[block - 1]) if block else 0
            begin, end = max(part.begin, start), min(part.end, int(file.block_ends[block]))
            offset = int(file.block_offsets[block])
            spans.append((offset + (begin - start) * width, offset + (end - start) * width))
        return spans
