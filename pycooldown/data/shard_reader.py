"""Samples of shards that are files or objects in stores, in one sequence."""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from pycooldown.data.byte_ranges import Buffer, ByteRanges, Spans, StoreRanges
from pycooldown.data.index import TarIndex, TarReader
from pycooldown.data.stores import StoredObject, is_url
from pycooldown.mixture import Integers

__all__ = ["ShardReader"]


class ShardReader:
    """A reader of samples by index: from files directly, and from objects with one call of `ranges` per batch.

    Args:
        max_maps: Maximum number of files that are mapped into memory.

    Attributes:
        ranges: Reads the bytes of objects; `None` until a `StoreRanges` is needed.
    """

    def __init__(self, max_maps: int) -> None:
        self.ranges: ByteRanges | None = None
        self._reader = TarReader(max_maps)
        self._objects: Sequence[StoredObject] = ()
        self._remote: npt.NDArray[np.bool_] | None = None  # by shard, if any is an object
        self._are_all_remote = False

    def add(self, path: str, domain: str, index: TarIndex) -> None:
        """Add a file with its own index."""
        self._reader.add(os.fsencode(path), domain, index)

    def add_all(self, index: TarIndex, folder: str, objects: Sequence[StoredObject]) -> None:
        """Add all shards of an index in a folder; `objects` are the same shards."""
        self._reader.add_all(index, os.fsencode(os.path.join(folder, "")))
        remote = np.fromiter((is_url(index.path(i)) for i in range(index.num_shards)), np.bool_, index.num_shards)
        self._remote = remote if remote.any() else None
        self._are_all_remote = bool(remote.all())
        self._objects = objects

    def __len__(self) -> int:
        return len(self._reader)

    def locate(self, indices: Sequence[int] | Integers, extension: str | None = None) -> Spans:
        """Return where the bytes of samples lie, or those of one member of each."""
        return Spans(*self._reader.locate(indices, extension).spans)

    def getitems(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        """Return samples as dictionaries."""
        if self._remote is None:
            return self._reader.getitems(indices)
        if self._are_all_remote:
            located = self._reader.locate(indices)
            return self._reader.assemble(located, self._fetch(Spans(*located.spans)))
        near, far, contents = self._split(indices, self.locate(indices))
        samples = self._reader.getitems([indices[i] for i in near])
        samples += self._reader.assemble(self._reader.locate([indices[i] for i in far]), contents)
        places = np.argsort(near + far)
        return [samples[i] for i in places]

    def flat(self, indices: Sequence[int], extension: str) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
        """Return one member of each sample end to end, and the bounds of each."""
        if self._remote is None:
            return self._reader.flat(indices, extension)
        spans = self.locate(indices, extension)
        offsets = np.concatenate([[0], np.cumsum(spans.ends - spans.starts)])
        if self._are_all_remote:
            return self._reader.join(self._fetch(spans)), offsets
        near, far, contents = self._split(indices, spans)
        local, bounds = self._reader.flat([indices[i] for i in near], extension)
        parts = [local[begin:end] for begin, end in itertools.pairwise(bounds)]
        parts += [np.frombuffer(content, np.uint8) for content in contents]
        buffer = np.empty(offsets[-1], np.uint8)
        for i, part in zip(near + far, parts):
            buffer[offsets[i] : offsets[i + 1]] = part
        return buffer, offsets

    def _split(self, indices: Sequence[int], spans: Spans) -> tuple[list[int], list[int], list[Buffer]]:
        """Return which of the samples are in files and which are in objects, and the bytes of the latter."""
        assert self._remote is not None
        remote = self._remote[spans.objects]
        near, far = np.flatnonzero(~remote).tolist(), np.flatnonzero(remote).tolist()
        if not far:
            return near, far, []
        return near, far, list(self._fetch(Spans(*(array[far] for array in spans))))

    def _fetch(self, spans: Spans) -> Sequence[Buffer]:
        if self.ranges is None:
            self.ranges = StoreRanges(self._objects)
        return self.ranges.read(*spans)
