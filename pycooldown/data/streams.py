"""A domain of `mix` as an endless sequence of samples, read from a stream or, if its shards allow it, at random."""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol
from urllib.parse import urlparse

from pycooldown._extras import require
from pycooldown._files import open_regular
from pycooldown.data.index import TarIndex, TarReader, count_samples, load_index

require("data", "webdataset")

from webdataset.gopen import rewrite_url  # noqa: E402
from webdataset.shardlists import expand_source  # noqa: E402

__all__ = ["LocalShards", "Passes", "SampleStream", "Stream", "expand_urls", "local_path"]

Sample = dict[str, Any]

# First bytes of the compressed files that webdataset reads.
_COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ\x00", b"\x28\xb5\x2f\xfd")


class SampleStream(Protocol):
    """One domain as a reader uses it."""

    def get(self, n: int) -> Sample:
        """Return the reader's n-th sample; n increases from call to call."""


class Stream:
    """A domain that is read from its start, pass after pass.

    Args:
        domain: Its name, for errors.
        samples_of: Opens the samples of a pass with a given number.
        offset: The reader's n-th sample is number `offset + n * stride` of the domain, counted over all passes.
        stride: See `offset`.
    """

    def __init__(
        self, domain: str, samples_of: Callable[[int], Iterator[Sample]], offset: int = 0, stride: int = 1
    ) -> None:
        self._domain = domain
        self._samples_of = samples_of
        self._offset, self._stride = offset, stride
        self._pass = 0
        self._samples = samples_of(0)
        self._begin = self._position = 0  # positions of the pass and of the next sample, over all passes
        self._length: int | None = None  # length of a pass, known after the first one

    def get(self, n: int) -> Sample:
        """Return the reader's n-th sample; n increases from call to call."""
        wanted = self._offset + n * self._stride
        while True:
            for sample in self._samples:
                self._position += 1
                if self._position > wanted:
                    return sample
            if self._position == self._begin:
                raise _no_samples(self._domain)
            # Once the length of a pass is known, passes entirely before the wanted sample are not read.
            self._length = self._length or self._position
            self._pass = max(self._pass + 1, wanted // self._length)
            self._begin = self._position = self._pass * self._length
            self._samples = self._samples_of(self._pass)


class Passes:
    """A search for the n-th sample of shards that are read pass after pass, each time in another order.

    Shards are counted when the search first reaches them, so a reader that stops early does not open all of them.

    Args:
        count: Return the number of samples of a shard.
        order: Return the order of the shards in a pass.
    """

    def __init__(self, count: Callable[[int], int], order: Callable[[int], Sequence[int]]) -> None:
        self._count, self._counts = count, dict[int, int]()
        self._order_of = order
        self._enter(0, 0)

    def _enter(self, number: int, begin: int) -> None:
        self._begin = begin  # number of the first sample of the pass
        self._order = self._order_of(number)
        self._ends = [0]  # samples in the first i shards of the pass, as far as counted

    def find(self, n: int) -> tuple[int, int]:
        """Return the shard of sample n and its number within the shard; n does not decrease from call to call.

        Raises:
            ZeroDivisionError: If no shard has a sample.
        """
        while True:
            while self._ends[-1] <= n - self._begin and len(self._ends) <= len(self._order):
                shard = self._order[len(self._ends) - 1]
                if shard not in self._counts:
                    self._counts[shard] = self._count(shard)
                self._ends.append(self._ends[-1] + self._counts[shard])
            if n - self._begin < self._ends[-1]:
                place = bisect_right(self._ends, n - self._begin) - 1
                return self._order[place], n - self._begin - self._ends[place]
            number, length = n // self._ends[-1], self._ends[-1]  # all shards are counted now
            self._enter(number, number * length)


class LocalShards:
    """A domain whose shards are uncompressed tars on disk: in each shard, only the reader's own samples are read.

    The samples are those of a `Stream` over the same shards. If a shard turns out to be compressed or no regular file,
    the domain continues as such a stream.

    Args:
        domain: Its name, for errors.
        urls: Its shards, as named in the samples.
        paths: Paths of the shards.
        order: Return the order of the shards in a pass.
        offset: As in `Stream`.
        stride: As in `Stream`.
        stream: Makes the stream to continue with.
    """

    def __init__(
        self,
        domain: str,
        urls: Sequence[str],
        paths: Sequence[str],
        *,
        order: Callable[[int], Sequence[int]],
        offset: int,
        stride: int,
        stream: Callable[[], SampleStream],
    ) -> None:
        self._domain, self._urls, self._paths = domain, urls, paths
        self._offset, self._stride = offset, stride
        self._passes = Passes(self._count, order)
        self._indexed: tuple[int, TarIndex] | None = None
        self._open: int | None = None  # the shard that `_reader` reads
        self._reader = TarReader(1)
        self._make_stream = stream
        self._stream: SampleStream | None = None

    def get(self, n: int) -> Sample:
        """Return the reader's n-th sample; n increases from call to call.

        Raises:
            ValueError: If a shard is damaged, or there are no samples.
            OSError: If a shard cannot be read or has changed.
        """
        if self._stream is None:
            try:
                return self._read(*self._passes.find(self._offset + n * self._stride))
            except ZeroDivisionError:
                raise _no_samples(self._domain) from None
            except _NotRandomError:
                self._stream = self._make_stream()
        return self._stream.get(n)

    def _read(self, shard: int, number: int) -> Sample:
        if self._open != shard:
            index = self._index_of(shard)
            self._reader, self._open = TarReader(1), shard
            self._reader.add(os.fsencode(self._paths[shard]), self._domain, index)
        if number >= len(self._reader):
            raise ValueError(f"{self._paths[shard]} has changed while it was read; start again with unchanged shards")
        sample = self._reader.getitems([number])[0]
        sample["__url__"] = self._urls[shard]
        return sample

    def _count(self, shard: int) -> int:
        if not os.path.isfile(self._paths[shard]):
            raise _NotRandomError
        count = count_samples(self._paths[shard])
        return len(self._index_of(shard)) if count is None else count

    def _index_of(self, shard: int) -> TarIndex:
        """Return the index of a shard. The last one is kept, because a shard is counted just before it is read."""
        if self._indexed is None or self._indexed[0] != shard:
            path = self._paths[shard]
            index = load_index(path)
            for _, offset, reason in index.faults:
                if _is_compressed(path):
                    raise _NotRandomError
                raise ValueError(
                    f"{path} at byte {offset}: {reason}; repair the shard, or pass mix a handler, such as "
                    "webdataset.warn_and_continue, with which webdataset reads as much as it can"
                )
            self._indexed = shard, index
        return self._indexed[1]


class _NotRandomError(Exception):
    """An error that says that a shard allows no random access."""


def expand_urls(domain: str, source: Any) -> list[str]:
    """Return the URLs of a domain, braces expanded.

    Raises:
        TypeError: If the source or a shard is neither text nor a path.
        ValueError: If there are no shards.
    """
    if isinstance(source, str | os.PathLike):
        urls = expand_source(os.fspath(source))
    elif isinstance(source, Iterable) and not isinstance(source, bytes | Mapping):
        urls = [os.fspath(url) if isinstance(url, os.PathLike) else url for url in source]
    else:
        raise TypeError(f"domain {domain!r} has the source {source!r}; expected URLs or a webdataset pipeline")
    if not urls:
        raise ValueError(f"domain {domain!r} has no shards; pass some, or leave the domain out")
    if wrong := [url for url in urls if not isinstance(url, str) or not url]:
        raise TypeError(f"domain {domain!r} has the shard {wrong[0]!r}; expected a URL")
    return list(urls)


def local_path(url: str) -> str | None:
    """Return the path of the local file that webdataset would open for a URL; `None` for other URLs."""
    rewritten: str = rewrite_url(url)
    parsed = urlparse(rewritten)
    if parsed.scheme == "file":
        return parsed.path
    return None if parsed.scheme or url == "-" else rewritten


def _is_compressed(path: str) -> bool:
    with open_regular(path) as file:
        return file.read(8).startswith(_COMPRESSED)


def _no_samples(domain: str) -> ValueError:
    return ValueError(
        f"domain {domain!r} has no samples for this reader; leave out shards without samples or the domain, or pass "
        "elastic=True, so that every reader reads all shards. Instead of a pipeline pass URLs, which mix divides"
    )
