"""Blocks: the ranges of bytes that a cache fetches and evicts as units."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from pycooldown.data.byte_ranges import Spans
from pycooldown.data.stores import StoredObject
from pycooldown.mixture import Integers, Vector

__all__ = ["Blocks", "StoredDataset"]


class StoredDataset(Protocol):
    """The part of a data set's interface that a cache uses. Samples lie in objects.

    If each sample lies within one object, there is also `shard_sizes`: by domain, the samples of each object in order.
    """

    @property
    def objects(self) -> Sequence[StoredObject]:
        """The objects, in the order of the domains and their shards."""

    def locate(self, indices: Integers) -> Spans:
        """Return the ranges of bytes needed to read samples, in their order: one or more for each sample."""


class Blocks:
    """The blocks of a data set, numbered through all its objects.

    An object is cut before every ``block`` samples, so no block has bytes of two objects. Blocks of an object follow
    each other without gaps: bytes between two samples, such as headers, belong to the block of the first one.

    Args:
        bases: Start of each object if all lie end to end, in bytes; int64 of shape (objects + 1,).
        bounds: Start and end of each block, in the same way; int64 of shape (blocks, 2), ascending.
        samples: Approximate number of samples that begin in each block; float64 of shape (blocks,).
        first_samples: The first sample of each object, int64 of shape (objects,), if blocks hold a fixed number of
            samples.
        block: This fixed number of samples.
    """

    def __init__(
        self,
        bases: Integers,
        bounds: Integers,
        samples: Vector,
        first_samples: Integers | None = None,
        block: int = 0,
    ) -> None:
        self.bases, self.bounds, self.samples = bases, bounds, samples
        self._first_samples, self._block = first_samples, block
        self.firsts = np.searchsorted(bounds[:, 0], bases)  # the first block of each object

    @classmethod
    def cut(cls, dataset: StoredDataset, block: int) -> Blocks:
        """Cut the objects of a data set before every ``block`` samples.

        Raises:
            ValueError: If ``block`` is not positive.
        """
        if operator.index(block) < 1:
            raise ValueError(f"block = {block}; expected at least 1 sample")
        shard_sizes: Mapping[str, Sequence[int]] = dataset.shard_sizes  # type: ignore[attr-defined]
        sizes = np.array([size for shards in shard_sizes.values() for size in shards], np.int64)
        bases = np.cumsum([0, *(item.size for item in dataset.objects)], dtype=np.int64)
        if len(sizes) != len(dataset.objects):
            raise ValueError(
                f"the data set has {len(dataset.objects)} objects but {len(sizes)} shards; expected equal numbers"
            )
        firsts = np.cumsum([0, *sizes], dtype=np.int64)
        counts = -(-sizes // block)
        shards = np.repeat(np.arange(len(sizes)), counts)
        within = np.arange(len(shards)) - np.repeat(np.cumsum(counts) - counts, counts)
        starts = _first_bytes(dataset, firsts[shards] + within * block)
        begins = bases[shards] + np.where(within == 0, 0, starts)
        ends = np.append(begins[1:], 0)
        last = within == counts[shards] - 1
        ends[last] = bases[shards[last] + 1]
        samples = np.minimum(block, sizes[shards] - within * block)
        return cls(bases, np.stack([begins, ends], axis=1), samples.astype(np.float64), firsts[:-1], block)

    @classmethod
    def cut_evenly(cls, dataset: StoredDataset, size: int, sample: int) -> Blocks:
        """Cut each object into blocks of ``size`` bytes, for a data set whose samples take ``sample`` bytes each."""
        sizes = np.array([item.size for item in dataset.objects], np.int64)
        bases = np.cumsum(np.concatenate([[0], sizes]), dtype=np.int64)
        counts = -(-sizes // size)
        numbers = np.repeat(np.arange(len(sizes)), counts)
        begins = (np.arange(len(numbers)) - np.repeat(np.cumsum(counts) - counts, counts)) * size
        ends = np.minimum(begins + size, sizes[numbers])
        bounds = bases[numbers][:, None] + np.stack([begins, ends], axis=1)
        return cls(bases, bounds, (ends - begins) / sample)

    @classmethod
    def of(cls, dataset: StoredDataset, block: int) -> Blocks:
        """Cut a data set into blocks of ``block`` samples, or of as many bytes if samples cross shards."""
        if hasattr(dataset, "shard_sizes"):
            return cls.cut(dataset, block)
        first = dataset.locate(np.zeros(1, np.int64))
        sample = int((first.ends - first.starts).sum())
        return cls.cut_evenly(dataset, max(1, operator.index(block) * sample), max(1, sample))

    def __len__(self) -> int:
        return len(self.bounds)

    @property
    def sizes(self) -> Integers:
        """Bytes of each block."""
        return np.asarray(self.bounds[:, 1] - self.bounds[:, 0])

    def span(self, number: int) -> tuple[int, int, int]:
        """Return the object of a block, and its first and exclusive last byte there."""
        begin, end = self.bounds[number].tolist()
        item = int(np.searchsorted(self.bases, begin, "right")) - 1
        # Empty objects have the same base as the next object that is not empty. The search returns the last of them.
        base = int(self.bases[item])
        return item, begin - base, end - base

    def covering(self, spans: Spans) -> tuple[Integers, Integers]:
        """Return the first and the last block that each range of bytes touches.

        Raises:
            ValueError: If a range is not within blocks.
        """
        begins, ends = self.bases[spans.objects] + spans.starts, self.bases[spans.objects] + spans.ends
        firsts = np.searchsorted(self.bounds[:, 0], begins, "right") - 1
        lasts = np.maximum(np.searchsorted(self.bounds[:, 0], ends, "left") - 1, firsts)
        outside = (firsts < 0) | (self.bounds[lasts, 1] < ends)
        if outside.any():
            i = int(outside.argmax())
            raise ValueError(f"bytes {spans.starts[i]} to {spans.ends[i]} of object {spans.objects[i]} are in no block")
        return firsts, lasts

    def used_by(self, spans: Spans) -> Integers:
        """Return the blocks that ranges of bytes touch, each once, ascending."""
        firsts, lasts = self.covering(spans)
        if (firsts == lasts).all():
            return np.unique(firsts)
        counts = lasts - firsts + 1
        offsets = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        return np.unique(np.repeat(firsts, counts) + offsets)

    def used_by_samples(self, indices: Integers, dataset: StoredDataset) -> Integers:
        """Return the blocks needed to read samples of the data set, each once, ascending."""
        if self._first_samples is None:
            return self.used_by(dataset.locate(indices))
        objects = np.searchsorted(self._first_samples, indices, "right") - 1
        return np.unique(self.firsts[objects] + (indices - self._first_samples[objects]) // self._block)

    def __reduce__(self) -> tuple[Any, ...]:
        return Blocks, (self.bases, self.bounds, self.samples, self._first_samples, self._block)


def _first_bytes(dataset: StoredDataset, indices: Integers) -> Integers:
    """Return where the samples begin in their objects. If a sample has several ranges, the first one counts."""
    starts = np.empty(len(indices), np.int64)
    step = 1 << 16
    for begin in range(0, len(indices), step):
        chunk = indices[begin : begin + step]
        spans = dataset.locate(chunk)
        if len(spans.starts) == len(chunk):
            starts[begin : begin + step] = spans.starts
        else:
            starts[begin : begin + step] = [int(dataset.locate(chunk[i : i + 1]).starts[0]) for i in range(len(chunk))]
    return starts
