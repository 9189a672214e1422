"""Data of many domains: tar shards at random access, streams, packing and feeding.

Each name is loaded when it is first used, so that `TarDataset` needs neither torch nor webdataset nor numba.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .shards import TarDataset as TarDataset

_HOMES = {"TarDataset": "shards"}

__all__ = ["TarDataset"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
