"""Former names of commands: for one release they still work, or tell the new name."""

from __future__ import annotations

from pathlib import Path

import typer

from pycooldown.cli._app import app, warn
from pycooldown.cli.sweeping import Output, Recipes, Seeds, Set, run_and_print


@app.command(hidden=True)
def compare(recipes: Recipes, output: Output = Path("comparison"), seeds: Seeds = "0", override: Set = None) -> None:
    """Run `pycooldown sweep`, the new name of this command."""
    warn("`pycooldown compare` is now `pycooldown sweep`; the next release removes the old name")
    run_and_print(recipes, output, seeds, 1, override)


_PLACES = {"corpus": "corpus", "reproduce": "reproduce", "study": "regimes"}  # in `python -m reproduction`


def _moved(context: typer.Context) -> None:
    name = str(context.info_name)
    raise ValueError(
        f"`pycooldown {name}` is now `python -m reproduction {_PLACES[name]}` in a clone of the repository: it is no "
        "longer part of the installed package"
    )


for _name in _PLACES:
    app.command(
        _name,
        hidden=True,
        help="Moved to `python -m reproduction`.",
        add_help_option=False,
        context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
    )(_moved)
