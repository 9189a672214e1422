"""Sizes of domains for plans without packed data: from the command line, or from a YAML or CSV file."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pycooldown._files import open_regular

Unit = Literal["samples", "tokens"]

_MAX_CHARACTERS = 1 << 20  # limit for a file of sizes


def parse_size(text: str) -> tuple[str, float]:
    """Return domain and size of a text like ``en=2.7e12``.

    Raises:
        ValueError: If the text has another form, or the size is not a finite number > 0.
    """
    domain, equals, size = text.rpartition("=")
    if not equals or not domain.strip():
        raise ValueError(f"size {text!r}; expected domain=number, as in en=2.7e12")
    return domain.strip(), _number(size, f"size of {domain.strip()!r}")


def read_sizes(path: str | Path) -> dict[str, float]:
    """Return the sizes in a file.

    A YAML file maps domains to numbers. A CSV file has a line for each domain, ``domain,size``; a first line without a
    number names the columns.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file has another form, a domain repeats, or a size is not a finite number > 0.
    """
    path = Path(path)
    rows = _csv_rows(path) if path.suffix.lower() == ".csv" else _yaml_rows(path)
    sizes: dict[str, float] = {}
    for domain, size in rows:
        if domain in sizes:
            raise ValueError(f"{path} has {domain!r} twice; expected one size for each domain")
        sizes[domain] = _number(size, f"{path}: size of {domain!r}")
    if not sizes:
        raise ValueError(f"{path} has no sizes; expected a domain and a number for each")
    return sizes


def to_sequences(sizes: Mapping[str, float], unit: Unit = "samples", length: int | None = None) -> dict[str, int]:
    """Return how many sequences of a run each domain has.

    Args:
        sizes: Samples or tokens of each domain.
        unit: What sizes count.
        length: Tokens of a sequence; needed for tokens.

    Raises:
        ValueError: If the length is missing, or a domain does not fill one sequence.
    """
    if unit == "tokens" and length is None:
        raise ValueError("sizes in tokens need the length of a sequence; pass --sequence-length")
    divisor = length or 1 if unit == "tokens" else 1
    counts = {domain: int(size // divisor) for domain, size in sizes.items()}
    if short := [domain for domain, count in counts.items() if count < 1]:
        raise ValueError(
            f"domain {short[0]!r} has {sizes[short[0]]:g} {unit}, less than one sequence of {divisor}; leave it out, "
            "or lower the length"
        )
    return counts


def _number(value: Any, what: str) -> float:
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not 0 < number < 2**62:
        raise ValueError(f"{what} is {value!r}; expected a number > 0, as in 2.7e12")
    return number


def _yaml_rows(path: Path) -> list[tuple[str, Any]]:
    try:
        from pycooldown._yaml import read_yaml  # not imported for a command's help

        values = read_yaml(path)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} holds a {type(values).__name__}; expected domains with their sizes, as in en: 2.7e12")
    for domain in values:
        if not isinstance(domain, str):
            raise ValueError(
                f"{path}: domain {domain!r} is no text; put it in quotes, because YAML reads no without quotes as false"
            )
    return list(values.items())


def _csv_rows(path: Path) -> list[tuple[str, Any]]:
    with io.TextIOWrapper(open_regular(path), encoding="utf-8-sig", newline="") as file:
        text = file.read(_MAX_CHARACTERS + 1)
    if len(text) > _MAX_CHARACTERS:
        raise ValueError(f"{path} has more than {_MAX_CHARACTERS:,} characters; expected a line for each domain")
    rows = [row for row in csv.reader(io.StringIO(text)) if row]
    if wrong := [i for i, row in enumerate(rows) if len(row) != 2]:
        raise ValueError(f"{path}: row {wrong[0] + 1} has {len(rows[wrong[0]])} columns; expected domain,size")
    try:
        if rows:
            float(rows[0][1])
    except ValueError:
        rows = rows[1:]  # drop the names of the columns
    return [(domain.strip(), size) for domain, size in rows]
