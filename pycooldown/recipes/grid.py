"""A grid of overrides: a named recipe for every combination of comma-separated values."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path

from pycooldown.recipes.loading import load_recipe
from pycooldown.recipes.schema import Recipe

MAX_POINTS = 10_000


@dataclass(frozen=True)
class GridPoint:
    """A recipe of a sweep.

    Attributes:
        recipe: The recipe with its overrides.
        settings: The overrides that differ over the grid, as text by key; empty without a grid.
    """

    recipe: Recipe
    settings: Mapping[str, str] = field(default_factory=dict)


def expand_grid(paths: Sequence[str | Path], overrides: Sequence[str] = ()) -> dict[str, GridPoint]:
    """Return every recipe with every combination of the overrides' values, by name.

    A recipe's name is that of its file, followed by the values that differ: ``cooldown-tau=2-switch_at=.3``.

    Args:
        paths: YAML files.
        overrides: Texts ``section.key=value``. Values separated by commas outside brackets and quotes span the grid, as
            in ``mixture.tau=2,3,5``.

    Raises:
        ValueError: If a recipe is invalid (see `load_recipe`), two share a name, a key is given twice, or the grid
            has more than `MAX_POINTS` points.
        FileNotFoundError: If there is no such file.
    """
    axes: dict[str, list[str]] = {}
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals:
            raise ValueError(f"override {override!r}: expected section.key=value[,value...], as in mixture.tau=2,3,5")
        if key in axes:
            raise ValueError(f"{key} is given twice; expected its values in one list, as in {key}=2,3,5")
        axes[key] = split_values(text)
    count = len(paths)
    for values in axes.values():
        count *= len(values)
    if count > MAX_POINTS:
        raise ValueError(f"the grid has {count:,} points; expected at most {MAX_POINTS:,}; leave some values out")
    varied = [key for key, values in axes.items() if len(values) > 1]
    lasts = [key.rpartition(".")[2] for key in varied]
    labels = {key: last if lasts.count(last) == 1 else key for key, last in zip(varied, lasts, strict=True)}
    points: dict[str, GridPoint] = {}
    for path in paths:
        for combination in product(*axes.values()):
            chosen = dict(zip(axes, combination, strict=True))
            name = "-".join([Path(path).stem, *(f"{labels[key]}={_plain(chosen[key])}" for key in varied)])
            if name in points:
                raise ValueError(f"two recipes have the name {name}; rename a file, or choose other values")
            recipe = load_recipe(path, [f"{key}={value}" for key, value in chosen.items()])
            points[name] = GridPoint(recipe, {key: chosen[key] for key in varied})
    return points


def split_values(text: str) -> list[str]:
    """Return the values in a text, separated by commas outside brackets and quotes."""
    values, depth, quote = [""], 0, ""
    for character in text:
        if quote:
            quote = "" if character == quote else quote
        elif character in "\"'":
            quote = character
        elif character in "[{":
            depth += 1
        elif character in "]}":
            depth -= 1
        if character == "," and not depth and not quote:
            values.append("")
        else:
            values[-1] += character
    return [value.strip() for value in values]


def _plain(value: str) -> str:
    return re.sub(r"[^\w.+-]+", "_", value)
