"""Map-style access to the samples of tar shards."""

from __future__ import annotations

import operator
import os
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from pycooldown.data.byte_ranges import ByteRanges, Spans, StoreRanges
from pycooldown.data.dataset_index import IndexedObjects, default_path, find_index, locate_shard
from pycooldown.data.index import load_index
from pycooldown.data.shard_lists import ShardPaths, has_urls, list_shards
from pycooldown.data.shard_reader import ShardReader
from pycooldown.data.stores import StoredObject, is_url
from pycooldown.mixture import Integers

__all__ = ["Skipped", "TarDataset"]


class Skipped(NamedTuple):
    """A sample that cannot be read, or a position after which a shard cannot be read.

    Attributes:
        shard: Path of the shard.
        offset: Position in bytes of the tar header at fault.
        reason: What is wrong with it.
    """

    shard: str
    offset: int
    reason: str


class TarDataset:
    """The samples of many domains' tar shards, by index: the domains one after another, in the order of the mapping.

    Within a domain the shards keep their order, and so do the samples within a shard. So indices are those of a
    `torch.utils.data.ConcatDataset` and of `pycooldown.DomainBatchSampler`. A sample is a dictionary in webdataset's
    form: `__key__`, `__url__` (the shard's path), `__domain__` and the bytes of each member under its extension.

    Shards may be files or objects in stores (`s3://`, `gs://`, `az://`, `http(s)://`; extra `remote`). Links,
    directories, devices and `__meta__` files in them are skipped, as in webdataset. Sparse files, repeated extensions
    and damage are faults. So is a file without the zero blocks that end a tar, which webdataset accepts: if it was cut
    off between two members, samples or members of the last one are missing. Data after the zero blocks, which
    webdataset does not read, are a fault too, for example two tars joined by `cat`.

    **Index.** The first use of a file scans it and leaves an index beside it (see `load_index`). For many shards or
    samples, make one index of all of them with `pycooldown index` and pass its path instead of a mapping: it is mapped
    into memory and shared by all processes, and opening it reads no shards or samples. Objects in stores always have
    such an index.

    **Objects in stores.** The samples of a batch are fetched together, by ranges; see `StoreRanges`. Clients belong to
    one process. Making a data set does not read from stores in this process, so workers may be forked, unless the
    process itself has read samples before. Then let workers be spawned.

    A dataset can be pickled and used in forked or spawned workers. Shards must not be changed while they are read. Each
    batch checks that the shards it has read are still as they were indexed, and raises an error otherwise. This
    includes shards that are truncated during a read, which a handler of the signal SIGBUS detects.

    Args:
        shards: By domain, one or several uncompressed tar files: paths, URLs, or patterns with braces (`{000..099}`) or
            wildcards (`*`, `?`, `[...]`; not for http), whose matches are sorted by name. Or the path of an index
            written by `pycooldown index`, or of a folder with a `dataset.idx`; or the URL of either, of which a copy is
            kept in the user's cache folder.
        on_error: `"raise"` refuses shards with faults; `"skip"` leaves the samples out, lists them in `skipped` and
            warns once.
        max_open: Maximum number of shards mapped into memory; no file stays open. If there are more, those that are
            read most often are mapped, and each read of another one opens its file, which takes some microseconds.
            Pages of mapped shards count as resident memory, though the kernel can reclaim them.
        mmap: Whether to map shards into memory. With `False` each read opens its file, which is slower.
        index: Path of one index of all shards of the mapping, which is made or updated if needed. By default each file
            has an index beside it; if there are objects in stores, one index of all shards is kept in the user's cache
            folder.
        ranges: Reads the bytes of objects, for example a cache; see `ByteRanges`. By default a `StoreRanges`.

    Raises:
        ValueError: If a shard has faults and `on_error="raise"`, naming shard and offset. Also if a domain has no
            shards, or a shard is neither a local path nor a URL with random access.
        OSError: If a shard cannot be read, or has changed since it was indexed.
    """

    def __init__(
        self,
        shards: ShardPaths | str | os.PathLike[str],
        *,
        on_error: Literal["raise", "skip"] = "raise",
        max_open: int = 16_384,
        mmap: bool = True,
        index: str | os.PathLike[str] | None = None,
        ranges: ByteRanges | None = None,
    ) -> None:
        if on_error not in ("raise", "skip"):
            raise ValueError(f"on_error = {on_error!r}; expected 'raise' or 'skip'")
        if operator.index(max_open) < 1:
            raise ValueError(f"max_open = {max_open}; expected at least 1 shard")
        self.on_error = on_error
        self.max_open = max_open
        self.mmap = mmap
        self.skipped: list[Skipped] = []
        self._given_ranges = ranges
        self._lists: dict[str, list[str]] | None = None  # set if each file has its own index
        self._index_path: str | None = None  # set if all shards have one index
        if isinstance(shards, str | os.PathLike):
            if index is not None:
                raise ValueError(
                    f"index = {index!r}, but shards = {shards!r} is an index already; leave one of them out"
                )
            self._index_path = _find_index(os.fspath(shards))
        else:
            self._find(list_shards(shards), index)
        self._open()
        if self.skipped:
            first = self.skipped[0]
            warnings.warn(
                f"{len(self.skipped)} samples skipped, the first in {first.shard} at byte {first.offset}: "
                f"{first.reason}",
                stacklevel=2,
            )

    def _find(self, lists: dict[str, list[str]], index: str | os.PathLike[str] | None) -> None:
        """Choose between one index per file and one of all shards, which is made or updated."""
        remote = has_urls(lists)
        if index is None and not remote:
            self._lists = lists
            return
        self._index_path = os.path.abspath(index) if index is not None else default_path(lists)
        if remote:
            from pycooldown.data.subprocess_call import call_apart

            call_apart(_build, lists, self._index_path)
        else:
            _build(lists, self._index_path)

    def _open(self) -> None:
        self._reader = ShardReader(self.max_open if self.mmap else 0)
        self._reader.ranges = self._given_ranges
        if self._index_path is not None:
            self._open_index(self._index_path)
            return
        places = [(domain, path) for domain, paths in (self._lists or {}).items() for path in paths]
        self._shard_sizes: dict[str, list[int]] = {domain: [] for domain in self._lists or {}}
        with ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool:
            for (domain, path), index in zip(places, pool.map(load_index, [path for _, path in places])):
                self._skip([Skipped(path, offset, reason) for _, offset, reason in index.faults])
                self._reader.add(path, domain, index)
                self._shard_sizes[domain].append(len(index))
        self._sizes = {domain: sum(sizes) for domain, sizes in self._shard_sizes.items()}

    def _open_index(self, path: str) -> None:
        self._objects = IndexedObjects(path)
        index = self._objects.tar_index
        self._skip([Skipped(locate_shard(index.path(at), path), offset, reason) for at, offset, reason in index.faults])
        self._reader.add_all(index, os.path.dirname(path), self._objects)
        self._sizes = {domain: samples for domain, _, samples in index.domains}

    def _skip(self, skipped: list[Skipped]) -> None:
        if skipped and self.on_error == "raise":
            raise ValueError(
                f"{skipped[0].shard} at byte {skipped[0].offset}: {skipped[0].reason}; repair the shard, or pass "
                "on_error='skip' to leave such samples out"
            )
        self.skipped += skipped

    @property
    def domains(self) -> tuple[str, ...]:
        """Names of the domains, in order."""
        return tuple(self._sizes)

    @property
    def sizes(self) -> dict[str, int]:
        """Number of samples by domain."""
        return dict(self._sizes)

    @property
    def shards(self) -> dict[str, list[str]]:
        """Paths and URLs of the shards by domain."""
        if self._lists is not None:
            return {domain: list(paths) for domain, paths in self._lists.items()}
        return self._by_domain([item.url for item in self.objects])

    @property
    def shard_sizes(self) -> dict[str, list[int]]:
        """Number of samples of each shard by domain, in the order of `shards`."""
        if self._lists is not None:
            return {domain: list(sizes) for domain, sizes in self._shard_sizes.items()}
        return self._by_domain([self._objects.tar_index.samples(i) for i in range(self._objects.tar_index.num_shards)])

    @property
    def objects(self) -> Sequence[StoredObject]:
        """The shards of all domains one after another, by the numbers that `locate` returns and `ByteRanges` takes."""
        if self._index_path is not None:
            return self._objects
        paths = [path for paths in (self._lists or {}).values() for path in paths]
        return [StoredObject(path, (status := os.stat(path)).st_size, str(status.st_mtime_ns)) for path in paths]

    @property
    def ranges(self) -> ByteRanges:
        """The reader of bytes of objects in stores; it can be replaced."""
        if self._reader.ranges is None:
            self._reader.ranges = StoreRanges(self.objects)
        return self._reader.ranges

    @ranges.setter
    def ranges(self, ranges: ByteRanges) -> None:
        self._reader.ranges = self._given_ranges = ranges

    def __len__(self) -> int:
        return len(self._reader)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        return self._reader.getitems(indices)

    def locate(self, indices: Sequence[int] | Integers, extension: str | None = None) -> Spans:
        """Return where the bytes of samples lie in `objects`, without reading any.

        Args:
            indices: n indices of samples.
            extension: The member, as named in the samples (lower case); by default all members of a sample, which lie
                in one range with their headers between them.

        Returns:
            n ranges, in the order of the indices.

        Raises:
            KeyError: If a sample has no such member.
        """
        return self._reader.locate(indices, extension)

    def flat(self, indices: Sequence[int], extension: str) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
        """Read one member of each sample into one buffer.

        Args:
            indices: n indices of samples.
            extension: The member, as named in the samples (lower case).

        Returns:
            `buffer`, uint8, the members end to end, and `offsets`, int64 of shape (n + 1,): member i is
            `buffer[offsets[i]:offsets[i + 1]]`.

        Raises:
            KeyError: If a sample has no such member.
        """
        return self._reader.flat(indices, extension)

    def _by_domain(self, of_shards: list[Any]) -> dict[str, list[Any]]:
        firsts = [first for _, first, _ in self._objects.tar_index.domains] + [self._objects.tar_index.num_shards]
        return {domain: of_shards[a:b] for domain, a, b in zip(self.domains, firsts[:-1], firsts[1:])}

    def _identity(self) -> Any:
        """Return the values that a copy in another process must find unchanged."""
        if self._index_path is None:
            return self._shard_sizes
        with open(self._index_path, "rb") as file:
            return file.read(80)  # its header, with a checksum of its entries about shards

    def __getstate__(self) -> dict[str, Any]:
        left_out = ("_reader", "_objects")
        return {**{k: v for k, v in self.__dict__.items() if k not in left_out}, "_identity": self._identity()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        identity = state.pop("_identity")
        self.__dict__.update(state, skipped=[])
        self._open()
        if self._identity() != identity:
            raise ValueError("shards have changed since the dataset was pickled; make a new TarDataset")


def _find_index(path: str) -> str:
    if not is_url(path) or os.path.exists(path):
        return find_index(path)
    from pycooldown.data.stored_index import fetch_index
    from pycooldown.data.subprocess_call import call_apart

    found: str = call_apart(fetch_index, path)
    return found


def _build(lists: dict[str, list[str]], path: str) -> None:
    from pycooldown.data.index_building import build_index

    # Faults are listed, so that each data set can refuse or skip them by its own option.
    build_index(lists, path, on_error="skip")
