"""The planner: one HTML file that plans in the browser, without a server or other files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from pycooldown.recipes.planning import domain_sizes
from pycooldown.recipes.schema import Recipe

_TEMPLATE = Path(__file__).with_name("planner.html")
# The methods whose arithmetic the page has. It cannot have those that learn, nor those that a user wrote in Python.
PAGE_METHODS = ("temperature", "scalarization", "cooldown", "anneal", "unimax", "order_matters")


def planner_page(recipes: Mapping[str, Recipe], sizes: Mapping[str, int] | None = None) -> str:
    """Return a page that shows what methods do to each domain, with sliders for their options and the run's length.

    Args:
        recipes: What the page begins with: the method of each, and the length and data of the first. By name.
        sizes: Training sequences of each domain; by default those of the first recipe's data.

    Raises:
        FileNotFoundError: If sizes are not given and the first recipe's data are not there.
        ValueError: If there is no recipe, the recipes differ in length, or the page does not know a method.
    """
    if not recipes:
        raise ValueError("recipes is empty; expected at least one")
    first = next(iter(recipes.values()))
    for name, recipe in recipes.items():
        if recipe.mixture.name not in PAGE_METHODS:
            raise ValueError(
                f"{name}: the page cannot compute method {recipe.mixture.name!r}; expected one of "
                f"{', '.join(PAGE_METHODS)}; leave it out, or plan without --html"
            )
        for key in ("steps", "batch_size"):
            ours, theirs = getattr(first.training, key), getattr(recipe.training, key)
            if ours != theirs:
                raise ValueError(
                    f"{name} has training.{key} = {theirs}, the first recipe {ours}; the page has one for all: "
                    f"give training.{key}=..."
                )
            if not isinstance(ours, int):
                raise ValueError(
                    f"{name} has training.{key} = {ours!r}; the page needs a number: give training.{key}=..."
                )
    given = {
        "sizes": list((domain_sizes(first) if sizes is None else sizes).items()),
        "steps": first.training.steps,
        "batch_size": first.training.batch_size,
        "path": first.data.path,
        "methods": [recipe.to_dict()["mixture"] for recipe in recipes.values()],
    }
    content = json.dumps(given, ensure_ascii=False, allow_nan=False).replace(
        "<", "\\u003c"
    )  # markup in names is shown as text
    return _TEMPLATE.read_text(encoding="utf-8").replace("/*GIVEN*/", content)
