"""Read the records of files that are read sequentially: lines, JSON, text and tars."""

from __future__ import annotations

import io
import os
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator
from typing import IO, Any

from pycooldown._extras import require
from pycooldown.data.prepare.options import MAX_RECORD_BYTES, Options
from pycooldown.data.prepare.parts import READ_BYTES, FileRange
from pycooldown.data.stores import open_binary

require("prepare", "orjson")

import orjson  # noqa: E402

BOM = b"\xef\xbb\xbf"  # byte order mark that some editors put before UTF-8
MAX_JSON_BYTES = 256 << 20  # a list in one `.json` file is parsed as a whole

Place = Callable[[Any], str]
RowIterator = Iterator[tuple[Any, list[Any]]]  # the place of each record, and its fields


class Faults:
    """A handler of invalid records, which raises an error or counts them.

    Attributes:
        skipped: The number of records that were left out, by kind: "encoding", "malformed", "field" or "long".
    """

    def __init__(self, on_error: str) -> None:
        self.skipped: Counter[str] = Counter()
        self._raise = on_error == "raise"

    def __call__(self, kind: str, place: Callable[[], str], reason: str) -> None:
        """Report a record; `place` returns where it is."""
        if self._raise:
            raise ValueError(
                f"{place()} {reason}; repair it, or leave such records out with on_error='skip' (--on-error skip)"
            )
        self.skipped[kind] += 1


def _lines(stream: IO[bytes], faults: Faults, place: Callable[[int], str]) -> Iterator[tuple[int, bytes]]:
    """Yield lines with their numbers; report and leave out lines that are too long for memory."""
    number = 0
    while line := stream.readline(MAX_RECORD_BYTES + 1):
        number += 1
        if number == 1:
            line = line.removeprefix(BOM)
        if len(line) > MAX_RECORD_BYTES:
            faults("long", lambda n=number: place(n), f"is a line of more than {MAX_RECORD_BYTES:,} bytes")  # type: ignore[misc]
            while line and not line.endswith(b"\n"):
                line = stream.readline(READ_BYTES)
            continue
        yield number, line


def _line_place(file_range: FileRange) -> Callable[[int], str]:
    return lambda line: f"{file_range.path}:{lines_before(file_range) + line}"


def lines_before(file_range: FileRange) -> int:
    """Return the number of lines before the range. They are read only if an error must name its line."""
    left, count = file_range.start, 0
    with open_binary(file_range.path, file_range.version, stop=file_range.start) as file:
        while left and (block := file.read(min(left, READ_BYTES))):
            left -= len(block)
            count += block.count(b"\n")
    return count


def read_jsonl(file_range: FileRange, stream: IO[bytes], options: Options, faults: Faults) -> RowIterator:
    """Yield the objects of lines; skip blank lines."""
    place = _line_place(file_range)
    for number, line in _lines(stream, faults, place):
        row = _parse(line, lambda n=number: place(n), faults)  # type: ignore[misc]
        if row is not None:
            yield number, [row.get(field) for field in options.text_fields]


def _parse(content: bytes, place: Callable[[], str], faults: Faults) -> dict[str, Any] | None:
    """Return the object in `content`; None if it is blank or was skipped."""
    try:
        row = orjson.loads(content)
    except orjson.JSONDecodeError as error:
        if content.isspace():
            return None
        try:
            content.decode("utf-8")
        except UnicodeDecodeError as encoding:
            faults("encoding", place, f"is not UTF-8: {encoding}")
        else:
            faults("malformed", place, f"is not JSON: {error}")
        return None
    if not isinstance(row, dict):
        faults("malformed", place, f"holds {shown(row)}; expected a JSON object")
        return None
    return row


def read_json(file_range: FileRange, stream: IO[bytes], options: Options, faults: Faults) -> RowIterator:
    """Yield the objects of one JSON list, or of lines in a `.json` file."""
    content = stream.read(MAX_JSON_BYTES + 1)
    if len(content) > MAX_JSON_BYTES:
        raise ValueError(f"{file_range.path} has more than {MAX_JSON_BYTES:,} bytes of JSON; write it as .jsonl")
    content = content.removeprefix(BOM)
    if not content.lstrip().startswith(b"["):  # compressed lines, which the plan could not recognise
        yield from read_jsonl(file_range, io.BytesIO(content), options, faults)
        return
    try:
        rows = orjson.loads(content)
    except orjson.JSONDecodeError as error:
        raise ValueError(f"{file_range.path} is not a JSON list in UTF-8: {error}") from error
    for number, row in enumerate(rows):
        if isinstance(row, dict):
            yield number, [row.get(field) for field in options.text_fields]
        else:
            faults(
                "malformed",
                lambda n=number: f"{file_range.path}, item {n},",  # type: ignore[misc]
                f"is {shown(row)}; expected a JSON object",
            )


def _decode(content: bytes, place: Callable[[], str], faults: Faults) -> str | None:
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        faults("encoding", place, f"is not UTF-8: {error}")
        return None


def read_text_file(file_range: FileRange, stream: IO[bytes], options: Options, faults: Faults) -> RowIterator:
    """Yield the whole text as one document."""
    content = stream.read(MAX_RECORD_BYTES + 1)
    if len(content) > MAX_RECORD_BYTES:
        reason = f"has more than {MAX_RECORD_BYTES:,} bytes in one document; use text_documents='line' or 'paragraph'"
        faults("long", lambda: file_range.path, reason)
    elif (text := _decode(content.removeprefix(BOM), lambda: file_range.path, faults)) is not None:
        yield 1, [text]


def read_text_lines(file_range: FileRange, stream: IO[bytes], options: Options, faults: Faults) -> RowIterator:
    """Yield each line that is not empty."""
    place = _line_place(file_range)
    for number, line in _lines(stream, faults, place):
        content = line.rstrip(b"\r\n")
        if content and (text := _decode(content, lambda n=number: place(n), faults)) is not None:  # type: ignore[misc]
            yield number, [text]


def read_text_paragraphs(file_range: FileRange, stream: IO[bytes], options: Options, faults: Faults) -> RowIterator:
    """Yield the lines between blank ones."""
    place = _line_place(file_range)
    lines: list[bytes] = []
    first = size = 0

    def paragraph() -> RowIterator:
        if size > MAX_RECORD_BYTES:
            faults("long", lambda: place(first), f"begins a paragraph of more than {MAX_RECORD_BYTES:,} bytes")
        elif lines:
            content = b"".join(lines).rstrip(b"\r\n")
            if (text := _decode(content, lambda: place(first), faults)) is not None:
                yield first, [text]

    for number, line in _lines(stream, faults, place):
        if line.isspace():
            yield from paragraph()
            lines, size = [], 0
            continue
        first = first if lines else number
        size += len(line)
        if size <= MAX_RECORD_BYTES:
            lines.append(line)
    yield from paragraph()


def read_tar(file_range: FileRange, stream: IO[bytes], options: Options, faults: Faults) -> RowIterator:
    """Yield the members that hold text: `.txt`, or `.json` with the fields. Other members have none."""
    watched = _Watched(stream)
    found = False
    with tarfile.open(fileobj=watched, mode="r|") as tar:  # type: ignore[call-overload]
        for member in tar:
            kind = os.path.splitext(member.name)[1]
            if not member.isfile() or kind not in (".txt", ".json"):
                continue
            found = True
            place = lambda name=member.name: f"{file_range.path}, member {name!r},"  # noqa: E731
            if member.size > MAX_RECORD_BYTES:
                faults("long", place, f"has {member.size:,} bytes; expected at most {MAX_RECORD_BYTES:,}")
                continue
            content = tar.extractfile(member).read()
            if kind == ".json":
                if (row := _parse(content, place, faults)) is not None:
                    yield member.name, [row.get(field) for field in options.text_fields]
            elif (text := _decode(content, place, faults)) is not None:
                yield member.name, [text]
        end = tar.offset
    while watched.read(READ_BYTES):
        pass
    if watched.size < end + 1024 or watched.content > end:
        raise ValueError(
            f"{file_range.path} does not end where its tar ends, at byte {end} ({watched.size} bytes): it was cut off, "
            "or several tars were put into one file"
        )
    if not found:
        raise ValueError(f"{file_range.path} has no members .txt or .json; expected text")


class _Watched:
    """A stream that records its size and the end of its last byte that is not zero."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self.size = self.content = 0

    def read(self, size: int) -> bytes:
        block = self._stream.read(size)
        if used := len(block.rstrip(b"\0")):
            self.content = self.size + used
        self.size += len(block)
        return block


def shown(value: object) -> str:
    """Return a value as text for an error, cut if it is long."""
    text = repr(value)
    return f"{type(value).__name__} {text if len(text) <= 60 else text[:57] + '...'}"
