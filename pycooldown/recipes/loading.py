"""Reading recipes: a YAML file and overrides become a `Recipe`, or one error that lists all mistakes."""

from __future__ import annotations

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
        overrides: ``section.key=value`` each, the value as in YAML.

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
    """Return the recipe in a mapping, which overrides are written into; see `load_recipe`.

    Args:
        values: Sections by name.
        source: What errors call the mapping.
        overrides: ``section.key=value`` each, the value as in YAML.
    """
    values = {key: dict(section) if isinstance(section, dict) else section for key, section in values.items()}
    for override in overrides:
        section, name, value = _override(override)
        if not isinstance(values.setdefault(section, {}), dict):
            raise ValueError(f"{source}: {section} is {shown(values[section])}; expected a section of keys")
        values[section][name] = value
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


def _override(text: str) -> tuple[str, str, Any]:
    """Return section, key and value of ``section.key=value``."""
    key, equals, value = text.partition("=")
    section, dot, name = key.partition(".")
    if not (equals and dot and section and name):
        raise ValueError(f"override {shown(text, typed=False)}: expected section.key=value, as in training.steps=200")
    try:
        return section, name, parse_yaml(value)
    except ValueError as error:
        raise ValueError(f"override {shown(text, typed=False)}: {error}") from error
