"""Read JSONL files of text pairs. An error about a malformed line names the file and the line."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TypedDict

from pycooldown._files import open_regular

MAX_LINE = 1 << 24  # bytes; a longer line is no pair of texts, and must not be read into memory


class Row(TypedDict):
    """One line: a pair of texts, and the key that identifies it in a shard."""

    key: str
    src: str
    tgt: str


def read_rows(path: Path) -> Iterator[Row]:
    """Yield the rows of `path`, without fields other than `key`, `src` and `tgt`.

    Raises:
        ValueError: At a line that is longer than 16 MiB or not a UTF-8 JSON object with these three strings. Also if a
            key has other characters than letters, digits, `_` and `-`, because it becomes part of a member's name.
    """
    with open_regular(path) as file:
        for number, line in enumerate(iter(lambda: file.readline(MAX_LINE + 1), b""), start=1):
            if len(line) > MAX_LINE:
                raise ValueError(
                    f"{path}:{number} has more than {MAX_LINE} bytes; expected a pair of texts; split it, or check "
                    "that the file has line ends"
                )
            try:
                row = json.loads(line.decode("utf-8"))
            except (ValueError, RecursionError) as error:
                raise ValueError(f"{path}:{number} is not UTF-8 JSON: {error}") from error
            if not isinstance(row, dict):
                raise ValueError(f"{path}:{number} holds a JSON {type(row).__name__}; expected an object")
            for field in Row.__annotations__:
                if not isinstance(row.get(field), str):
                    raise ValueError(f"{path}:{number} has {field} = {row.get(field)!r:.200}; expected a string")
            if not re.fullmatch(r"[\w-]+", row["key"], re.ASCII):
                raise ValueError(
                    f"{path}:{number} has key = {row['key']!r:.200}; expected letters, digits, '_' and '-'"
                )
            yield Row(key=row["key"], src=row["src"], tgt=row["tgt"])


def count_rows(path: Path) -> int:
    """Return the number of rows, after checking all of them.

    Raises:
        ValueError: If a row is malformed or repeats a key, or there is none.
    """
    keys: set[str] = set()
    for number, row in enumerate(read_rows(path), start=1):
        if row["key"] in keys:
            raise ValueError(f"{path}:{number} repeats the key {row['key']!r}; expected unique keys")
        keys.add(row["key"])
    if not keys:
        raise ValueError(f"{path} is empty: a domain without samples can be neither drawn nor validated; leave it out")
    return len(keys)
