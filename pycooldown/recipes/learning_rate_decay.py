"""Schedules of the learning rate."""

from __future__ import annotations

from functools import partial
from typing import Any, Literal

Decay = Literal["cosine", "inverse_sqrt", "exponential"]

_FINAL = 0.1  # final rate of "cosine" and "exponential", as a share of the highest rate
_LEFT = 1e-10 / 9e-4  # share of the decay that remains for "exponential" at the end


def arguments(decay: Decay) -> dict[str, Any]:
    """Return arguments of Trainer; for "exponential", which it lacks, see `exponential`."""
    if decay == "inverse_sqrt":
        return {"lr_scheduler_type": "inverse_sqrt"}
    return {"lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": {"min_lr_rate": _FINAL}}


def exponential(optimizer: Any, *, warmup: int, num_steps: int) -> Any:
    """Return a torch scheduler whose rate rises linearly and then decays exponentially to a tenth.

    This is the schedule of DoReMi's public code, whose AdamW goes from 1e-3 to 1e-4 after a warm-up of 6 % of the
    steps. t steps after the warm-up the rate is 1e-4 + 9e-4 gamma^t, with gamma such that 1e-10 of the second term
    remains at the end. So the rate is near its final value long before the end of the run.
    """
    from torch.optim.lr_scheduler import LambdaLR

    return LambdaLR(optimizer, partial(_exponential_rate, warmup=warmup, num_steps=num_steps))


def _exponential_rate(step: int, warmup: int, num_steps: int) -> float:
    if step < warmup:
        return (step + 1) / warmup
    return float(_FINAL + (1 - _FINAL) * _LEFT ** ((step - warmup) / max(1, num_steps - warmup)))
