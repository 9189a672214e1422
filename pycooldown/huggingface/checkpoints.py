"""Checkpoints that are known to be whole.

Trainer writes a checkpoint file by file and removes old ones in the same way, so a process that is killed can leave a
folder with some files missing or cut short. Ours are sealed last with ``data_state.json``, which holds the state of the
data and the size of every other file; only a folder that agrees with its seal is resumed from.
"""

from __future__ import annotations

import json
import math
import os
import shutil
from pathlib import Path
from typing import Any

SEAL = "data_state.json"


def seal(folder: str | Path, state: dict[str, Any]) -> None:
    """Records that all files of a checkpoint are written, and the sampler's state."""
    files = sorted(path for path in Path(folder).rglob("*") if path.is_file())
    for path in files:
        _sync(path)
    content = {"sampler": state, "files": {str(path.relative_to(folder)): path.stat().st_size for path in files}}
    write_atomically(Path(folder) / SEAL, json.dumps(content, indent=1))


def unseal(folder: str | Path) -> None:
    """Makes a checkpoint one that is not trusted, before it is written over."""
    (Path(folder) / SEAL).unlink(missing_ok=True)


def complete_checkpoint(output_dir: str | Path, path: str | Path | None = None) -> tuple[str, dict[str, Any]]:
    """Finds a checkpoint to resume from.

    Args:
        output_dir: the folder with the checkpoints.
        path: one of them, or ``None`` for the newest that is complete.

    Returns:
        Its path and the sampler's state.

    Raises:
        ValueError: if it is not complete, saying why, or there is none.
    """
    if path is not None:
        if fault := _fault(Path(path)):
            raise ValueError(f"{path} is not a complete checkpoint: {fault}")
        return str(path), _state(Path(path))
    found = _checkpoints(output_dir)
    for checkpoint in found:
        if not _fault(checkpoint):
            return str(checkpoint), _state(checkpoint)
    faults = "; ".join(f"{checkpoint.name}: {_fault(checkpoint)}" for checkpoint in found) or "there is none"
    raise ValueError(f"{output_dir} has no complete checkpoint to resume from ({faults}): start anew")


def discard_incomplete(output_dir: str | Path) -> None:
    """Removes checkpoints that cannot be resumed from, so that they do not count towards ``save_total_limit``."""
    for checkpoint in _checkpoints(output_dir):
        if _fault(checkpoint):
            shutil.rmtree(checkpoint)


def write_atomically(path: Path, text: str) -> None:
    """Writes a file that is there with all of its content or not at all, even if power fails."""
    partial = path.with_name(f"{path.name}.partial")
    with open(partial, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)
    _sync(path.parent)


def valid_json(values: Any, indent: int | None = None) -> str:
    """Return values as JSON text, with null for numbers that are not finite, which JSON does not have."""

    def finite(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: finite(inner) for key, inner in value.items()}
        if isinstance(value, list | tuple):
            return [finite(inner) for inner in value]
        return None if isinstance(value, float) and not math.isfinite(value) else value

    return json.dumps(finite(values), indent=indent, ensure_ascii=False, allow_nan=False)


def _checkpoints(output_dir: str | Path) -> list[Path]:
    """Newest first."""
    found = [path for path in Path(output_dir).glob("checkpoint-*") if path.name[11:].isdecimal()]
    return sorted(found, key=lambda path: int(path.name[11:]), reverse=True)


def _fault(checkpoint: Path) -> str | None:
    """What keeps a checkpoint from being trusted; ``None`` if nothing does."""
    try:
        content = json.loads((checkpoint / SEAL).read_text(encoding="utf-8"))
        files, _ = content["files"].items(), content["sampler"]
    except FileNotFoundError:
        return f"it has no {SEAL}, which is written last"
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        return f"its {SEAL} cannot be read ({error})"
    for name, size in files:
        path = checkpoint / name
        if not path.is_file():
            return f"it lacks {name}"
        if path.stat().st_size != size:
            return f"its {name} has {path.stat().st_size} bytes of {size}"
    return None


def _state(checkpoint: Path) -> dict[str, Any]:
    state: dict[str, Any] = json.loads((checkpoint / SEAL).read_text(encoding="utf-8"))["sampler"]
    return state


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
