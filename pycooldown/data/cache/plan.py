"""The actions of a cache at each step of a job: a pure function of the sampler's plan, the limit and the depth.

This module collects the blocks that each step uses. `csrc/cpu/cache_planner.cpp` decides which one is evicted when
there is no room.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from pycooldown._core import CachePlanner
from pycooldown.data.cache.blocks import Blocks, StoredDataset
from pycooldown.mixture import Integers
from pycooldown.sampling.sampler import DomainBatchSampler

__all__ = ["PREFETCHED", "Actions", "BlockUses", "Forecast", "StorePlan", "cache_actions", "forecast"]

# Minimum number of block uses that are looked up in advance. Later uses count as unknown.
HORIZON = 2**22
# The same while all blocks fit and nothing is evicted. A smaller number lets a job start soon.
PART = 2**16
# Batches that loaders request ahead of their use, by default.
PREFETCHED = 16


class Actions(NamedTuple):
    """Fetches in order, and the evictions that make room for them.

    Attributes:
        fetches: Numbers of blocks, int64 of shape (n,).
        steps: The step that uses each fetched block.
        after: A fetch starts when every rank has requested the batch of this step, which is at most its own step.
        evict_ends: A fetch starts when the evictions before this position are done; int64 of shape (n,).
        evictions: Numbers of blocks, in order.
        planned: The actions are complete up to this step, exclusively.
        steps_over_limit: Steps so far at which the blocks of batches in use exceed the limit. The cache exceeds it too.
        steps_shrunk: Steps so far for which the limit leaves less than the depth to fetch ahead.
    """

    fetches: Integers
    steps: Integers
    after: Integers
    evict_ends: Integers
    evictions: Integers
    planned: int
    steps_over_limit: int
    steps_shrunk: int


class BlockUses:
    """The blocks that the ranks of a node use at each step.

    Args:
        sampler: A sampler with the job's plan; only plans are asked from it.
        dataset: Tells where samples lie.
        blocks: The blocks of the data set.
        ranks: The node's first rank, and its last rank plus one.
        world_size: Ranks of the job.
    """

    def __init__(
        self,
        sampler: DomainBatchSampler,
        dataset: StoredDataset,
        blocks: Blocks,
        *,
        ranks: tuple[int, int] = (0, 1),
        world_size: int = 1,
    ) -> None:
        self.sampler, self.dataset, self.blocks = sampler, dataset, blocks
        self.ranks, self.world_size = ranks, world_size

    def samples(self, step: int) -> Integers:
        """Return the samples of the node's ranks at a step."""
        indices = self.sampler.plan(step).indices
        first, end = (len(indices) * rank // self.world_size for rank in self.ranks)
        return indices[first:end]

    def at(self, step: int) -> Integers:
        """Return the numbers of the blocks of a step, each once, ascending."""
        return self.blocks.used_by_samples(self.samples(step), self.dataset)


def cache_actions(
    uses: BlockUses,
    *,
    start: int,
    stop: int,
    limit: int,
    depth: int,
    prefetched: int,
    held: Integers | None = None,
    horizon: int = 0,
) -> Iterator[Actions | None]:
    """Yield the cache's actions from step ``start`` to ``stop``, several steps at a time; ``None`` if not known yet.

    ``None`` means that a learning schedule has not decided the next step. Ask again when it has.

    Args:
        uses: The blocks of each step.
        start: The first step.
        stop: The last step plus one.
        limit: Maximum bytes in the cache.
        depth: Maximum bytes to fetch ahead of the requested batches.
        prefetched: Batches that may still be read when one is requested: blocks of this many earlier steps are kept.
        held: Blocks that are in the cache at the start.
        horizon: Minimum number of uses to look up in advance; by default `HORIZON`, and twice the blocks that fit.
    """
    sizes = uses.blocks.sizes
    planner = CachePlanner(sizes, limit=limit, depth=depth, prefetched=prefetched)
    fetched = np.zeros(len(sizes), np.bool_)  # or held at the start
    if held is not None:
        planner.hold(held)
        fetched[held] = True
    room = limit - planner.held_bytes  # below 0 from the first eviction on
    if not horizon:
        horizon = max(HORIZON, 2 * int(limit / max(1.0, sizes.mean() if len(sizes) else 1.0)))
    known: list[Integers] = []
    count, end, begin = 0, start, start
    while begin < stop:
        if room >= 0 and fetched.all():  # all blocks are there and stay: the rest needs no plan
            none = np.empty(0, np.int64)
            yield Actions(none, none, none, none, none, stop, planner.steps_over_limit, planner.steps_shrunk)
            return
        while end < stop and (end == begin or count < (horizon if room < 0 else min(horizon, PART))):
            try:
                blocks = uses.at(end)
            except LookupError:
                break
            known.append(blocks)
            new = blocks[~fetched[blocks]]
            fetched[new] = True
            room -= int(sizes[new].sum())
            count += len(blocks)
            end += 1
        if end == begin:
            yield None
            continue
        steps = end - begin if end == stop or room >= 0 else max(1, len(known) // 2)
        ends = np.cumsum([len(blocks) for blocks in known], dtype=np.int64)
        fetches, at, after, evict_ends, evictions = planner.plan(np.concatenate(known), ends, num_steps=steps)
        begin += steps
        count -= int(ends[steps - 1])
        del known[:steps]
        yield Actions(
            fetches,
            at + start,
            after + start,
            evict_ends,
            evictions,
            begin,
            planner.steps_over_limit,
            planner.steps_shrunk,
        )


@dataclass(frozen=True)
class Forecast:
    """The fetches of a job with one size of the cache.

    Attributes:
        limit: Bytes of the cache.
        bytes_used: Bytes of the samples that are read, each counted once, including bytes between them.
        bytes_fetched: Bytes that are fetched.
        requests: Number of fetched blocks, with one request each.
        steps_over_limit: Steps at which the blocks of batches in use exceed the limit. The cache exceeds it too.
        steps_shrunk: Steps for which the limit leaves less than the depth to fetch ahead.
    """

    limit: int
    bytes_used: int
    bytes_fetched: int
    requests: int
    steps_over_limit: int
    steps_shrunk: int


@dataclass(frozen=True)
class StorePlan:
    """What a job reads from object stores, for several sizes of the cache.

    Attributes:
        data_bytes: Bytes of all blocks of the data set.
        steps: Number of steps.
        uses_per_step: Blocks that a step uses, on average.
        smallest_limit: Bytes of the smallest cache at which nothing is fetched twice.
        forecasts: One for each size of the cache.
    """

    data_bytes: int
    steps: int
    uses_per_step: float
    smallest_limit: int
    forecasts: list[Forecast]


def forecast(
    uses: BlockUses, *, start: int = 0, stop: int, limits: list[int], depths: list[int], prefetched: int
) -> StorePlan:
    """Return what steps [start, stop) fetch with caches of several sizes, each with its depth.

    For `prefetched` see `cache_actions`. The whole job is planned: the smallest limit does not depend on `HORIZON`, but
    all uses are held in memory, with 8 bytes each.
    """
    sizes = uses.blocks.sizes
    known = _KnownUses(uses, start, stop)
    forecasts = []
    for limit, depth in zip(limits, depths, strict=True):
        planner = CachePlanner(sizes, limit=limit, depth=depth, prefetched=prefetched)
        fetches, *_ = planner.plan(known.blocks, known.ends, num_steps=stop - start)
        forecasts.append(
            Forecast(
                limit,
                known.bytes_used,
                int(sizes[fetches].sum()),
                len(fetches),
                planner.steps_over_limit,
                planner.steps_shrunk,
            )
        )
    return StorePlan(
        data_bytes=int(sizes.sum()),
        steps=stop - start,
        uses_per_step=len(known.blocks) / max(1, stop - start),
        smallest_limit=known.smallest_limit(sizes, min(depths, default=0), prefetched),
        forecasts=forecasts,
    )


class _KnownUses:
    """All block uses of some steps, and the bytes of the samples that they read."""

    def __init__(self, uses: BlockUses, start: int, stop: int) -> None:
        found: list[Integers] = []
        seen = np.zeros((sum(uses.sampler.sizes.tolist()) + 7) // 8, np.uint8)  # a bit for each sample
        counts = np.zeros(len(uses.blocks))  # number of samples read, by block
        for step in range(start, stop):
            samples = np.unique(uses.samples(step))
            found.append(uses.blocks.used_by(uses.dataset.locate(samples)))
            bits = (1 << (samples & 7)).astype(np.uint8)
            new = (seen[samples >> 3] & bits) == 0
            np.bitwise_or.at(seen, samples >> 3, bits)
            firsts, _ = uses.blocks.covering(uses.dataset.locate(samples[new]))
            np.add.at(counts, firsts, new.sum() / max(1, len(firsts)))  # a sample may have several ranges
        # The share of a block's samples that are read also counts for the bytes between samples.
        shares = np.minimum(1, counts / uses.blocks.samples)
        self.bytes_used = int((uses.blocks.sizes * shares).sum())
        self.blocks = np.concatenate([np.empty(0, np.int64), *found])
        self.ends = np.cumsum([len(blocks) for blocks in found], dtype=np.int64)

    def smallest_limit(self, sizes: Integers, depth: int, prefetched: int) -> int:
        """Return the maximum bytes in use at one time, each block from its fetch until its last step is consumed."""
        steps = len(self.ends)
        planner = CachePlanner(sizes, limit=2**62, depth=depth, prefetched=prefetched)
        fetches, _, after, _, _ = planner.plan(self.blocks, self.ends, num_steps=steps)
        step_of = np.repeat(np.arange(steps), np.diff(self.ends, prepend=0))
        last_steps = np.full(len(sizes), -1)
        np.maximum.at(last_steps, self.blocks, step_of)
        done = np.zeros(steps + 1, np.int64)  # bytes of blocks whose last step is before each step
        np.add.at(done, last_steps[fetches] + 1, sizes[fetches])
        in_use = np.cumsum(sizes[fetches]) - np.cumsum(done)[np.maximum(0, after - prefetched)]
        return int(in_use.max(initial=0))
