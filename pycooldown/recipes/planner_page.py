"""The planner: a self-contained HTML file that computes plans in the browser, without a server."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from pycooldown.recipes.planning import domain_sizes
from pycooldown.recipes.schema import Recipe

_TEMPLATE = Path(__file__).with_name("planner.html")
# The methods that the page can compute. It has no methods that learn, and none that a user wrote in Python.
PAGE_METHODS = ("temperature", "scalarization", "cooldown", "anneal", "unimax", "order_matters")


def planner_page(recipes: Mapping[str, Recipe], sizes: Mapping[str, int] | None = None) -> str:
    """Return a page that shows the effect of methods on each domain, with sliders for options and the run's length.

    Args:
        recipes: Initial values of the page, by name: the method of each, and the length and data of the first.
        sizes: Training sequences of each domain; by default those of the first recipe's data.

    Raises:
        FileNotFoundError: If sizes are not given and the first recipe's data do not exist.
        ValueError: If there is no recipe, recipes differ in length, or the page cannot compute a method.
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
                    f"{name} has training.{key} = {theirs}, but the first recipe has {ours}; the page has one value "
                    f"for all: pass training.{key}=..."
                )
            if not isinstance(ours, int):
                raise ValueError(
                    f"{name} has training.{key} = {ours!r}; the page needs a number: pass training.{key}=..."
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
    )  # shows markup in names as text
    return _TEMPLATE.read_text(encoding="utf-8").replace("/*GIVEN*/", content)
