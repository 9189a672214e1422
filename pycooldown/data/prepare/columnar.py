"""Read Parquet and Arrow files, a few rows at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from pycooldown._extras import require
from pycooldown.data.stores import StoreError, is_url, open_binary

require("prepare", "pyarrow")

import pyarrow as pa  # noqa: E402
import pyarrow.parquet as pq  # noqa: E402

ROWS = 128  # rows decoded at a time; few, because documents may have megabytes

Fields = list[Any]
Skip = Callable[[int, UnicodeDecodeError], None]


def open_parquet(path: str, version: str = "") -> pq.ParquetFile:
    """Open a Parquet file, which may be an object of some version in a store.

    Raises:
        ValueError: If it is no Parquet file, or damaged.
    """
    try:
        return pq.ParquetFile(open_binary(path, version) if is_url(path) else path, buffer_size=1 << 20)
    except pa.ArrowInvalid as error:
        raise ValueError(f"{path} is no Parquet file, or damaged: {error}") from error


def parquet_rows(
    path: str, version: str, groups: tuple[int, int], fields: tuple[str, ...], skip: Skip
) -> Iterator[tuple[int, Fields]]:
    """Yield number and fields of the rows of some row groups.

    Args:
        path: The file, or the URL of an object.
        version: Version of the object.
        groups: The first row group, and the last one plus one.
        fields: Columns to read.
        skip: Called with the number of a row that is not UTF-8. The row is left out, unless this call raises.

    Raises:
        ValueError: If the file is damaged, or lacks a column or has it with values that are no strings.
    """
    with open_parquet(path, version) as file:
        _check_columns(path, file.schema_arrow, fields)
        row = sum(file.metadata.row_group(i).num_rows for i in range(groups[0]))
        try:
            for batch in file.iter_batches(ROWS, list(range(*groups)), list(fields), use_threads=False):
                yield from _rows(batch, row, fields, skip)
                row += batch.num_rows
        except StoreError:
            raise
        except (pa.ArrowException, OSError) as error:
            raise ValueError(f"{path} is damaged near row {row}: {error}") from error


def arrow_rows(path: str, version: str, fields: tuple[str, ...], skip: Skip) -> Iterator[tuple[int, Fields]]:
    """Yield number and fields of the rows of an Arrow file, in the IPC format of files or streams.

    The arguments and errors are those of :func:`parquet_rows`.
    """
    with pa.PythonFile(open_binary(path, version), "r") if is_url(path) else pa.memory_map(path) as source:
        row = 0
        try:
            for batch in _batches(path, source, fields):
                for start in range(0, batch.num_rows, ROWS):
                    yield from _rows(batch.slice(start, ROWS), row + start, fields, skip)
                row += batch.num_rows
        except StoreError:
            raise
        except (pa.ArrowException, OSError) as error:
            raise ValueError(f"{path} is no Arrow file, or damaged near row {row}: {error}") from error


def _batches(path: str, source: pa.NativeFile, fields: tuple[str, ...]) -> Iterator[pa.RecordBatch]:
    if source.read(6) == b"ARROW1":
        file = pa.ipc.open_file(source)
        _check_columns(path, file.schema, fields)
        yield from (file.get_batch(i) for i in range(file.num_record_batches))
        return
    source.seek(0)
    stream = pa.ipc.open_stream(source)
    _check_columns(path, stream.schema, fields)
    yield from stream
    # A stream that was cut off between two batches looks finished. Only the end mark shows that it is complete.
    source.seek(max(source.size() - 8, 0))
    if source.read(8) != b"\xff\xff\xff\xff\0\0\0\0":
        raise pa.ArrowInvalid("it has no end mark: it was cut off")


def _check_columns(path: str, schema: pa.Schema, fields: tuple[str, ...]) -> None:
    for field in fields:
        if field not in schema.names:
            raise ValueError(f"{path} has no column {field!r}; expected one of {', '.join(map(repr, schema.names))}")
        kind = schema.field(field).type
        value = kind.value_type if pa.types.is_dictionary(kind) else kind
        if not (pa.types.is_string(value) or pa.types.is_large_string(value) or pa.types.is_string_view(value)):
            raise ValueError(f"{path} has column {field!r} of type {kind}; expected strings")


def _rows(batch: pa.RecordBatch, first: int, fields: tuple[str, ...], skip: Skip) -> Iterator[tuple[int, Fields]]:
    columns = [batch.column(field) for field in fields]
    try:
        yield from enumerate(map(list, zip(*(column.to_pylist() for column in columns))), first)
    except UnicodeDecodeError:
        pass
    else:
        return
    for i in range(batch.num_rows):
        try:
            values = [column[i].as_py() for column in columns]
        except UnicodeDecodeError as error:
            skip(first + i, error)
        else:
            yield first + i, values
