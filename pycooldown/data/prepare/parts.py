"""Divide the files of a domain into parts. A part is a list of ranges of files, from which one call makes shards."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO

from pycooldown.data.prepare.inputs import InputFile
from pycooldown.data.prepare.options import Options
from pycooldown.data.stores import is_url, open_binary

COMPRESSED_WEIGHT = 4  # approximate bytes of text per byte of gzip or zstd
MAX_RANGES = 4096
READ_BYTES = 1 << 20


@dataclass(frozen=True)
class FileRange:
    """A range of a file.

    Attributes:
        path: The file, or the URL of an object.
        format: As in :class:`InputFile`, but `"jsonl"` for a `.json` file of lines.
        compression: As in :class:`InputFile`.
        start: The first byte.
        stop: The last byte plus one.
        row_groups: For Parquet, the first row group, and the last one plus one.
        footer: For Parquet, the SHA-256 of the footer, which describes the bytes.
        version: For an object, as in :class:`InputFile`; empty for a file.
    """

    path: str
    format: str
    compression: str
    start: int
    stop: int
    row_groups: tuple[int, int] = (0, 0)
    footer: str = ""
    version: str = ""

    @property
    def weight(self) -> int:
        """Estimated bytes of text."""
        return (self.stop - self.start) * (COMPRESSED_WEIGHT if self.compression else 1)


@dataclass(frozen=True)
class Part:
    """The ranges whose documents make one shard for each split.

    Attributes:
        domain: The name of the domain.
        index: The number of the part within the domain; also that of its shards.
        ranges: The ranges, in order.
    """

    domain: str
    index: int
    ranges: tuple[FileRange, ...]

    @property
    def weight(self) -> int:
        """Estimated bytes of text."""
        return sum(file_range.weight for file_range in self.ranges)


def divide(domain: str, files: list[InputFile], options: Options) -> list[Part]:
    """Return the parts of a domain, as a function of only the files and the options.

    Lines are divided at newlines, Parquet at row groups; other files stay whole. Small files share a part.

    Raises:
        ValueError: If a Parquet file is damaged.
        OSError: If a file cannot be read.
    """
    parts: list[Part] = []
    ranges: list[FileRange] = []
    weight = 0
    for file in files:
        for file_range in _ranges(file, options):
            if ranges and (weight + file_range.weight > options.shard_bytes or len(ranges) == MAX_RANGES):
                parts.append(Part(domain, len(parts), tuple(ranges)))
                ranges, weight = [], 0
            ranges.append(file_range)
            weight += file_range.weight
    return [*parts, Part(domain, len(parts), tuple(ranges))] if ranges else parts


def _ranges(file: InputFile, options: Options) -> Iterator[FileRange]:
    if not file.size:
        return
    version = file.version if is_url(file.path) else ""
    kind = file.format
    if kind == "json" and not file.compression and _first_character(file.path, version) != b"[":
        kind = "jsonl"  # files of lines are often named `.json`
    if kind == "parquet":
        yield from _row_groups(file.path, version, file.size, options.shard_bytes)
        return
    lines = kind == "jsonl" or (kind == "text" and options.text_documents == "line")
    if not lines or file.compression or file.size <= options.shard_bytes:
        yield FileRange(file.path, kind, file.compression, 0, file.size, version=version)
        return
    start = 0
    with open_binary(file.path, version) as stream:
        while start < file.size:
            stop = min(_next_line(stream, start + options.shard_bytes), file.size)
            yield FileRange(file.path, kind, "", start, stop, version=version)
            start = stop


def _next_line(stream: IO[bytes], position: int) -> int:
    """Return the first byte after a newline at `position - 1` or later, or the end of the file."""
    stream.seek(position - 1)
    while line := stream.readline(READ_BYTES):
        if line.endswith(b"\n"):
            break
    return stream.tell()


def _first_character(path: str, version: str) -> bytes:
    with open_binary(path, version) as stream:
        while block := stream.read(READ_BYTES):
            if block := block.removeprefix(b"\xef\xbb\xbf").lstrip():
                return block[:1]
    return b""


def _row_groups(path: str, version: str, size: int, shard_bytes: int) -> Iterator[FileRange]:
    from pycooldown.data.prepare.columnar import open_parquet

    with open_binary(path, version) as stream, open_parquet(path, version) as file:
        stream.seek(-8, os.SEEK_END)
        length = int.from_bytes(stream.read(4), "little")
        stream.seek(-8 - length, os.SEEK_END)
        footer = hashlib.sha256(stream.read(length)).hexdigest()
        metadata = file.metadata
        # Byte offset and decoded size of every row group.
        offsets, weights = [], []
        for i in range(metadata.num_row_groups):
            group = metadata.row_group(i)
            chunks = [group.column(c) for c in range(group.num_columns)]
            offsets.append(min(min(c.dictionary_page_offset or c.data_page_offset, c.data_page_offset) for c in chunks))
            weights.append(sum(c.total_uncompressed_size for c in chunks))
    if offsets != sorted(offsets):
        yield FileRange(path, "parquet", "", 0, size, (0, len(offsets)), footer, version)
        return
    first, weight = 0, 0
    for i in range(len(offsets)):
        weight += weights[i]
        last = i + 1 == len(offsets)
        if last or weight + weights[i + 1] > shard_bytes:
            start, stop = offsets[first] if first else 0, size if last else offsets[i + 1]
            yield FileRange(path, "parquet", "", start, stop, (first, i + 1), footer, version)
            first, weight = i + 1, 0
