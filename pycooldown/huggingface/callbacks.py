"""Show and store the logs of a run while it trains."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from torch.optim.lr_scheduler import LambdaLR
from transformers import ProgressCallback, TrainerCallback

from pycooldown._files import write_atomically
from pycooldown.huggingface.checkpoints import valid_json

_SPEED = ("_runtime", "_per_second", "_model_preparation_time")  # of one process, unlike ``seconds``


def _shown(logs: dict[str, Any]) -> dict[str, str]:
    return {name: f"{logs[name]:.4g}" for name in ("loss", "eval_loss", "tau") if logs.get(name) is not None}


class MixtureProgress(ProgressCallback):  # type: ignore[misc]
    """A progress bar that shows loss and temperature, instead of one line per log."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start the bar at the step where training continues."""
        super().on_train_begin(args, state, control, **kwargs)
        self._newest: dict[str, str] = {}
        if self.training_bar is not None:
            self.training_bar.update(state.global_step)
            self.current_step = state.global_step

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Show the newest values."""
        if self.training_bar is not None:
            self._newest |= _shown(logs)
            self.training_bar.set_postfix(self._newest)


class ProgressLines(TrainerCallback):  # type: ignore[misc]
    """A callback that prints a line for each log, for outputs that cannot show a progress bar."""

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Print the newest values."""
        values = ", ".join(f"{name} {value}" for name, value in _shown(logs).items())
        if values and state.is_world_process_zero:
            print(f"step {state.global_step}/{state.max_steps}: {values}", file=sys.stderr, flush=True)


class MetricsFile(TrainerCallback):  # type: ignore[misc]
    """A callback that appends Trainer's logs of training and evaluation to a file, one JSON object per line.

    ``seconds`` in a line is the training time so far, including evaluation and checkpoints. A resumed run first drops
    the lines after its checkpoint, then counts on from there.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._begin = time.perf_counter()

    @property
    def seconds(self) -> float:
        """Training time so far, over all processes that worked on the run."""
        return time.perf_counter() - self._begin

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Drop the lines that will be logged again."""
        lines = self.path.read_text(encoding="utf-8").splitlines() if self.path.exists() and state.global_step else []
        # Only the last line can be cut short, by the end of the process. It belongs to a step after the checkpoint.
        kept = [line for line in lines if line.endswith("}") and json.loads(line)["step"] <= state.global_step]
        write_atomically(self.path, "".join(f"{line}\n" for line in kept))
        self._begin = time.perf_counter() - (json.loads(kept[-1])["seconds"] if kept else 0.0)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Append a line."""
        if "loss" in logs or "eval_loss" in logs:
            kept = {name: value for name, value in logs.items() if not name.endswith(_SPEED)}
            entry = {"step": state.global_step, "seconds": round(self.seconds, 3), **kept}
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(valid_json(entry) + "\n")


class ResetAtStep(TrainerCallback):  # type: ignore[misc]
    """A callback that resets the optimizer's state or the learning rate before a step, as Order Matters does.

    The learning rate follows its whole schedule again, warm-up included, compressed to the remaining steps: s steps
    after the reset it has the value of step s * max_steps / (max_steps - step). So it ends as low as without a reset.
    A run that is resumed after the reset continues this schedule. A run resumed at the step of the reset resets again.
    """

    def __init__(self, step: int, *, optimizer: bool, learning_rate: bool) -> None:
        self.step = step
        self.optimizer = optimizer
        self.learning_rate = learning_rate

    def on_train_begin(self, args: Any, state: Any, control: Any, lr_scheduler: Any = None, **kwargs: Any) -> None:
        """Compress the learning rate's schedule, if the run is resumed after the reset."""
        if self.learning_rate and state.global_step > self.step:
            self._compress(lr_scheduler, state.max_steps)

    def on_step_begin(
        self, args: Any, state: Any, control: Any, optimizer: Any = None, lr_scheduler: Any = None, **kwargs: Any
    ) -> None:
        """Reset at the switch."""
        if state.global_step != self.step:
            return
        if self.optimizer:
            getattr(optimizer, "optimizer", optimizer).state.clear()
        if self.learning_rate:
            scheduler = self._compress(lr_scheduler, state.max_steps)
            scheduler.last_epoch = 0
            rates = [base * rate(0) for base, rate in zip(scheduler.base_lrs, scheduler.lr_lambdas, strict=True)]
            for group, rate in zip(scheduler.optimizer.param_groups, rates, strict=True):
                group["lr"] = rate
            scheduler._last_lr = rates  # the rates that Trainer logs

    def _compress(self, lr_scheduler: Any, max_steps: int) -> Any:
        """Compress the schedule of the learning rate to the steps that remain after the reset."""
        scheduler = getattr(lr_scheduler, "scheduler", lr_scheduler)
        if not isinstance(scheduler, LambdaLR):
            raise ValueError(
                f"the learning rate is scheduled by {type(scheduler).__name__}, which cannot be restarted; expected a "
                "function of the step (torch's LambdaLR), such as cosine, linear or inverse_sqrt"
            )
        scheduler.lr_lambdas = [
            partial(_compressed, course=course, factor=max_steps / (max_steps - self.step))
            for course in scheduler.lr_lambdas
        ]
        return scheduler


def _compressed(step: int, course: Callable[[Any], float], factor: float) -> float:
    return course(step * factor)
