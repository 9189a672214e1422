"""The part of `plan` that forecasts what a job reads from object stores."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rich.table import Table

from pycooldown.cli._app import console, right

if TYPE_CHECKING:
    from pycooldown.data.cache.plan import StorePlan
    from pycooldown.data.shards import TarDataset
    from pycooldown.recipes.schema import Recipe


def open_shards(store: list[str]) -> TarDataset:
    """Return the data set of ``domain=pattern`` texts, or of a folder.

    Raises:
        ValueError: If the first shard holds tokens: its members are no samples.
    """
    from pycooldown.data.shard_lists import parse_shards
    from pycooldown.data.shards import TarDataset

    dataset = TarDataset(parse_shards(store))
    for extension in ("tokens.u16", "tokens.u32"):
        with contextlib.suppress(KeyError, IndexError):
            dataset.locate([0], extension)
            raise ValueError(
                f"{dataset.objects[0].url} holds tokens, which a TokenDataset cuts into rows; --store needs shards of "
                "samples"
            )
    return dataset


def plan_stores(
    recipes: Mapping[str, Recipe], dataset: TarDataset, *, cache: list[str], depth: str | None, **options: int
) -> dict[str, StorePlan]:
    """Return the plan of each recipe; `options` are those of `plan_store`."""
    from pycooldown.recipes.store_plan import parse_bytes, plan_store

    limits = [parse_bytes(text) for text in cache]
    ahead = None if depth is None else parse_bytes(depth)
    return {
        name: plan_store(recipe, dataset, limits=limits, depth=ahead, **options) for name, recipe in recipes.items()
    }


def stores_as_json(plans: Mapping[str, StorePlan]) -> dict[str, Any]:
    """Return plans as JSON values."""
    from pycooldown.recipes.store_plan import to_dict

    return {name: to_dict(plan) for name, plan in plans.items()}


def print_store_plans(plans: Mapping[str, StorePlan]) -> None:
    """Print a table for each plan."""
    for name, plan in plans.items():
        title = f"{name}: {_bytes(plan.data_bytes)} in stores, {plan.uses_per_step:.0f} blocks a step"
        columns = ("share of data", "bytes fetched", "over bytes used", "requests", "a step")
        table = Table("cache", *(right(column) for column in columns), title=title)
        for found in plan.forecasts:
            table.add_row(
                _bytes(found.limit) + (" (too small)" if found.steps_over_limit else ""),
                f"{found.limit / max(1, plan.data_bytes):.0%}",
                _bytes(found.bytes_fetched),
                f"{found.bytes_fetched / max(1, found.bytes_used):.2f}",
                f"{found.requests:,}",
                f"{found.requests / max(1, plan.steps):.1f}",
            )
        console.print(table)
        smallest = f"The smallest cache at which nothing is fetched twice: {_bytes(plan.smallest_limit)}"
        console.print(f"{smallest} ({plan.smallest_limit} bytes).", soft_wrap=True)


def _bytes(number: int) -> str:
    value, units = float(number), ["B", "kB", "MB", "GB", "TB", "PB"]
    while value >= 1000 and len(units) > 1:
        value /= 1000
        units.pop(0)
    return f"{value:.3g} {units[0]}"
