"""Options of the application itself."""

from typing import Annotated

import typer

from pycooldown.cli._app import app


def _print_version(wanted: bool) -> None:
    if wanted:
        from pycooldown import __version__

        typer.echo(f"pycooldown {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Train on heavily imbalanced domains: temperature sampling, scalarization and Cooldown."""
