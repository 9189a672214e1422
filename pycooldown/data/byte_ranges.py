"""The seam between data sets and the places their bytes come from: ranges of bytes of numbered objects.

A data set with remote files knows where the bytes of a sample lie, and asks a `ByteRanges` for them, once a batch.
`StoreRanges` reads them from object stores; a cache is another one, which a data set takes by its argument `ranges`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np

from pycooldown.data.stores import StoredObject
from pycooldown.mixture import Integers

__all__ = ["ByteRanges", "Spans", "StoreRanges"]

Buffer = bytes | memoryview


class Spans(NamedTuple):
    """Ranges of bytes of objects.

    Attributes:
        objects: Numbers of the objects in the data set's `objects`, int64 of shape (n,).
        starts: First byte of each range, int64 of shape (n,).
        ends: Exclusive last byte of each range, int64 of shape (n,).
    """

    objects: Integers
    starts: Integers
    ends: Integers


class ByteRanges(Protocol):
    """Reads ranges of bytes of the files ("objects") of a data set.

    A data set is pickled with it when workers are spawned, and used behind a fork when they are forked.
    """

    def read(self, objects: Integers, starts: Integers, ends: Integers) -> Sequence[Buffer]:
        """Return the bytes of n ranges, each whole and of the version that the data set knows, in their order.

        Args:
            objects: Numbers of the objects in the data set's `objects`, int64 of shape (n,).
            starts: First byte of each range, int64 of shape (n,).
            ends: Exclusive last byte of each range, int64 of shape (n,).

        Raises:
            OSError: If a range cannot be read, or is not that of the known version.
        """


class StoreRanges:
    """Ranges of objects in stores, read straight from there: `s3://`, `gs://`, `az://`, `http(s)://`.

    Neighbours in an object are fetched by one request. What fails in passing (an error of the server, a broken
    connection, a body that ends early) is tried again, with growing pauses, until `patience` is over. An object of
    another version than the known one is never read.

    Clients and their threads belong to one process: they are made when a process first reads, also behind a fork.
    A process that has read must not fork workers that read too, since locks of its threads may be held at the fork:
    let a `DataLoader` spawn them (`multiprocessing_context="spawn"`), or read first in the workers.

    Args:
        objects: The objects that are read, in the order of their numbers.
        gap: Bytes between two ranges up to which they are fetched by one request.
        concurrency: Requests at a time.
        timeout: Seconds that one request may take, its body included.
        patience: Seconds after which a range is given up.

    Raises:
        ValueError: If an argument is out of its range.
    """

    def __init__(
        self,
        objects: Sequence[StoredObject],
        *,
        gap: int = 16 << 10,
        concurrency: int = 64,
        timeout: float = 60.0,
        patience: float = 300.0,
    ) -> None:
        for name, value, least in (("gap", gap, 0), ("concurrency", concurrency, 1)):
            if value < least:
                raise ValueError(f"{name} = {value}; expected at least {least}")
        for name, seconds in (("timeout", timeout), ("patience", patience)):
            if not seconds > 0:
                raise ValueError(f"{name} = {seconds}; expected a number of seconds")
        self.objects = objects
        self.gap, self.concurrency, self.timeout, self.patience = gap, concurrency, timeout, patience

    def read(self, objects: Integers, starts: Integers, ends: Integers) -> list[Buffer]:
        """Return the bytes of n ranges, in their order; see `ByteRanges.read`.

        Raises:
            StoreError: If an object is missing, was changed (`errno.ESTALE`), or its store does not answer in time.
            ValueError: If a range is not one of its object.
        """
        spans = Spans(*(np.asarray(array, np.int64) for array in (objects, starts, ends)))
        self._check(spans)
        # Imported when it is needed, as it takes some MB of memory in each process.
        from pycooldown.data.range_requests import coalesce, fetch

        requests, members = coalesce(*spans, gap=self.gap)
        contents = fetch(
            self.objects, requests, concurrency=self.concurrency, timeout=self.timeout, patience=self.patience
        )
        found: list[Buffer] = [b""] * len(spans.starts)
        for i, first, last in members:
            # Only a range that is longer than a request has several, and it shares them with no other.
            content = contents[first] if last == first else memoryview(b"".join(contents[first : last + 1]))
            at = int(spans.starts[i]) - requests[first].start
            found[i] = content[at : at + int(spans.ends[i] - spans.starts[i])]
        return found

    def _check(self, spans: Spans) -> None:
        if not spans.objects.shape == spans.starts.shape == spans.ends.shape or spans.starts.ndim != 1:
            shapes = tuple(array.shape for array in spans)
            raise ValueError(f"objects, starts and ends have shapes {shapes}; expected one dimension, all alike")
        for number, start, end in zip(*(array.tolist() for array in spans)):
            if not 0 <= number < len(self.objects):
                raise ValueError(f"object {number}; expected one of {len(self.objects)}")
            if not 0 <= start <= end <= self.objects[number].size:
                item = self.objects[number]
                raise ValueError(f"bytes {start} to {end} of {item.url}; expected a range of its {item.size} bytes")
