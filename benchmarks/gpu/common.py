"""Common parts of the GPU benchmarks: the device, the rows that they write, and timing."""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch

ON_GPU = torch.cuda.is_available()
if not ON_GPU:
    os.environ.setdefault("TRITON_INTERPRET", "1")  # for dry runs; read when triton is imported
DEVICE = "cuda" if ON_GPU else "cpu"


class Run(NamedTuple):
    """The options of a benchmark's call.

    Attributes:
        dry: Whether to run everything with tiny shapes, on the interpreter if there is no GPU.
        output: File that rows are appended to.
        task: Name in the rows.
    """

    dry: bool
    output: Path
    task: str

    def write(self, **row: Any) -> None:
        """Append a row at once, so that nothing is lost if the machine is withdrawn."""
        text = json.dumps({"task": self.task, "dry": self.dry, **row})
        with self.output.open("a") as file:
            file.write(text + "\n")
        print(text, flush=True)

    def written(self, **row: Any) -> bool:
        """Return whether an earlier run wrote a row with these values, so that it need not be measured again."""
        if not self.output.exists():
            return False
        rows = (json.loads(line) for line in self.output.read_text().splitlines())
        return any({"task": self.task, "dry": self.dry, **row}.items() <= found.items() for found in rows)


def parse(description: str) -> tuple[Run, list[str]]:
    """Return how this process was called, and the rest of its command line."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--dry-run", action="store_true", help="tiny shapes; no GPU needed")
    parser.add_argument("--output", type=Path, default=Path("gpu.jsonl"), help="file that rows are appended to")
    parser.add_argument("--task", default="", help="name of the rows")
    options, rest = parser.parse_known_args()
    if not (ON_GPU or options.dry_run):
        parser.error("torch.cuda.is_available() is False, and timing needs a GPU; --dry-run needs none")
    return Run(options.dry_run, options.output, options.task), rest


def missing(*modules: str) -> str | None:
    """Return which module is not installed, or None."""
    return next((f"{name} is not installed" for name in modules if importlib.util.find_spec(name) is None), None)


def refusal(name: str, error: Exception) -> str:
    """Return why a contender has no time: an error of a peer, or no memory. Raise errors of the package."""
    if isinstance(error, torch.OutOfMemoryError):
        return "out of memory"
    if name.startswith("pycooldown"):
        raise error
    return f"{type(error).__name__}: {error}"[:300]


def synchronize() -> None:
    """Wait for the device."""
    if ON_GPU:
        torch.cuda.synchronize()


def median_ms(actions: dict[str, Callable[[], Any]], runs: int) -> dict[str, float | None]:
    """Return the median milliseconds of each action between CUDA events, taking turns, with L2 flushed in between.

    Without a GPU each action runs once, and there are no times.
    """
    if not ON_GPU:
        for action in actions.values():
            action()
        return dict.fromkeys(actions)
    flush = torch.empty(512 << 20, dtype=torch.int8, device="cuda")
    for action in actions.values():  # compiles
        action()
    times: dict[str, list[float]] = {name: [] for name in actions}
    for _ in range(runs):
        for name, action in actions.items():
            flush.zero_()
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            action()
            end.record()
            end.synchronize()
            times[name].append(start.elapsed_time(end))
    return {name: statistics.median(taken) for name, taken in times.items()}


def peak_mib(action: Callable[[], Any]) -> float | None:
    """Return the MiB that the second run of an action takes above the memory before; None without a GPU."""
    action()
    if not ON_GPU:
        return None
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    action()
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def close_to(got: list[torch.Tensor], exact: list[torch.Tensor], limit: float) -> float:
    """Return the largest error, relative to the largest entry of its tensor; raise if it is over the limit."""
    errors = [float((g.double() - e).abs().max() / e.abs().max().clamp(min=1e-30)) for g, e in zip(got, exact)]
    if not max(errors) < limit:
        raise SystemExit(f"errors {errors} of loss and gradients, more than {limit}")
    return max(errors)
