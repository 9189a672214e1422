"""Stopping a run whose loss is not finite."""

from __future__ import annotations

import math
from typing import Any

from transformers import TrainerCallback


class StopAtNonFinite(TrainerCallback):  # type: ignore[misc]
    """Raise an error at the first log with a loss that is not finite, before a checkpoint is written.

    All ranks log the same losses, so all of them stop.
    """

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Look at the losses of training and evaluation.

        Raises:
            FloatingPointError: If one is not finite, naming the step and the domains.
        """
        for kind, name in (("training", "loss"), ("validation", "eval_loss")):
            values = {key: value for key, value in logs.items() if key == name or key.startswith(f"{name}/")}
            faults = [key for key, value in values.items() if not math.isfinite(value)]
            if not faults:
                continue
            domains = ", ".join(repr(key.partition("/")[2]) for key in faults if "/" in key) or "none alone"
            since = f"in steps {max(1, state.global_step - args.logging_steps + 1)} to" if name == "loss" else "at step"
            raise FloatingPointError(
                f"the {kind} loss is {values.get(name)} {since} {state.global_step} (domains: {domains}); lower the "
                "learning rate or look at the data of these domains, or train on with training.allow_non_finite=true"
            )
