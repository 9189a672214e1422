"""The command `train`: train one recipe."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from pycooldown.cli._app import Overrides, RecipeFile, app, console


@app.command()
def train(
    recipe: RecipeFile,
    overrides: Overrides = None,
    output: Annotated[Path | None, typer.Option(help="The run's folder; runs/<recipe's name> by default.")] = None,
    resume: Annotated[bool, typer.Option(help="Continue an interrupted run, if there is one.")] = False,
) -> None:
    """Train a recipe. If the folder already holds the finished run, nothing changes."""
    from pycooldown.recipes import load_recipe, train

    folder = output or Path("runs") / recipe.stem
    run = train(load_recipe(recipe, overrides or ()), folder, resume=resume)
    if int(os.environ.get("RANK", "0")) == 0:
        loss, seconds = run.summary["eval_loss"], run.summary["seconds"]
        console.print(f"{run.path}: finished, validation loss {loss:.3f}, trained in {seconds:.0f} s")
