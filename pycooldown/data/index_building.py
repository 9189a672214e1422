"""Build or update one index of all shards of a data set, in parallel."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Literal

import numpy as np

from pycooldown._files import lock_folder, open_atomically
from pycooldown.data.byte_ranges import StoreRanges
from pycooldown.data.dataset_index import locate_shard, open_index
from pycooldown.data.engines import open_engine
from pycooldown.data.index import TarIndex, TarIndexWriter, load_index
from pycooldown.data.publish import Progress
from pycooldown.data.shard_lists import ShardPaths, find_shards, list_shards
from pycooldown.data.stores import StoredObject, is_url

__all__ = ["build_index", "locked"]

FIRST_WINDOW, LARGEST_WINDOW = 64 << 10, 8 << 20  # bytes that one request of a scan fetches
QUESTIONS = 32  # parallel requests that ask a store whether an object exists
ON_RAY = 1024  # maximum number of finished indexes that wait for earlier shards
NEAR = 1 << 20  # fetching this many unneeded bytes is cheaper than another request

ShardInIndex = tuple[TarIndex, int]  # and the number of the shard


def build_index(
    shards: ShardPaths,
    path: str | os.PathLike[str],
    *,
    workers: int = 8,
    ray: str | None = None,
    on_error: Literal["raise", "skip"] = "raise",
    progress: Progress | None = None,
) -> None:
    """Write one index of all shards, which `TarDataset(path)` opens.

    An index beside a file is used. The headers of objects in stores are read by ranges; large members are not fetched.
    An existing index is updated: entries of unchanged shards are kept, and if nothing has changed, it is not written.
    Several processes may call this for one index; only one of them works.

    Args:
        shards: By domain, one or several uncompressed tar files: paths, URLs (`s3://`, `gs://`, `az://`, `http(s)://`)
            or patterns with braces or wildcards; http(s) has no wildcards.
        path: The file to write. Paths of shards in its folder are stored relative to it, so both can be moved together.
        workers: Shards to read in parallel; with Ray, 0 means one per core.
        ray: Address of a Ray cluster whose cores read the shards, `"auto"` for the cluster of this machine, or
            `"local"` to start one. They must find the shards under the same absolute paths.
        on_error: `"raise"` refuses shards with faults; `"skip"` lists the faults in the index.
        progress: Called with the phase, the number of shards done, and the number of all shards.

    Raises:
        ValueError: If a shard has faults and `on_error="raise"`, or if an argument is invalid.
        OSError: If a shard cannot be read, the index cannot be written, or there is no Ray cluster at the address.
        RuntimeError: If a worker of Ray dies.
    """
    if workers < (ray is None):
        raise ValueError(f"workers = {workers}; expected at least {int(ray is None)}")
    if on_error not in ("raise", "skip"):
        raise ValueError(f"on_error = {on_error!r}; expected 'raise' or 'skip'")
    path = os.path.abspath(path)
    found = find_shards(list_shards(shards), workers=max(workers, QUESTIONS))
    every = [shard for files in found.values() for shard in files]
    with locked(os.path.dirname(path)), ThreadPoolExecutor(workers or QUESTIONS) as pool:
        known = _Known(path)
        kept = list(pool.map(known.find, every))
        if known.index is not None and known.lists(found) and all(kept):
            _refuse_faults(known.index, lambda shard: known.paths[shard], on_error)
            return
        writer = TarIndexWriter()
        work = list(zip(every, kept))
        sources = _in_order(pool, _source, work, 4 * workers) if ray is None else _on_ray(work, workers, ray)
        done = 0
        with open_atomically(path) as file:
            file.write(bytes(TarIndexWriter.HEADER_SIZE))
            for domain, files in found.items():
                writer.begin_domain(os.fsencode(domain))
                for shard, (index, number) in zip(files, sources):
                    own = ((at, reason) for of, at, reason in index.faults if of == number)
                    if on_error == "raise" and (fault := next(own, None)):
                        raise _fault(shard.url, *fault)
                    version = shard.version if is_url(shard.url) else ""
                    file.write(writer.add(index, number, os.fsencode(_name(shard.url, path)), os.fsencode(version)))
                    done += 1
                    if progress is not None:
                        progress("index", done, len(every))
            directory, header = writer.finish()
            file.write(directory)
            file.seek(0)
            file.write(header)


def _absolute(path: str) -> str:
    return path if is_url(path) else os.path.abspath(path)


def _name(path: str, index: str) -> str:
    """Return a shard's name in the index."""
    return _absolute(path).removeprefix(os.path.join(os.path.dirname(index), ""))


class _Known:
    """The entries of an existing index."""

    def __init__(self, path: str) -> None:
        self.index: TarIndex | None = None
        self.paths: list[str] = []
        # An index that cannot be used is made again.
        with contextlib.suppress(OSError, ValueError):
            self.index = open_index(path)
            self.paths = [locate_shard(self.index.path(i), path) for i in range(self.index.num_shards)]
        self._numbers = {path: number for number, path in enumerate(self.paths)}

    def find(self, shard: StoredObject) -> ShardInIndex | None:
        number = self._numbers.get(_absolute(shard.url))
        if self.index is None or number is None or self.index.shard_size(number) != shard.size:
            return None
        if is_url(shard.url):
            return (self.index, number) if self.index.version(number) == shard.version else None
        same = str(self.index.shard_mtime_ns(number)) == shard.version
        return (self.index, number) if same and self.index.has_fingerprint(number, os.fsencode(shard.url)) else None

    def lists(self, found: Mapping[str, Sequence[StoredObject]]) -> bool:
        """Return whether the index has exactly these shards."""
        wanted = [
            shard.url if is_url(shard.url) else os.path.abspath(shard.url)
            for files in found.values()
            for shard in files
        ]
        firsts = [0]
        for files in found.values():
            firsts.append(firsts[-1] + len(files))
        domains = self.index.domains if self.index is not None else []
        return wanted == self.paths and [(name, first) for name, first, _ in domains] == list(zip(found, firsts))


def _source(work: tuple[StoredObject, ShardInIndex | None]) -> ShardInIndex:
    shard, kept = work
    if kept is not None:
        return kept
    if not is_url(shard.url):
        return load_index(shard.url, write=False), 0
    return TarIndex.scan_object(_Windows(shard), shard.size), 0


def _on_ray(work: Sequence[tuple[StoredObject, ShardInIndex | None]], workers: int, ray: str) -> Iterator[ShardInIndex]:
    """Yield the results of `_source` in the order of the shards, with a bounded number in work or waiting."""
    with open_engine(workers=workers, ray=ray) as run:
        for begin in range(0, len(work), ON_RAY):
            window = work[begin : begin + ON_RAY]
            missing = [i for i, (_, kept) in enumerate(window) if kept is None]
            shards = [dataclasses.replace(window[i][0], url=_absolute(window[i][0].url)) for i in missing]
            scanned = {missing[number]: result for number, result in run(_scan, shards)}
            for i, (shard, kept) in enumerate(window):
                yield kept or (_read_scan(shard, *scanned.pop(i)), 0)


def _scan(shard: StoredObject) -> tuple[bytes, int, int]:
    """Return the index of a shard as bytes, and the shard's size and modification time that are needed to open it."""
    index, _ = _source((shard, None))
    return index.to_bytes(), index.shard_size(0), index.shard_mtime_ns(0)


def _read_scan(shard: StoredObject, content: bytes, size: int, mtime_ns: int) -> TarIndex:
    index = TarIndex.from_bytes(content, size, mtime_ns)
    if index is None:
        raise RuntimeError(
            f"{shard.url} was indexed by another version of pycooldown; install one version on all nodes"
        )
    return index


class _Windows:
    """A reader of an object's headers in windows, which grow, and are small again after a large member."""

    def __init__(self, item: StoredObject) -> None:
        self._ranges = StoreRanges([item])
        self._size = item.size
        self._start, self._content = 0, memoryview(b"")
        self._window = FIRST_WINDOW // 2

    def __call__(self, offset: int, count: int) -> bytes:
        end = self._start + len(self._content)
        if not (self._start <= offset and offset + count <= end):
            goes_on = self._start <= offset <= end + NEAR
            self._window = min(2 * self._window, LARGEST_WINDOW) if goes_on else FIRST_WINDOW
            stop = min(self._size, offset + max(count, self._window))
            self._content = memoryview(self._ranges.read(*np.array([[0], [offset], [stop]], np.int64))[0])
            self._start = offset
        at = offset - self._start
        return bytes(self._content[at : at + count])


def _in_order(
    pool: ThreadPoolExecutor, function: Callable[[Any], Any], items: Iterable[Any], ahead: int
) -> Iterator[Any]:
    """Yield results in the order of the items, with a bounded number in work or waiting."""
    waiting: deque[Future[Any]] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) >= ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()


def _refuse_faults(index: TarIndex, path_of: Callable[[int], str], on_error: str) -> None:
    if on_error == "raise" and index.faults:
        shard, offset, reason = index.faults[0]
        raise _fault(path_of(shard), offset, reason)


def _fault(path: str, offset: int, reason: str) -> ValueError:
    return ValueError(
        f"{path} at byte {offset}: {reason}; repair the shard, or pass on_error='skip' (--on-error skip) to leave such "
        "samples out"
    )


@contextlib.contextmanager
def locked(folder: str) -> Iterator[None]:
    """Let one process work at a time, if the file system has locks; otherwise several do the same work."""
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):
            stack.enter_context(lock_folder(folder))
        yield
