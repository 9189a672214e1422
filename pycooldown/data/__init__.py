"""Data of many domains: tar shards and tokens at random access, streams, packing and feeding.

Each name is loaded when it is first used, so `TarDataset` and `TokenDataset` need no torch or webdataset.
`TokenDataset` needs numba only for best-fit packing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pycooldown.data.best_fit import Packed as Packed
    from pycooldown.data.best_fit import pack_sequences as pack_sequences
    from pycooldown.data.byte_ranges import ByteRanges as ByteRanges
    from pycooldown.data.byte_ranges import Spans as Spans
    from pycooldown.data.byte_ranges import StoreRanges as StoreRanges
    from pycooldown.data.cache import KnownFutureCache as KnownFutureCache
    from pycooldown.data.index_building import build_index as build_index
    from pycooldown.data.pipeline import mix as mix
    from pycooldown.data.shards import TarDataset as TarDataset
    from pycooldown.data.tokens import TokenDataset as TokenDataset

_HOMES = {
    "ByteRanges": "byte_ranges",
    "KnownFutureCache": "cache",
    "Packed": "best_fit",
    "Spans": "byte_ranges",
    "StoreRanges": "byte_ranges",
    "TarDataset": "shards",
    "TokenDataset": "tokens",
    "build_index": "index_building",
    "mix": "pipeline",
    "pack_sequences": "best_fit",
}

__all__ = [
    "ByteRanges",
    "KnownFutureCache",
    "Packed",
    "Spans",
    "StoreRanges",
    "TarDataset",
    "TokenDataset",
    "build_index",
    "mix",
    "pack_sequences",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
