"""The backends of the losses: the choice for a call, and their modules. See `contract` for what each computes."""

from __future__ import annotations

import importlib
import os
from typing import Literal, cast

import torch

from pycooldown._extras import shortcoming

from .contract import FUSED_DTYPES, FUSED_OPTIONS, Backend, KernelOptions, Outputs, SliceBackend, empty_gradient

__all__ = [
    "FUSED_OPTIONS",
    "Backend",
    "BackendName",
    "KernelOptions",
    "Outputs",
    "SliceBackend",
    "choose",
    "empty_gradient",
    "load",
    "load_fused",
]

BackendName = Literal["auto", "reference", "cpp", "triton"]
FUSED = {"cpu": "cpp", "cuda": "triton"}  # by device type

MINIMUM_TRITON = (3, 6)  # as in pyproject.toml
TRITON_SHORTCOMING = shortcoming("triton", MINIMUM_TRITON)  # looked up once, because losses are called at every step


def load(name: str) -> SliceBackend:
    """Return a backend's module, importing it on first use: triton is optional."""
    return cast(SliceBackend, importlib.import_module(f".{name}", __package__))


def load_fused(name: str) -> Backend:
    """Return the module of "cpp" or "triton"."""
    return cast(Backend, load(name))


def choose(backend: str, device: torch.device, dtype: torch.dtype, needs_reference: str | None) -> str:
    """Return the name of the backend that serves a call.

    Args:
        backend: "auto" for the device's fused backend if it supports the call, and "reference" otherwise; or the name
            of the backend that must be used.
        device: Device of the logits.
        dtype: Dtype of the logits.
        needs_reference: The part of the call that only plain torch operations can compute, or None.

    Raises:
        ValueError: If the named backend does not support the call.
    """
    if backend == "reference":
        return backend
    fused = FUSED.get(device.type)
    if backend == "triton" and fused == "cpp" and os.environ.get("TRITON_INTERPRET") == "1":
        fused = "triton"
    reason = needs_reference
    if fused is None or backend not in ("auto", fused):
        reason = f"input on {device}"
    elif dtype not in FUSED_DTYPES:
        reason = f"{dtype} logits"
    elif reason is None and fused == "triton":
        reason = TRITON_SHORTCOMING
    if reason is None:
        assert fused is not None
        return fused
    if backend == "auto":
        return "reference"
    raise ValueError(f"backend={backend!r} does not support {reason}; use backend='reference', or 'auto' to choose")
