"""The command line: each command calls the library and prints what it returns.

A command is a function in one of the files here, decorated with `app.command()`. Every file is imported below. Commands
import the library inside their functions, so that ``pycooldown --help`` loads nothing heavy.
"""

from pycooldown._extras import require

require("cli", "typer", "rich", "yaml", "pydantic")

from pycooldown.cli import _options, data, tokenize, index, planning, training, results, sweeping, fitting, deprecated  # noqa: E402, F401, I001  # as in --help
from pycooldown.cli._app import app, console, main, names, progress_bars, run  # noqa: E402

__all__ = ["app", "console", "main", "names", "progress_bars", "run"]
