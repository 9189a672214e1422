"""Stages for pipelines after `mix`: batches that hold nothing back, and a list of webdataset's stages that do not."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

from pycooldown._extras import require

require("data", "webdataset")

from webdataset import filters  # noqa: E402

__all__ = ["Batches", "held_back_by"]

# When these stages yield, everything that they have taken has come out or has been dropped.
_PASS_ON = [
    stage.f
    for stage in (
        filters.associate,
        filters.decode,
        filters.extract_keys,
        filters.info,
        filters.log_keys,
        filters.map,
        filters.map_dict,
        filters.map_tuple,
        filters.rename,
        filters.rename_keys,
        filters.rsample,
        filters.select,
        filters.to_tuple,
        filters.xdecode,
    )
]


@dataclass(frozen=True)
class Batches:
    """A stage that yields a batch as soon as it is full; webdataset's own stage first takes the next sample.

    Args:
        size: Samples in a batch.
        collate: Makes a batch from a list of samples; `None` for the list itself.
        partial: Whether to yield the last batch if it has fewer samples.
    """

    size: int
    collate: Callable[[list[Any]], Any] | None
    partial: bool

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"batchsize = {self.size}; expected at least 1 sample")

    def __call__(self, samples: Iterable[Any]) -> Iterator[Any]:
        """Yield the batches of the samples."""
        samples = iter(samples)
        while len(batch := list(islice(samples, self.size))) == self.size or (batch and self.partial):
            yield self.collate(batch) if self.collate else batch


def held_back_by(stage: Any) -> str | None:
    """Return the name of a stage that may hold samples while it waits; `None` if it holds none."""
    if isinstance(stage, Batches):
        return None
    if isinstance(stage, filters.FilterFunction):
        return None if stage.f in _PASS_ON else getattr(stage.f, "__name__", repr(stage.f)).strip("_")
    return getattr(stage, "__name__", type(stage).__name__)
