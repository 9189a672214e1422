"""The course of the learning rate over a run."""

from __future__ import annotations

from functools import partial
from typing import Any, Literal

Decay = Literal["cosine", "inverse_sqrt", "exponential"]

_FINAL = 0.1  # what "cosine" and "exponential" end with, as a share of the highest rate


def arguments(decay: Decay) -> dict[str, Any]:
    """Return arguments of Trainer; for "exponential", which it lacks, see `exponential`."""
    if decay == "inverse_sqrt":
        return {"lr_scheduler_type": "inverse_sqrt"}
    return {"lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": {"min_lr_rate": _FINAL}}


def exponential(optimizer: Any, *, warmup: int, num_steps: int) -> Any:
    """Return a scheduler of torch whose rate rises linearly and then falls by the same factor each step, to a tenth.

    As in the public code of DoReMi, whose AdamW goes from 1e-3 to 1e-4 after a warm-up of 6 % of the steps.
    """
    from torch.optim.lr_scheduler import LambdaLR

    return LambdaLR(optimizer, partial(_exponential_rate, warmup=warmup, num_steps=num_steps))


def _exponential_rate(step: int, warmup: int, num_steps: int) -> float:
    if step < warmup:
        return (step + 1) / warmup
    return float(_FINAL ** ((step - warmup) / max(1, num_steps - warmup)))
