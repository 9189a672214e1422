"""Data of many domains: tar shards and tokens at random access, streams, packing and feeding.

Each name is loaded when it is first used, so that `TarDataset` and `TokenDataset` need neither torch nor webdataset nor
numba (but for what `TokenDataset` packs by best fit).
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pycooldown.data.best_fit import Packed as Packed
    from pycooldown.data.best_fit import pack_sequences as pack_sequences
    from pycooldown.data.pipeline import mix as mix
    from pycooldown.data.shards import TarDataset as TarDataset
    from pycooldown.data.tokens import TokenDataset as TokenDataset

_HOMES = {
    "Packed": "best_fit",
    "TarDataset": "shards",
    "TokenDataset": "tokens",
    "mix": "pipeline",
    "pack_sequences": "best_fit",
}

__all__ = ["Packed", "TarDataset", "TokenDataset", "mix", "pack_sequences"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
