"""Checkpoints that are known to be complete and undamaged.

Trainer writes a checkpoint file by file and removes old ones in the same way. A process that is killed can leave a
folder with some files missing or cut short, and a disk can change bits later. So each checkpoint is sealed last with
``data_state.json``: the state of the data, and the size and SHA-256 of every other file. Training resumes only from a
folder that agrees with its seal.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pycooldown._files import sha256, sync, write_atomically

SEAL = "data_state.json"
_DAMAGED = "damaged-"  # prefix of folders that are set aside


@dataclass(frozen=True)
class Fault:
    """Why training cannot resume from a checkpoint.

    Attributes:
        text: The reason, which names the file.
        damaged: Whether the files changed after the checkpoint was sealed. If not, it was never complete.
    """

    text: str
    damaged: bool = False


def seal(folder: str | Path, state: dict[str, Any], *, model_only: bool = False) -> None:
    """Record that all files of a checkpoint are written, together with the sampler's state.

    Args:
        folder: The checkpoint.
        state: JSON values.
        model_only: Whether the checkpoint lacks the optimizer, so that training cannot resume from it exactly.
    """
    files = sorted(path for path in Path(folder).rglob("*") if path.is_file())
    content: dict[str, Any] = {"sampler": state, "files": {}}
    if model_only:
        content["model_only"] = True
    for path in files:
        sync(path)
        entry = {"size": path.stat().st_size, "sha256": sha256(path)}
        content["files"][str(path.relative_to(folder))] = entry
    content["checksum"] = _checksum(content)
    write_atomically(Path(folder) / SEAL, json.dumps(content, indent=1))


def unseal(folder: str | Path) -> None:
    """Mark a checkpoint as incomplete, before it is overwritten."""
    (Path(folder) / SEAL).unlink(missing_ok=True)


def find_fault(checkpoint: str | Path) -> Fault | None:
    """Return why a checkpoint is not complete, or None. Read all of its files."""
    checkpoint = Path(checkpoint)
    try:
        content = json.loads((checkpoint / SEAL).read_text(encoding="utf-8"))
        files = {name: (e, None) if isinstance(e, int) else (e["size"], e["sha256"]) for name, e in _entries(content)}
    except FileNotFoundError:
        return Fault(f"it has no {SEAL}, which is written last")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        return Fault(f"its {SEAL} cannot be read ({error})", damaged=True)
    if "checksum" in content and content["checksum"] != _checksum(content):
        return Fault(f"its {SEAL} has changed since it was written", damaged=True)
    if content.get("model_only"):
        return Fault("it has no optimizer state, as save_only_model=True was set")
    for name, (size, digest) in files.items():
        path = checkpoint / name
        if not path.is_file():
            return Fault(f"it lacks {name}")
        if path.stat().st_size != size:
            return Fault(f"its {name} has {path.stat().st_size} bytes of {size}")
        if digest is not None and sha256(path) != digest:
            return Fault(f"its {name} has changed since it was written", damaged=True)
        if digest is None and path.suffix == ".json":  # seals of version 0.1 have only sizes
            try:
                json.loads(path.read_bytes())
            except (ValueError, RecursionError) as error:
                return Fault(f"its {name} cannot be read ({error})", damaged=True)
    return None


def complete_checkpoint(output_dir: str | Path, path: str | Path | None = None) -> tuple[str, dict[str, Any]]:
    """Find a checkpoint to resume from, and warn about each newer one that is skipped.

    Args:
        output_dir: The folder with the checkpoints.
        path: One of them, or None for the newest that is complete.

    Returns:
        Its path and the sampler's state.

    Raises:
        ValueError: If the checkpoint is not complete, with the reason, or if there is none.
    """
    if path is not None:
        if fault := find_fault(path):
            raise ValueError(
                f"{path} is not a complete checkpoint: {fault.text}; pass another one, or True for the newest "
                "complete one"
            )
        return str(path), read_state(path)
    found = checkpoints(output_dir)
    faults: list[tuple[Path, Fault]] = []
    for checkpoint in found:
        if not (fault := find_fault(checkpoint)):
            warn_of_faults(faults, checkpoint)
            return str(checkpoint), read_state(checkpoint)
        faults.append((checkpoint, fault))
    raise ValueError(f"{output_dir} has no complete checkpoint to resume from ({reasons(faults)}); start a new run")


def warn_of_faults(faults: list[tuple[Path, Fault]], chosen: Path) -> None:
    """Warn that training resumes from an older checkpoint, and name the newer ones and their faults."""
    if faults:
        warnings.warn(
            f"resuming from {chosen.name}, because newer ones are not complete: {reasons(faults)}", stacklevel=3
        )


def reasons(faults: list[tuple[Path, Fault]]) -> str:
    """Return the faults of several checkpoints as one text."""
    return "; ".join(f"{checkpoint.name}: {fault.text}" for checkpoint, fault in faults) or "there is none"


def discard_incomplete(output_dir: str | Path) -> None:
    """Apply `discard` to all checkpoints in a folder that are not complete."""
    found = ((checkpoint, find_fault(checkpoint)) for checkpoint in checkpoints(output_dir))
    discard([(checkpoint, fault) for checkpoint, fault in found if fault])


def discard(faults: list[tuple[Path, Fault]]) -> None:
    """Remove checkpoints that were never complete, so that they do not count towards ``save_total_limit``.

    Rename damaged ones to ``damaged-checkpoint-*``, to keep them for inspection.
    """
    for checkpoint, fault in faults:
        if fault.damaged:
            aside = checkpoint.with_name(_DAMAGED + checkpoint.name)
            shutil.rmtree(aside, ignore_errors=True)
            checkpoint.rename(aside)
        else:
            shutil.rmtree(checkpoint)


def finite(value: Any) -> Any:
    """Return a JSON value with None in place of numbers that JSON cannot express."""
    if isinstance(value, dict):
        return {key: finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def valid_json(values: Any, indent: int | None = None) -> str:
    """Return values as JSON text, with null for numbers that are not finite."""
    return json.dumps(finite(values), indent=indent, ensure_ascii=False, allow_nan=False)


def checkpoints(output_dir: str | Path) -> list[Path]:
    """Return the checkpoints in a folder, the newest first."""
    found = [path for path in Path(output_dir).glob("checkpoint-*") if path.name[11:].isdecimal()]
    return sorted(found, key=lambda path: int(path.name[11:]), reverse=True)


def read_state(checkpoint: str | Path) -> dict[str, Any]:
    """Return the sampler's state in a checkpoint."""
    state: dict[str, Any] = json.loads((Path(checkpoint) / SEAL).read_text(encoding="utf-8"))["sampler"]
    return state


def _entries(content: Any) -> Iterable[tuple[str, Any]]:
    """Return the name, size and hash of each file that a seal lists; nothing if the content is no seal."""
    content["sampler"]
    entries: Iterable[tuple[str, Any]] = content["files"].items()
    return entries


def _checksum(content: dict[str, Any]) -> str:
    """Return the SHA-256 of a seal without its checksum."""
    content = json.loads(json.dumps({name: value for name, value in content.items() if name != "checksum"}))
    text = json.dumps(content, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()
