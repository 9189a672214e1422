"""Fetch ranges of objects with few, parallel requests, and retry temporary failures."""

from __future__ import annotations

import asyncio
import errno
import os
import random
import re
import threading
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from pycooldown.data.stores import RANGE_BYTES, StoredObject, StoreError, open_store, store_errors, version_of
from pycooldown.mixture import Integers

__all__ = ["Request", "coalesce", "fetch", "read_range"]

# Versions that a store cannot be asked for: times, used without ETags, and weak ETags. All answers contain them.
_NO_STRONG_ETAG = re.compile(r"W/|\d{4}-\d\d-\d\dT")


@dataclass(frozen=True)
class Request:
    """Bytes `start` to `end` of an object with a given number."""

    number: int
    start: int
    end: int


def coalesce(
    objects: Integers, starts: Integers, ends: Integers, gap: int
) -> tuple[list[Request], list[tuple[int, int, int]]]:
    """Return requests of at most `RANGE_BYTES`, and the ranges that they cover.

    A covered range is the number of a range that is not empty, with the numbers of its first and last request.
    """
    requests: list[Request] = []
    members: list[tuple[int, int, int]] = []
    order = np.lexsort((ends, starts, objects))
    is_whole = True  # the last request is a part of a longer range, and accepts no other range
    for i in order.tolist():
        number, start, end = int(objects[i]), int(starts[i]), int(ends[i])
        if start == end:
            continue
        if end - start > RANGE_BYTES:
            first = len(requests)
            requests += [Request(number, at, min(at + RANGE_BYTES, end)) for at in range(start, end, RANGE_BYTES)]
            is_whole = False
            members.append((i, first, len(requests) - 1))
            continue
        last = requests[-1] if requests and is_whole else None
        if last and last.number == number and start <= last.end + gap and end - last.start <= RANGE_BYTES:
            requests[-1] = Request(number, last.start, max(end, last.end))
        else:
            requests.append(Request(number, start, end))
            is_whole = True
        members.append((i, len(requests) - 1, len(requests) - 1))
    return requests, members


def fetch(
    objects: Sequence[StoredObject], requests: Sequence[Request], *, concurrency: int, timeout: float, patience: float
) -> list[memoryview]:
    """Return the bytes of each request.

    Args:
        objects: The objects, by number.
        requests: The requests.
        concurrency: Requests in parallel.
        timeout: Seconds for one request, including its body.
        patience: Seconds after which a request is given up.

    Raises:
        StoreError: If an object is missing, was changed (`errno.ESTALE`), or its store does not answer in time.
    """
    return _loop(os.getpid()).run(_fetch_all(objects, requests, concurrency, timeout, patience))


async def _fetch_all(
    objects: Sequence[StoredObject], requests: Sequence[Request], concurrency: int, timeout: float, patience: float
) -> list[memoryview]:
    slots = asyncio.Semaphore(concurrency)

    async def one(request: Request) -> memoryview:
        async with slots:
            item = objects[request.number]
            return await read_range(item, request.start, request.end, timeout=timeout, patience=patience)

    tasks = [asyncio.ensure_future(one(request)) for request in requests]
    try:
        return await asyncio.gather(*tasks)
    finally:  # the first error ends the others
        for task in tasks:
            task.cancel()


async def read_range(
    item: StoredObject,
    start: int,
    end: int,
    *,
    timeout: float,
    patience: float,
    on_retry: Callable[[StoreError], None] | None = None,
) -> memoryview:
    """Return the bytes [start, end) of an object, complete and of its version; retry temporary failures.

    Args:
        item: The object.
        start: First byte.
        end: Exclusive last byte.
        timeout: Seconds for one request, including its body.
        patience: Seconds after which the range is given up.
        on_retry: Called with the error before each retry.

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
        pause = min(30.0, 0.1 * 2**attempt) * random.uniform(0.5, 1.0)  # keeps readers from retrying all at once
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
    """An event loop in its own thread, so that callers may have a loop themselves."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, name="pycooldown-ranges", daemon=True).start()

    def run(self, work: Coroutine[Any, Any, list[memoryview]]) -> list[memoryview]:
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise


@lru_cache(maxsize=1)
def _loop(process: int) -> _Loop:
    """Return the loop of a process. Each process needs its own, because threads do not survive a fork."""
    return _Loop()
