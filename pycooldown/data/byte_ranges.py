"""The seam between data sets and the places their bytes come from: ranges of bytes of numbered objects.

A data set with remote files knows where the bytes of a sample lie, and asks a `ByteRanges` for them, once a batch.
`StoreRanges` reads them from object stores; a cache is another one, which a data set takes by its argument `ranges`.
"""

from __future__ import annotations

import asyncio
import errno
import os
import random
import re
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple, Protocol

import numpy as np

from pycooldown.data.stores import RANGE_BYTES, StoredObject, StoreError, open_store, store_errors, version_of
from pycooldown.mixture import Integers

__all__ = ["ByteRanges", "Spans", "StoreRanges", "read_range"]

Buffer = bytes | memoryview
# Versions that a store cannot be asked for: times, where it has no ETags, and weak ETags. Answers have them all.
_NO_STRONG_ETAG = re.compile(r"W/|\d{4}-\d\d-\d\dT")


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
        requests, members = _coalesce(spans, self.gap)
        contents = _loop(os.getpid()).run(self._fetch_all(requests))
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

    async def _fetch_all(self, requests: list[_Request]) -> list[memoryview]:
        slots = asyncio.Semaphore(self.concurrency)

        async def fetch(request: _Request) -> memoryview:
            async with slots:
                return await read_range(
                    self.objects[request.number],
                    request.start,
                    request.end,
                    timeout=self.timeout,
                    patience=self.patience,
                )

        tasks = [asyncio.ensure_future(fetch(request)) for request in requests]
        try:
            return await asyncio.gather(*tasks)
        finally:  # the first error ends the others
            for task in tasks:
                task.cancel()


@dataclass(frozen=True)
class _Request:
    number: int
    start: int
    end: int


def _coalesce(spans: Spans, gap: int) -> tuple[list[_Request], list[tuple[int, int, int]]]:
    """Return requests, and for each range that is not empty its number and those of its first and last request."""
    requests: list[_Request] = []
    members: list[tuple[int, int, int]] = []
    order = np.lexsort((spans.ends, spans.starts, spans.objects))
    is_whole = True  # the last request is a part of a longer range, and takes no other
    for i in order.tolist():
        number, start, end = (int(array[i]) for array in spans)
        if start == end:
            continue
        if end - start > RANGE_BYTES:
            first = len(requests)
            requests += [_Request(number, at, min(at + RANGE_BYTES, end)) for at in range(start, end, RANGE_BYTES)]
            is_whole = False
            members.append((i, first, len(requests) - 1))
            continue
        last = requests[-1] if requests and is_whole else None
        if last and last.number == number and start <= last.end + gap and end - last.start <= RANGE_BYTES:
            requests[-1] = _Request(number, last.start, max(end, last.end))
        else:
            requests.append(_Request(number, start, end))
            is_whole = True
        members.append((i, len(requests) - 1, len(requests) - 1))
    return requests, members


async def read_range(
    item: StoredObject,
    start: int,
    end: int,
    *,
    timeout: float,
    patience: float,
    on_retry: Callable[[StoreError], None] | None = None,
) -> memoryview:
    """Return the bytes [start, end) of an object, whole and of its version; what fails in passing is tried again.

    Args:
        item: The object.
        start: First byte.
        end: Exclusive last byte.
        timeout: Seconds that one request may take, its body included.
        patience: Seconds after which the range is given up.
        on_retry: Called with what went wrong before it is tried again.

    Raises:
        StoreError: If the object is missing, was changed (`errno.ESTALE`), or its store does not answer in time.
    """
    deadline = time.monotonic() + patience
    attempt = 0
    while True:
        try:
            return await asyncio.wait_for(_get(item, start, end), timeout)
        except asyncio.TimeoutError:
            error = StoreError(errno.EIO, f"the store did not answer within {timeout:g} seconds", item.url)
        except StoreError as caught:
            if caught.errno != errno.EIO:
                raise
            error = caught
        pause = min(30.0, 0.1 * 2**attempt) * random.uniform(0.5, 1.0)  # spreads the readers
        attempt += 1
        if time.monotonic() + pause > deadline:
            reason = (
                f"bytes {start} to {end} could not be read in {attempt} tries and {patience:g} seconds: "
                f"{error.strerror}"
            )
            raise StoreError(errno.EIO, reason, item.url) from error
        if on_retry is not None:
            on_retry(error)
        await asyncio.sleep(pause)


async def _get(item: StoredObject, start: int, end: int) -> memoryview:
    """One try."""
    import obstore
    from obstore.exceptions import PreconditionError

    options: dict[str, Any] = {"range": (start, end)}
    if not _NO_STRONG_ETAG.match(item.version):
        options["if_match"] = f'"{item.version}"'
    client, _, key = open_store(item.url)
    with store_errors(item.url):
        try:
            reply = await obstore.get_async(client, key, options=options)
        except PreconditionError:
            raise _changed(item, "another version") from None
        if (found := version_of(reply.meta)) != item.version or reply.meta["size"] != item.size:
            raise _changed(item, f"{found} of {reply.meta['size']} bytes")
        content = memoryview(await reply.bytes_async())
    if len(content) != end - start:
        reason = f"the store sent {len(content)} of {end - start} bytes"
        raise StoreError(errno.EIO, reason, item.url)
    return content


def _changed(item: StoredObject, found: str) -> StoreError:
    reason = (
        f"the object has changed since it was indexed ({item.version} to {found}); index it again, or restore the "
        "former object"
    )
    return StoreError(errno.ESTALE, reason, item.url)


class _Loop:
    """An event loop in a thread of its own, so that callers may have one themselves."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, name="pycooldown-ranges", daemon=True).start()

    def run(self, work: Any) -> Any:
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise


@lru_cache(maxsize=1)
def _loop(process: int) -> _Loop:
    """The loop of a process: threads do not survive a fork."""
    return _Loop()
