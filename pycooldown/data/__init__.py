"""Data of many domains: tar shards and tokens at random access, streams, packing and feeding.

Each name is loaded when it is first used, so that `TarDataset` and `TokenDataset` need neither torch nor webdataset nor
numba (but for what `TokenDataset` packs by best fit).
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pycooldown.data.cache import KnownFutureCache as KnownFutureCache
    from pycooldown.data.packing import Packed as Packed
    from pycooldown.data.packing import pack_sequences as pack_sequences
    from pycooldown.data.pipeline import mix as mix
    from pycooldown.data.prefetch import DevicePrefetcher as DevicePrefetcher
    from pycooldown.data.shards import TarDataset as TarDataset
    from pycooldown.data.tokens import TokenDataset as TokenDataset

_HOMES = {
    "DevicePrefetcher": "prefetch",
    "KnownFutureCache": "cache",
    "Packed": "packing",
    "TarDataset": "shards",
    "TokenDataset": "tokens",
    "mix": "pipeline",
    "pack_sequences": "packing",
}

__all__ = ["DevicePrefetcher", "KnownFutureCache", "Packed", "TarDataset", "TokenDataset", "mix", "pack_sequences"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
