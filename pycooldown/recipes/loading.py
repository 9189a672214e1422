"""Read recipes: turn a YAML file and overrides into a `Recipe`, or raise one error that lists all mistakes."""

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
        overrides: Texts ``section.key=value``, with deeper keys as in ``model.config.hidden_size=512``, or a whole
            section as in ``mixture={method: cooldown}``. Values are YAML.

    Returns:
        The recipe.

    Raises:
        ValueError: For keys, types or values that are not accepted. The message names the file and lists every mistake
            with the key, the given value, the expected one, and known keys with a similar name.
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
        source: Name of the mapping in errors.
        overrides: As for `load_recipe`.
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
    """Return the keys of ``section.key=value``, from the outermost inwards, and the value."""
    path, equals, value = text.partition("=")
    keys = path.split(".")
    if not equals or not all(keys):
        raise ValueError(f"override {shown(text, typed=False)}: expected section.key=value, as in training.steps=200")
    try:
        return *keys, parse_yaml(value)
    except ValueError as error:
        raise ValueError(f"override {shown(text, typed=False)}: {error}") from error
