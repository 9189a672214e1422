"""Read the documents in a range of a file of any format; refuse or count invalid records."""

from __future__ import annotations

import gzip
import io
import tarfile
from collections.abc import Callable, Iterator
from typing import IO, Any, Protocol, cast

from pycooldown._extras import require
from pycooldown.data.prepare import formats
from pycooldown.data.prepare.formats import Faults, Place, RowIterator, lines_before, shown
from pycooldown.data.prepare.options import Options
from pycooldown.data.prepare.parts import READ_BYTES, FileRange
from pycooldown.data.stores import open_binary

try:
    from compression import zstd  # type: ignore[import-not-found,unused-ignore]
except ImportError:
    require("prepare", "backports.zstd")
    from backports import zstd


class Hasher(Protocol):
    """A hash object, such as those of `hashlib`."""

    def update(self, data: Any, /) -> None:
        """Add bytes to the hash."""


def read_documents(
    file_range: FileRange, options: Options, faults: Faults, digest: Hasher | None = None
) -> Iterator[tuple[str, bytes]]:
    """Yield the documents in a range of a file, as text and as UTF-8.

    Args:
        file_range: The range to read.
        options: Which fields make a document, and how long it may be.
        faults: Called for invalid records.
        digest: Has received all bytes of the range when the iterator is exhausted.

    Raises:
        ValueError: If the file is damaged, lacks a column, or has changed since it was planned.
        OSError: If it cannot be read.
    """
    place, rows = _open(file_range, options, faults, digest)
    fields = options.text_fields
    for number, values in rows:
        for field, value in zip(fields, values):
            if not isinstance(value, str):
                what = "lacks a string" if value is None else f"has {shown(value)}"
                faults("field", lambda n=number: place(n), f"{what} in the field {field!r}; expected a string")  # type: ignore[misc]
                break
        else:
            text = values[0] if len(values) == 1 else "\n".join(values)
            data = text.encode("utf-8")
            if len(data) > options.max_document_bytes and options.long_documents == "refuse":
                reason = (
                    f"is a document of {len(data):,} bytes; expected at most {options.max_document_bytes:,}, or "
                    "long_documents='split' (--long-documents split), which encodes it in pieces"
                )
                faults("long", lambda n=number: place(n), reason)  # type: ignore[misc]
                continue
            yield text, data


_TEXT: dict[str, Callable[..., RowIterator]] = {
    "file": formats.read_text_file,
    "line": formats.read_text_lines,
    "paragraph": formats.read_text_paragraphs,
}


def hash_range(file_range: FileRange, digest: Hasher) -> None:
    """Pass all bytes of a range to `digest`.

    Raises:
        OSError: If the file cannot be read.
        ValueError: If it is shorter than planned.
    """
    with _RangeStream(file_range, digest) as stream:
        stream.drain()


def _open(file_range: FileRange, options: Options, faults: Faults, digest: Hasher | None) -> tuple[Place, RowIterator]:
    """Return a function that names a record's place, and the records as numbers and fields."""
    if file_range.format in ("parquet", "arrow"):
        from pycooldown.data.prepare import columnar

        def place(row: int) -> str:
            return f"{file_range.path}, row {row}"

        def skip(row: int, error: UnicodeDecodeError) -> None:
            faults("encoding", lambda: place(row), f"is not UTF-8: {error}")

        if file_range.format == "parquet":
            rows = columnar.parquet_rows(
                file_range.path, file_range.version, file_range.row_groups, options.text_fields, skip
            )
        else:
            rows = columnar.arrow_rows(file_range.path, file_range.version, options.text_fields, skip)
        return place, _hashed_before(file_range, digest, rows)
    if file_range.format == "tar":
        return (lambda member: f"{file_range.path}, member {member!r},"), _streamed(
            file_range, options, faults, digest, formats.read_tar
        )
    if file_range.format == "json":
        return (lambda item: f"{file_range.path}, item {item},"), _streamed(
            file_range, options, faults, digest, formats.read_json
        )
    read = formats.read_jsonl if file_range.format == "jsonl" else _TEXT[options.text_documents]
    return (lambda line: f"{file_range.path}:{lines_before(file_range) + line}"), _streamed(
        file_range, options, faults, digest, read
    )


def _hashed_before(file_range: FileRange, digest: Hasher | None, rows: RowIterator) -> RowIterator:
    if digest is not None:
        hash_range(file_range, digest)
    yield from rows


def _streamed(
    file_range: FileRange, options: Options, faults: Faults, digest: Hasher | None, read: Callable[..., RowIterator]
) -> RowIterator:
    with _RangeStream(file_range, digest) as raw:
        buffered = io.BufferedReader(raw, READ_BYTES)
        try:
            with _decompressed(buffered, file_range.compression) as stream:
                yield from read(file_range, stream, options, faults)
        except (EOFError, gzip.BadGzipFile, zstd.ZstdError, tarfile.TarError) as error:
            raise ValueError(f"{file_range.path} is damaged or was cut off: {error}") from error
        raw.drain()


def _decompressed(stream: Any, compression: str) -> IO[bytes]:
    if compression == "gzip":
        return cast(IO[bytes], io.BufferedReader(gzip.GzipFile(fileobj=stream), READ_BYTES))
    if compression == "zstd":
        return cast(IO[bytes], io.BufferedReader(zstd.ZstdFile(stream), READ_BYTES))
    return cast(IO[bytes], stream)


class _RangeStream(io.RawIOBase):
    """The bytes of a range as a separate file, hashed while they are read."""

    def __init__(self, file_range: FileRange, digest: Hasher | None) -> None:
        self._path = file_range.path
        self._file: Any = open_binary(file_range.path, file_range.version, stop=file_range.stop, buffered=False)
        self._file.seek(file_range.start)
        self._left = file_range.stop - file_range.start
        self._digest = digest

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer)[: self._left]
        if not view:
            return 0
        count = self._file.readinto(view) or 0
        if not count:
            raise ValueError(f"{self._path} is {self._left} bytes shorter than planned, so it has changed; run again")
        self._left -= count
        if self._digest is not None:
            self._digest.update(view[:count])
        return count

    def drain(self) -> None:
        """Read the remaining bytes, for the hash."""
        buffer = bytearray(READ_BYTES)
        while self._digest is not None and self.readinto(buffer):
            pass

    def close(self) -> None:
        self._file.close()
        super().close()
