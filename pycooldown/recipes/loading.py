"""Reading recipes: a YAML file and overrides become a `Recipe`, or one error that lists all mistakes."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from pycooldown._yaml import parse_yaml, read_yaml
from pycooldown.recipes.mistakes import describe, shown
from pycooldown.recipes.schema import Recipe


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe.

    Args:
        path: A YAML file.
        overrides: ``section.key=value`` each, also deeper, as in ``model.config.hidden_size=512``, or a whole section,
            as in ``mixture={method: cooldown}``; values are as in YAML.

    Returns:
        The recipe.

    Raises:
        ValueError: For keys, types or values that are not accepted. The message names the file and lists every mistake:
            the key, what came, what is expected, and known keys of a similar name.
        OSError: If there is no such file, or it is a folder or a pipe.
    """
    try:
        values = read_yaml(path)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} holds {shown(values)}; expected sections data, training, mixture, ...")
    return recipe_of(values, str(path), overrides)


def recipe_of(values: dict[str, Any], source: str, overrides: Sequence[str] = ()) -> Recipe:
    """Return the recipe that a mapping and overrides describe; see `load_recipe`.

    Args:
        values: Sections by name.
        source: What errors call the mapping.
        overrides: As `load_recipe` takes them.
    """
    values = copy.deepcopy(values)
    for override in overrides:
        *path, name, value = _override(override)
        section = values
        for depth, key in enumerate(path, start=1):
            inner = section.setdefault(key, {})
            if not isinstance(inner, dict):
                raise ValueError(f"{source}: {'.'.join(path[:depth])} is {shown(inner)}; expected a section of keys")
            section = inner
        section[name] = value
    if overrides:
        source = f"{source} with {shown(' '.join(overrides), quoted=False)}"
    try:
        recipe: Recipe = TypeAdapter(Recipe).validate_python(values)
    except ValidationError as error:
        found = describe(error, values)
        if len(found) == 1:
            raise ValueError(f"{source}: {found[0]}") from error
        lines = "".join(f"\n  {mistake}" for mistake in found)
        raise ValueError(f"{source} has {len(found)} mistakes:{lines}") from error
    return recipe


def _override(text: str) -> tuple[Any, ...]:
    """Return the keys of ``section.key=value`` from the outermost on, and the value."""
    path, equals, value = text.partition("=")
    keys = path.split(".")
    if not equals or not all(keys):
        raise ValueError(f"override {shown(text, typed=False)}: expected section.key=value, as in training.steps=200")
    try:
        return *keys, parse_yaml(value)
    except ValueError as error:
        raise ValueError(f"override {shown(text, typed=False)}: {error}") from error
