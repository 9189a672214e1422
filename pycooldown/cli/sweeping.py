"""The command `sweep`: train several recipes and compare them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from pycooldown.cli._app import app, console, names, right, split_arguments

if TYPE_CHECKING:
    from pycooldown.recipes.sweep_results import Sweep

Recipes = Annotated[
    list[str],
    typer.Argument(
        help="Recipes on the same data, and values that replace theirs. Several values span a grid: "
        "mixture.tau=2,3,5 mixture.switch_at=.3,.5",
        metavar="RECIPE.yaml|KEY=VALUE,...",
    ),
]
Output = Annotated[Path, typer.Option(help="Folder for the runs and the results.")]
Seeds = Annotated[str, typer.Option(help="Seeds, comma-separated.")]
Set = Annotated[list[str] | None, typer.Option("--set", help="The same as an argument KEY=VALUE,...")]


@app.command()
def sweep(
    recipes: Recipes,
    output: Output = Path("sweep"),
    seeds: Seeds = "0",
    workers: Annotated[int, typer.Option(help="Processes that train in parallel.")] = 1,
    override: Set = None,
) -> None:
    """Train recipes over a grid of values and seeds, and compare them: tables, paired differences, CSV, JSON, figures.

    An interrupted sweep continues where it stopped. Differences are relative to the first recipe.
    """
    run_and_print(recipes, output, seeds, workers, override)


def run_and_print(recipes: list[str], output: Path, seeds: str, workers: int, override: list[str] | None) -> None:
    """Run a sweep and print its tables."""
    from pycooldown.recipes.grid import expand_grid
    from pycooldown.recipes.sweep import run_sweep

    numbers = [_seed(seed) for seed in names(seeds) or ()]
    paths, overrides = split_arguments(recipes)
    if not paths:
        raise ValueError("recipes are missing; expected YAML files, as in recipes/demo/")
    points = expand_grid(paths, [*overrides, *(override or ())])
    result = run_sweep(points, numbers, output, workers=workers, on_run=lambda path: console.print(f"{path}: finished"))
    _print(result)
    console.print(f"wrote {output}/sweep.md, sweep.json, sweep.csv and pictures", soft_wrap=True)


def _seed(text: str) -> int:
    if not text.isdecimal():
        raise ValueError(f"--seeds has {text!r}; expected whole numbers >= 0, comma-separated, as in 0,1,2")
    return int(text)


def _print(result: Sweep) -> None:
    tables = [(result.title(m), result.recipes, rows) for m, rows in result.tables.items()]
    differences = [(result.difference_title(m), result.recipes[1:], rows) for m, rows in result.differences.items()]
    for title, columns, rows in [*tables, *differences]:
        table = Table("domain", right("size"), title=title)
        for name in columns:
            table.add_column(name, justify="right", overflow="fold")
        for name, size, cells in rows:
            table.add_row(name, f"{size:,}", *map(str, cells))
        console.print(table)
