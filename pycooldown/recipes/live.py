"""A live table of the domains in the terminal, updated by each log."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text
from transformers import TrainerCallback

_ROWS = 30  # rows that fit a terminal; with more domains, those with the largest target


def domain_table(logs: Mapping[str, Any]) -> Table:
    """Return a table with a row for each domain of a trainer's log, by decreasing target.

    The shares of samples and tokens cover all draws so far; loss, target and weight are those of the log.
    """
    of = {
        name: {key.partition("/")[2]: value for key, value in logs.items() if key.startswith(f"{name}/")}
        for name in ("target", "samples", "tokens", "epochs", "loss", "v")
    }
    samples, tokens = (sum(of[name].values()) or 1 for name in ("samples", "tokens"))
    table = Table("domain", "target", "samples", "tokens", "epochs", "loss", "weight")
    for column in table.columns[1:]:
        column.justify = "right"
    domains = sorted(of["target"], key=lambda domain: -of["target"][domain])
    for domain in domains[:_ROWS]:
        loss = of["loss"].get(domain)
        table.add_row(
            domain,
            f"{of['target'][domain]:.2%}",
            f"{of['samples'][domain] / samples:.2%}",
            f"{of['tokens'][domain] / tokens:.2%}",
            f"{of['epochs'][domain]:.2f}",
            "" if loss is None else f"{loss:.4f}",  # no sample was drawn since the last log
            f"{of['v'][domain]:.3g}",
        )
    if len(domains) > _ROWS:
        table.caption = f"and {len(domains) - _ROWS} more"
    return table


def time_left(seconds: float, done: int, left: int) -> str:
    """Return the estimated time of the remaining steps at the pace so far, as h:mm:ss."""
    if done <= 0:
        return "?"
    minutes, rest = divmod(round(seconds / done * left), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


class LiveTable(TrainerCallback):  # type: ignore[misc]
    """A callback that shows the domains and the time left, in place of a progress bar.

    Args:
        console: Where to print; by default the terminal of stderr.
    """

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True)
        self._live: Live | None = None
        self._table: Table | None = None
        self._begin = self._drawn = 0.0
        self._first = 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start drawing, on one rank only."""
        self._begin, self._first, self._drawn = time.perf_counter(), state.global_step, -1.0
        if state.is_world_process_zero:
            self._live = Live(console=self.console, auto_refresh=False)
            self._live.start()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Show the new step."""
        self._draw(state)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Show training logs."""
        if "loss" in logs and any(name.startswith("target/") for name in logs):
            self._table = domain_table(logs)
            self._draw(state)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Leave the last table on the screen."""
        self.close()

    def close(self) -> None:
        """Release the terminal, also if training has failed."""
        if self._live is not None:
            self._live.refresh()
            self._live.stop()
            self._live = None

    def _draw(self, state: Any) -> None:
        if self._live is None:
            return
        seconds = time.perf_counter() - self._begin
        left = time_left(seconds, state.global_step - self._first, state.max_steps - state.global_step)
        line = Text(f"step {state.global_step}/{state.max_steps}, {left} left")
        self._live.update(line if self._table is None else Group(self._table, line), refresh=False)
        if seconds - self._drawn >= 0.25:  # a few updates per second are enough
            self._live.refresh()
            self._drawn = seconds
