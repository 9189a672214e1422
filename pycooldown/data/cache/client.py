"""The cache's interface for the processes of a job."""

from __future__ import annotations

import contextlib
import operator
import os
import socket
import warnings
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pycooldown._extras import require
from pycooldown.data.byte_ranges import Buffer
from pycooldown.data.cache.block_files import BlockFiles
from pycooldown.data.cache.blocks import Blocks, StoredDataset
from pycooldown.data.cache.job import CacheJob
from pycooldown.data.cache.messages import send
from pycooldown.data.cache.plan import PREFETCHED
from pycooldown.data.cache.reader import BlockReader
from pycooldown.data.cache.starting import join_fetcher, states_path
from pycooldown.data.cache.states import SilentSteps
from pycooldown.data.stores import is_url
from pycooldown.mixture import Integers
from pycooldown.sampling.block_shuffle import BLOCK
from pycooldown.sampling.sampler import DomainBatchSampler
from pycooldown.schedules import AdaptiveSchedule

__all__ = ["CacheStatistics", "KnownFutureCache"]


@dataclass(frozen=True)
class CacheStatistics:
    """Counts of a fetcher since it started.

    Attributes:
        requests: Blocks that were fetched, with one request each.
        fetched_bytes: Bytes of these blocks.
        retries: Requests that were repeated after a temporary failure.
        unplanned: Blocks that were read directly from the store because the plan did not contain them.
        streamed: Blocks that were passed on without a file because the disk was full.
        held: Blocks in the folder.
    """

    requests: int
    fetched_bytes: int
    retries: int
    unplanned: int
    streamed: int
    held: int


class KnownFutureCache:
    """A cache on a node's disk for a data set in object stores, filled in advance according to the sampler's plan.

    ::

        cache = KnownFutureCache("/local/cache", limit=200 << 30)
        dataset = TarDataset({"en": "s3://bucket/en/{000..099}.tar", ...})
        sampler = DomainBatchSampler(schedule, ..., shuffle="blocks", shard_sizes=dataset.shard_sizes)
        cache.follow(sampler, dataset)
        loader = DataLoader(dataset, batch_sampler=sampler, num_workers=4)

    The samples of each step are known in advance. So one process per node, the fetcher, reads their blocks before they
    are used, and evicts those whose next use is farthest. Each block is fetched with one request, in the version that
    the data set knows; temporary failures are retried until ``patience`` is over. Except for retries, bytes and
    requests are exactly those that `pycooldown plan --store` forecasts.

    The folder is on a disk of this node. All local ranks share it; a second job can too, if its plan is the same. Files
    that the cache has not written are left alone. Blocks stay when a job ends, and the next job uses them.

    Args:
        folder: Where blocks are kept; created if it is missing.
        limit: Maximum bytes of blocks on the disk.
        block: Samples in a block; by default those of the sampler, or else 64.
        depth: Maximum bytes to fetch ahead of use; by default a quarter of the limit.
        prefetched: Batches that loaders request ahead of use, at least ``num_workers * prefetch_factor`` of a
            ``DataLoader``. Blocks of this many steps before the requested one are kept, because workers may still read
            them.
        concurrency: Requests in parallel.
        timeout: Seconds for one request, including its body.
        patience: Seconds after which a block is given up, which ends the job.

    Raises:
        ValueError: If an argument is out of its range.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        limit: int,
        block: int | None = None,
        depth: int | None = None,
        prefetched: int = PREFETCHED,
        concurrency: int = 64,
        timeout: float = 60.0,
        patience: float = 600.0,
    ) -> None:
        depth = limit // 4 if depth is None else depth
        least = {
            "limit": (limit, 1),
            "depth": (depth, 0),
            "prefetched": (prefetched, 0),
            "concurrency": (concurrency, 1),
        }
        for name, (value, smallest) in (least | ({} if block is None else {"block": (block, 1)})).items():
            if operator.index(value) < smallest:
                raise ValueError(f"{name} = {value}; expected an integer of at least {smallest}")
        for name, seconds in (("timeout", timeout), ("patience", patience)):
            if not seconds > 0:
                raise ValueError(f"{name} = {seconds}; expected a number of seconds above 0")
        self.folder = Path(folder).absolute()
        self.limit, self.block, self.depth, self.prefetched = limit, block, depth, prefetched
        self.concurrency, self.timeout, self.patience = concurrency, timeout, patience
        self._reader: BlockReader | None = None
        self.reports: _Reports | None = None  # of the sampler that is followed now
        self._control: socket.socket | None = None
        _ALL.add(self)

    def follow(
        self,
        sampler: DomainBatchSampler,
        dataset: StoredDataset,
        *,
        ranks: tuple[int, int] | None = None,
    ) -> None:
        """Start to fetch what a sampler will read from a data set, and let the data set read through this cache.

        Call it on each rank, after `load_state_dict` and before loaders start their workers. The first rank on a node
        starts the fetcher, which ends after the last one. After `set_schedule` or `set_batch_size`, close the caches of
        all ranks and call it again.

        Args:
            sampler: The sampler that the job iterates.
            dataset: Its data set; all of its objects must lie in stores.
            ranks: The node's first rank, and its last rank plus one. By default the ranks that torchrun states in the
                environment, if they fit the sampler; otherwise only the sampler's own rank.

        Raises:
            ValueError: If a job with another plan uses the folder, or the data set is not in stores.
            OSError: If the fetcher cannot be started.
        """
        require("remote", "obstore")
        if local := [item.url for item in dataset.objects if not is_url(item.url)]:
            raise ValueError(
                f"{local[0]} is a local file; expected only objects in stores: read local files without a cache"
            )
        self.close()
        self.folder.mkdir(parents=True, exist_ok=True)
        shuffle = sampler.state_dict(step=0)["shuffle"]
        block = self.block or (shuffle["block"] if isinstance(shuffle, dict) else BLOCK)
        job = CacheJob(
            folder=str(self.folder),
            sampler=sampler,
            dataset=dataset,
            blocks=Blocks.of(dataset, block),
            limit=self.limit,
            depth=self.depth,
            prefetched=self.prefetched,
            ranks=_local_ranks(sampler) if ranks is None else ranks,
            world_size=sampler.world_size,
            concurrency=self.concurrency,
            timeout=self.timeout,
            patience=self.patience,
        )
        start = sampler.state_dict()["step"]
        address, self._control, reply = join_fetcher(job, start)
        if "differing" in reply:
            self.close()
            raise ValueError(
                f"{self.folder} is in use by a job with another plan: {', '.join(reply['differing'])} differ; use "
                "another folder for each job"
            )
        self._reader = BlockReader(BlockFiles(self.folder, dataset.objects, job.blocks), address)
        for text in reply["warnings"]:
            warnings.warn(text, stacklevel=2)
        dataset.ranges = self  # type: ignore[attr-defined]
        self.reports = _Reports(self, sampler, start, SilentSteps(states_path(address)))
        sampler.watch(self.reports)

    def read(self, objects: Integers, starts: Integers, ends: Integers) -> Sequence[Buffer]:
        """Return the bytes of n ranges; see `ByteRanges.read`.

        Raises:
            RuntimeError: If the cache does not follow a sampler.
            StoreError: If a block cannot be read from its store.
        """
        return self._following().read(objects, starts, ends)

    def statistics(self) -> CacheStatistics:
        """Return the fetcher's counts since it started.

        Raises:
            RuntimeError: If the cache does not follow a sampler.
            OSError: If the fetcher has ended.
        """
        return CacheStatistics(**self._following().statistics())

    def close(self) -> None:
        """Disconnect from the fetcher, which ends when all have disconnected; blocks stay in the folder."""
        if self._control is not None:
            self._control.close()
        if self._reader is not None:
            self._reader.close()
        self._control = self._reader = self.reports = None

    def __enter__(self) -> KnownFutureCache:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def report(self, message: dict[str, Any]) -> None:
        """Report a step to the fetcher. If the fetcher has ended, the next read notices."""
        if self._control is not None:
            with contextlib.suppress(OSError):
                send(self._control, message)

    def close_in_child(self) -> None:
        """Close copies made by a fork, because the fetcher must notice when the parent ends."""
        if self._control is not None:
            self._control.close()
            self._control = None

    def _following(self) -> BlockReader:
        if self._reader is None:
            raise RuntimeError("the cache follows no sampler; call cache.follow(sampler, dataset) first")
        return self._reader

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"reports": None, "_control": None}


class _Reports:
    """A listener that reports a rank's steps to the fetcher, except silent ones, and its jumps to other steps."""

    def __init__(
        self, cache: KnownFutureCache, sampler: DomainBatchSampler, start: int, silent_steps: SilentSteps
    ) -> None:
        self._cache, self._sampler, self._silent_steps = cache, sampler, silent_steps
        self._next, self._leaps = (sampler.epoch, start), 0

    def __call__(self, step: int) -> None:
        if self._cache.reports is not self:  # `follow` was called again
            return
        epoch = self._sampler.epoch
        is_next = (epoch, step) == self._next
        self._leaps += not is_next
        self._next = epoch, step + 1
        if is_next and self._silent_steps.include(step, self._leaps):
            return
        schedule = self._sampler.schedule
        learned = {"learned": schedule.state_dict()} if isinstance(schedule, AdaptiveSchedule) else {}
        place = {"step": step, "epoch": epoch, "leap": self._leaps}
        self._cache.report({"kind": "step", **place, **learned})


_ALL: weakref.WeakSet[KnownFutureCache] = weakref.WeakSet()


def _close_in_child() -> None:
    for cache in list(_ALL):
        cache.close_in_child()


os.register_at_fork(after_in_child=_close_in_child)


def _local_ranks(sampler: DomainBatchSampler) -> tuple[int, int]:
    """Return the ranks of this node, as numbered by torchrun."""
    if sampler.world_size == 1:
        return 0, 1
    try:
        rank, local, number = (int(os.environ[name]) for name in ("RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE"))
    except KeyError:
        return sampler.rank, sampler.rank + 1
    if (rank, int(os.environ.get("WORLD_SIZE", "0"))) != (sampler.rank, sampler.world_size):
        return sampler.rank, sampler.rank + 1
    return rank - local, rank - local + number
