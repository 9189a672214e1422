"""The application that commands are registered with, and helpers for their output."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.progress import Progress as RichProgress
from rich.progress import TaskID
from rich.table import Column

from pycooldown.cli._console import PlainConsole, visible

if TYPE_CHECKING:
    from pycooldown.data.publish import Progress

console = PlainConsole()
app = typer.Typer(
    name="pycooldown",
    help="Train on heavily imbalanced domains: temperature sampling, scalarization and Cooldown.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

RecipeFile = Annotated[Path, typer.Argument(help="A recipe, as in recipes/demo/.", metavar="RECIPE.yaml")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(help="Values that replace the recipe's: training.steps=200 ...", metavar="KEY=VALUE"),
]


def main() -> None:
    """Run the command line."""
    run(app)


def run(app: typer.Typer) -> None:
    """Run an application and print a user's error in one line; PYCOOLDOWN_TRACEBACK=1 shows the traceback."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # hide the progress bars of single checkpoint files
    try:
        app()
    except (ValueError, OSError, ImportError, RuntimeError, ArithmeticError) as error:
        if os.environ.get("PYCOOLDOWN_TRACEBACK"):
            raise
        errors = PlainConsole(stderr=True)
        errors.print("error: ", style="bold red", end="")
        errors.print(f"{type(error).__name__}: {error}", soft_wrap=True)
        sys.exit(1)


def warn(message: str) -> None:
    """Print a warning to standard error."""
    errors = PlainConsole(stderr=True)
    errors.print("warning: ", style="bold yellow", end="")
    errors.print(message, soft_wrap=True)


def right(name: str) -> Column:
    """Return a right-aligned column, for numbers."""
    return Column(name, justify="right")


def names(text: str | None) -> list[str] | None:
    """Return the names in a comma-separated list."""
    return None if text is None else [name.strip() for name in text.split(",") if name.strip()]


def numbers(text: str, what: str) -> list[float]:
    """Return the numbers in a comma-separated list.

    Raises:
        ValueError: If there is no number, or a part is not a number.
    """
    try:
        values = [float(part) for part in text.split(",") if part.strip()]
    except ValueError:
        values = []
    if not values:
        raise ValueError(f"{what} {text!r}; expected numbers, comma-separated, as in 2,3,5")
    return values


def split_arguments(arguments: list[str]) -> tuple[list[Path], list[str]]:
    """Return the recipes and the overrides among a command's arguments; a file may have "=" in its name."""
    overrides = [text for text in arguments if "=" in text and not Path(text).is_file()]
    return [Path(text) for text in arguments if text not in overrides], overrides


@contextmanager
def progress_bars() -> Iterator[Progress]:
    """Show a bar for each phase of a long call."""
    with RichProgress(*RichProgress.get_default_columns(), console=console) as bars:
        tasks: dict[str, TaskID] = {}

        def show(phase: str, done: int, total: int) -> None:
            if phase not in tasks:
                tasks[phase] = bars.add_task(visible(phase, markup=True), total=total)
            bars.update(tasks[phase], completed=done, total=total)

        yield show
