"""What is shown and kept of a run while it trains."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

from transformers import ProgressCallback, TrainerCallback

from pycooldown.huggingface.checkpoints import valid_json, write_atomically


def _shown(logs: dict[str, Any]) -> dict[str, str]:
    return {name: f"{logs[name]:.4g}" for name in ("loss", "eval_loss", "tau") if logs.get(name) is not None}


class MixtureProgress(ProgressCallback):  # type: ignore[misc]
    """The progress bar with loss and temperature beside it, in place of a line for each log."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Starts the bar at the step that training goes on from."""
        super().on_train_begin(args, state, control, **kwargs)
        self._newest: dict[str, str] = {}
        if self.training_bar is not None:
            self.training_bar.update(state.global_step)
            self.current_step = state.global_step

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Shows the newest values."""
        if self.training_bar is not None:
            self._newest |= _shown(logs)
            self.training_bar.set_postfix(self._newest)


class ProgressLines(TrainerCallback):  # type: ignore[misc]
    """A line for each log, where no terminal shows a bar."""

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Prints the newest values."""
        values = ", ".join(f"{name} {value}" for name, value in _shown(logs).items())
        if values and state.is_world_process_zero:
            print(f"step {state.global_step}/{state.max_steps}: {values}", file=sys.stderr, flush=True)


class MetricsFile(TrainerCallback):  # type: ignore[misc]
    """Appends what Trainer logs of training and evaluation to a file, one JSON object in a line.

    ``seconds`` in a line is the time of training up to it, evaluation and checkpoints included. A run that is resumed
    first drops the lines beyond its checkpoint and counts on from there.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._begin = time.perf_counter()

    @property
    def seconds(self) -> float:
        """Time of training so far, over all processes that went on with the run."""
        return time.perf_counter() - self._begin

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Drops what will be logged again."""
        lines = self.path.read_text(encoding="utf-8").splitlines() if self.path.exists() and state.global_step else []
        # A line that the end of the process cut short is the last one, of a step beyond the checkpoint.
        kept = [line for line in lines if line.endswith("}") and json.loads(line)["step"] <= state.global_step]
        write_atomically(self.path, "".join(f"{line}\n" for line in kept))
        self._begin = time.perf_counter() - (json.loads(kept[-1])["seconds"] if kept else 0.0)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Appends a line."""
        if "loss" in logs or "eval_loss" in logs:
            entry = {"step": state.global_step, "seconds": round(self.seconds, 3), **logs}
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(valid_json(entry) + "\n")


class ResetAtStep(TrainerCallback):  # type: ignore[misc]
    """Empty the optimizer's state or start the learning rate again before a step, as Order Matters does at its switch.

    A run that is resumed finds the outcome in its checkpoint; one from the very step of the reset resets once more.
    """

    def __init__(self, step: int, *, optimizer: bool, learning_rate: bool) -> None:
        self.step = step
        self.optimizer = optimizer
        self.learning_rate = learning_rate

    def on_step_begin(
        self, args: Any, state: Any, control: Any, optimizer: Any = None, lr_scheduler: Any = None, **kwargs: Any
    ) -> None:
        """Resets at the switch."""
        if state.global_step != self.step:
            return
        if self.optimizer:
            getattr(optimizer, "optimizer", optimizer).state.clear()
        if self.learning_rate:
            scheduler = getattr(lr_scheduler, "scheduler", lr_scheduler)
            scheduler.last_epoch = 0
            rates = [base * rate(0) for base, rate in zip(scheduler.base_lrs, scheduler.lr_lambdas, strict=True)]
            for group, rate in zip(scheduler.optimizer.param_groups, rates, strict=True):
                group["lr"] = rate
            scheduler._last_lr = rates  # what is logged
