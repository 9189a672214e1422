"""The interface between data sets and the storage of their bytes: ranges of bytes of numbered objects.

A data set with remote files knows where the bytes of a sample lie. It asks a `ByteRanges` for them, once per batch.
`StoreRanges` reads them from object stores. A cache is another implementation; pass it as the argument `ranges`.
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
    """A reader of ranges of bytes in the files ("objects") of a data set.

    It is pickled with its data set when workers are spawned, and it is used in the child processes of a fork.
    """

    def read(self, objects: Integers, starts: Integers, ends: Integers) -> Sequence[Buffer]:
        """Return the bytes of n ranges, in their order, each complete and of the version that the data set knows.

        Args:
            objects: Numbers of the objects in the data set's `objects`, int64 of shape (n,).
            starts: First byte of each range, int64 of shape (n,).
            ends: Exclusive last byte of each range, int64 of shape (n,).

        Raises:
            OSError: If a range cannot be read, or the object has another version.
        """


class StoreRanges:
    """Ranges of objects, read directly from their stores: `s3://`, `gs://`, `az://`, `http(s)://`.

    Neighbouring ranges of an object are fetched with one request. Temporary failures (a server error, a broken
    connection, a body that ends early) are retried with growing pauses, until `patience` is over. An object is never
    read in another version than the known one.

    Clients and their threads belong to one process. Each process, including the child of a fork, makes them when it
    first reads. A process that has read must not fork workers that read too, because its threads may hold locks at the
    fork. Let a `DataLoader` spawn the workers (`multiprocessing_context="spawn"`), or read only in the workers.

    Args:
        objects: The objects to read, in the order of their numbers.
        gap: Maximum bytes between two ranges that are fetched with one request.
        concurrency: Requests in parallel.
        timeout: Seconds for one request, including its body.
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
                raise ValueError(f"{name} = {seconds}; expected a number of seconds > 0")
        self.objects = objects
        self.gap, self.concurrency, self.timeout, self.patience = gap, concurrency, timeout, patience

    def read(self, objects: Integers, starts: Integers, ends: Integers) -> list[Buffer]:
        """Return the bytes of n ranges, in their order; see `ByteRanges.read`.

        Raises:
            StoreError: If an object is missing, was changed (`errno.ESTALE`), or its store does not answer in time.
            ValueError: If a range is not inside its object.
        """
        spans = Spans(*(np.asarray(array, np.int64) for array in (objects, starts, ends)))
        self._check(spans)
        # Imported only when needed, because it takes some MB of memory in each process.
        from pycooldown.data.range_requests import coalesce, fetch

        requests, members = coalesce(*spans, gap=self.gap)
        contents = fetch(
            self.objects, requests, concurrency=self.concurrency, timeout=self.timeout, patience=self.patience
        )
        found: list[Buffer] = [b""] * len(spans.starts)
        for i, first, last in members:
            # Only a range longer than one request has several requests, and it shares them with no other range.
            content = contents[first] if last == first else memoryview(b"".join(contents[first : last + 1]))
            at = int(spans.starts[i]) - requests[first].start
            found[i] = content[at : at + int(spans.ends[i] - spans.starts[i])]
        return found

    def _check(self, spans: Spans) -> None:
        if not spans.objects.shape == spans.starts.shape == spans.ends.shape or spans.starts.ndim != 1:
            shapes = tuple(array.shape for array in spans)
            raise ValueError(f"objects, starts and ends have shapes {shapes}; expected one dimension and equal shapes")
        numbers, of = np.unique(spans.objects, return_inverse=True)
        if len(numbers) and not 0 <= numbers[0] <= numbers[-1] < len(self.objects):
            wrong = numbers[0] if numbers[0] < 0 else numbers[-1]
            raise ValueError(f"objects has {wrong}; expected numbers from 0 to {len(self.objects) - 1}")
        sizes = np.array([self.objects[number].size for number in numbers.tolist()], np.int64)[of]
        outside = (spans.starts < 0) | (spans.starts > spans.ends) | (spans.ends > sizes)
        if outside.any():
            at = int(outside.argmax())
            item, start, end = self.objects[int(spans.objects[at])], spans.starts[at], spans.ends[at]
            raise ValueError(f"bytes {start} to {end} of {item.url}; expected a range of its {item.size} bytes")
