"""Outcomes in files, each stored with the identity of its computation.

An outcome is read again only for the same identity. The identity holds everything that the outcome depends on: the
setting, the schedule with all its options, a hash of the data, and the revision of the code. Versions of libraries are
recorded beside it: another version gives the same outcome up to rounding.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

# Increase it with every change of code that changes outcomes, so that older outcomes are not read.
REVISION = 3


def read(path: Path, identity: Mapping[str, Any]) -> Any:
    """Return the outcome in a file, or ``None`` if there is no file.

    Raises:
        ValueError: If the file holds an outcome of another identity; the message names what differs.
    """
    if not path.exists():
        return None
    stored = json.loads(path.read_text(encoding="utf-8"))
    if (name := _difference(stored, identity)) is None:
        return stored["outcome"]
    raise ValueError(
        f"{path} holds an outcome of another setting: {name} is {stored.get('identity', {}).get(name)!r} there and "
        f"{_complete(identity).get(name)!r} here; choose another folder, or remove the file"
    )


def write(path: Path, identity: Mapping[str, Any], outcome: Any) -> None:
    """Write an outcome."""
    write_text(
        path, json.dumps({"identity": _complete(identity), "versions": _versions(), "outcome": outcome}, indent=1)
    )


def write_text(path: Path, text: str) -> None:
    """Write a file so that an interrupted process leaves none that looks finished."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def digest(parts: Iterable[bytes]) -> str:
    """Return the first 16 hexadecimal digits of the SHA-256 over byte strings and their lengths."""
    hashed = hashlib.sha256()
    for part in parts:
        hashed.update(len(part).to_bytes(8, "little"))
        hashed.update(part)
    return hashed.hexdigest()[:16]


def _difference(stored: Mapping[str, Any], identity: Mapping[str, Any]) -> str | None:
    """Return the first part in which the identity of a file differs, or ``None`` if it is the same."""
    theirs, mine = stored.get("identity", {}), _complete(identity)
    return next((key for key in (*mine, *theirs) if theirs.get(key) != mine.get(key)), None)


def _complete(identity: Mapping[str, Any]) -> dict[str, Any]:
    """Return the identity in the form of JSON, with the revision."""
    complete: dict[str, Any] = json.loads(json.dumps({**identity, "revision": REVISION}))
    return complete


def _versions() -> dict[str, str]:
    found = {}
    for name in ("pycooldown", "torch", "transformers", "numpy"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "source tree"
    return found
