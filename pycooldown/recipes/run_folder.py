"""Check what a run's folder holds before training: nothing, this run, or another run that training would overwrite."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any, Literal

from pycooldown.recipes.history import RECIPE, SUMMARY, read_json
from pycooldown.recipes.run_lock import LOCK
from pycooldown.recipes.schema import Recipe

# Keys that do not change the result. Accumulation may change with the number of processes if their product stays.
_IRRELEVANT = {
    ("training", "workers"),
    ("training", "accumulation"),
    ("training", "allow_non_finite"),
    ("data", "path"),
    ("model", "folder"),  # the content counts
    *(("trainer", name) for name in ("report_to", "run_name", "project", "disable_tqdm", "log_level", "ddp_timeout")),
    *(("trainer", f"dataloader_{name}") for name in ("pin_memory", "persistent_workers", "prefetch_factor")),
}


def folder_state(output: Path, recipe: Recipe, resolved: dict[str, Any]) -> Literal["new", "interrupted", "finished"]:
    """Return the state of a recipe's run in a folder.

    Args:
        output: The folder; it need not exist.
        recipe: The recipe.
        resolved: The recipe with the fingerprint and sizes of its data, as `RECIPE` holds it.

    Raises:
        ValueError: If the folder holds something else or a run of another recipe; the message names the key that
            differs. Also if its run ended with losses that are not finite, which the recipe does not allow.
    """
    if not (output / RECIPE).exists():
        if output.is_dir() and any(path.suffix != ".partial" and path.name != LOCK for path in output.iterdir()):
            raise ValueError(f"{output} is not empty and holds no run; choose another folder")
        return "new"
    try:
        stored = read_json(output / RECIPE)
    except ValueError as error:
        raise ValueError(f"{error}; choose another folder") from error
    finished = (output / SUMMARY).exists()
    for section in sorted({*stored, *resolved}):
        theirs, mine = (
            stored.get(section) or {},
            resolved.get(section) or {},
        )  # older runs lack some sections
        if isinstance(theirs, dict) and isinstance(mine, dict):
            theirs = {**_later_keys(recipe, section, theirs), **theirs}
            for key in sorted({*theirs, *mine}):
                changes = (section, key) == ("training", "batch_size") and not finished
                if changes and _goes_on(theirs[key], mine[key]):  # the sampler checks the step of the change
                    continue
                if (section, key) not in _IRRELEVANT and _plain(theirs.get(key)) != _plain(mine.get(key)):
                    raise ValueError(
                        f"{output} holds a run of another recipe: {section}.{key} is {theirs.get(key)!r} there and "
                        f"{mine.get(key)!r} here; choose another folder"
                    )
        elif theirs != mine:
            raise ValueError(f"{output} holds a run of another recipe: {section} differs; choose another folder")
    if not finished:
        return "interrupted"
    if not recipe.training.allow_non_finite and (faults := _non_finite(read_json(output / SUMMARY))):
        raise ValueError(
            f"the run in {output} ended with a loss that is not finite ({', '.join(faults)}); train again with other "
            "settings in another folder, or accept it with training.allow_non_finite=true"
        )
    return "finished"


def _later_keys(recipe: Recipe, section: str, stored: dict[str, Any]) -> dict[str, Any]:
    """Return the defaults of keys that did not exist in recipes when a run was stored."""
    options = getattr(recipe, section, None)
    if not dataclasses.is_dataclass(options):
        return {}
    missing = dataclasses.MISSING
    return {f.name: f.default for f in dataclasses.fields(options) if f.name not in stored and f.default is not missing}


def _goes_on(theirs: Any, mine: Any) -> bool:
    """Return whether a batch-size ramp is another one with later changes appended."""
    before, now = ([[0, value]] if isinstance(value, int) else _plain(value) for value in (theirs, mine))
    return bool(now[: len(before)] == before)


def _non_finite(summary: dict[str, Any]) -> list[str]:
    losses = {domain: entry["loss"] for domain, entry in summary.get("domains", {}).items() if "loss" in entry}
    return [domain for domain, loss in losses.items() if loss is None or not math.isfinite(loss)]


def _plain(value: Any) -> Any:
    """Return a value in its JSON form; earlier versions wrote an infinite number as a number, now it is text."""
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
