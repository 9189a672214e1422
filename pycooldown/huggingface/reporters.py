"""Report the values of domains to TensorBoard and Weights & Biases, grouped by quantity, with histograms."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
from transformers import TrainerCallback
from transformers.integrations import TensorBoardCallback, WandbCallback

from pycooldown.mixture import Vector

# If there are more domains, only this many are sent one by one: those with the largest target. Histograms show all.
SHOWN_DOMAINS = 16

Values = dict[str, dict[str, float]]  # by quantity and domain


class LoggingTrainer(Protocol):
    """The part of the trainer's interface that the callbacks here use.

    Attributes:
        domains: All domains.
        newest_values: The values in the newest log, (K,) over all domains, by quantity.
    """

    domains: tuple[str, ...]
    newest_values: dict[str, Vector]

    def largest_domains(self, most: int) -> list[int]:
        """Return the positions of the ``most`` domains with the largest target, in the mixture's order."""


class _Grouped(TrainerCallback):  # type: ignore[misc]
    """A callback that sends values of domains as ``quantity/domain``, apart from Trainer's ``train/`` and ``eval/``."""

    source: LoggingTrainer

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Send a log."""
        plain, values = split_logs(logs, self.source)
        super().on_log(args, state, control, logs=plain, **kwargs)
        if not (values and state.is_world_process_zero):
            return
        shown = {self.source.domains[i] for i in self.source.largest_domains(SHOWN_DOMAINS)}
        scalars = {
            f"{name}/{domain}": value
            for name, found in values.items()
            for domain, value in found.items()
            if domain in shown
        }
        histograms = {}
        if len(self.source.domains) > SHOWN_DOMAINS:
            for name, found in self.source.newest_values.items():
                if np.isfinite(found).any():
                    histograms[f"{name}/all domains"] = found[np.isfinite(found)]
        self.send(scalars, histograms, state.global_step)

    def send(self, scalars: Mapping[str, float], histograms: Mapping[str, Vector], step: int) -> None:
        """Send values by tag, in the tool's own way."""
        raise NotImplementedError


class GroupedTensorBoard(_Grouped, TensorBoardCallback):  # type: ignore[misc]
    """TensorBoard's callback, with a group of charts for each quantity, and one chart with all its domains.

    The latter charts are in the tab "Custom Scalars". Logs after training go to the folder of the training's events.
    Unless a writer is given, this is the environment variable ``TENSORBOARD_LOGGING_DIR``, or
    ``TrainingArguments.logging_dir`` if the installed transformers has it; each version reads only one of them.
    """

    tb_writer: Any
    _laid_out: Any = None
    _folder: str | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Write the arguments."""
        self._open(args, state)
        super().on_train_begin(args, state, control, **kwargs)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Send a log."""
        self._open(args, state)
        super().on_log(args, state, control, logs=logs, **kwargs)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Close the writer, and keep its folder in mind."""
        if self.tb_writer is not None:
            self._folder = getattr(self.tb_writer, "log_dir", None) or getattr(self.tb_writer, "logdir", None)
        super().on_train_end(args, state, control, **kwargs)

    def _open(self, args: Any, state: Any) -> None:
        """Open a writer, if there is none and its folder is known."""
        if self.tb_writer is not None or not state.is_world_process_zero:
            return
        named = os.environ.get("TENSORBOARD_LOGGING_DIR") or getattr(args, "logging_dir", None)
        if self._folder is None and named:
            self._folder = os.path.expanduser(named)
        if self._folder is not None:
            self.tb_writer = self._SummaryWriter(log_dir=self._folder)

    def send(self, scalars: Mapping[str, float], histograms: Mapping[str, Vector], step: int) -> None:
        """Write values by tag."""
        writer = self.tb_writer
        if writer is None:
            return
        if self._laid_out is not writer:
            names = dict.fromkeys(tag.partition("/")[0] for tag in scalars)
            writer.add_custom_scalars({"domains": {name: ["Multiline", [f"^{name}/.*"]] for name in names}})
            self._laid_out = writer
        for tag, value in scalars.items():
            writer.add_scalar(tag, value, step)
        for tag, values in histograms.items():
            writer.add_histogram(tag, values, step)
        writer.flush()


class GroupedWandb(_Grouped, WandbCallback):  # type: ignore[misc]
    """The callback of Weights & Biases, with a section for each quantity."""

    def send(self, scalars: Mapping[str, float], histograms: Mapping[str, Vector], step: int) -> None:
        """Log values by key."""
        if self._wandb is not None:
            pictures = {tag: self._wandb.Histogram(values) for tag, values in histograms.items()}
            self._wandb.log({**scalars, **pictures, "train/global_step": step})


_KINDS = {TensorBoardCallback: GroupedTensorBoard, WandbCallback: GroupedWandb}


def group(callbacks: list[Any], source: LoggingTrainer) -> None:
    """Replace the callbacks of TensorBoard and Weights & Biases by grouping ones; a user's subclasses are kept.

    Args:
        callbacks: The trainer's callbacks; the list is changed.
        source: The trainer.
    """
    for i, callback in enumerate(callbacks):
        if (kind := _KINDS.get(type(callback))) is not None:
            grouped = kind.__new__(kind)
            grouped.__dict__.update(callback.__dict__, source=source)
            callbacks[i] = grouped


def split_logs(logs: Mapping[str, float], source: LoggingTrainer) -> tuple[dict[str, float], Values]:
    """Split logs into values of the whole run, and values of single domains by quantity and domain."""
    plain: dict[str, float] = {}
    values: Values = {}
    domains = set(source.domains)
    for key, value in logs.items():
        name, _, domain = key.partition("/")
        if name in source.newest_values and domain in domains:
            values.setdefault(name, {})[domain] = value
        else:
            plain[key] = value
    return plain, values
