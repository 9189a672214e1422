"""The input of a fetcher: everything that decides which blocks are fetched and evicted, and when."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from pycooldown.data.cache.blocks import Blocks, StoredDataset
from pycooldown.data.cache.plan import PART, Actions, BlockUses, cache_actions
from pycooldown.mixture import Integers
from pycooldown.sampling.sampler import DomainBatchSampler
from pycooldown.schedules import AdaptiveSchedule

__all__ = ["CacheJob"]

NEVER = 2**62  # a step that is not reached


@dataclass(frozen=True)
class CacheJob:
    """A job as a node's fetcher needs it.

    Attributes:
        folder: Where the blocks are.
        sampler: A copy of the job's sampler.
        dataset: Tells where samples lie.
        blocks: The blocks of the data set.
        limit: Maximum bytes in the cache.
        depth: Maximum bytes to fetch ahead.
        prefetched: Maximum batches that a loader requests ahead of their use.
        ranks: The node's first rank, and its last rank plus one.
        world_size: Ranks of the job.
        concurrency: Requests in parallel.
        timeout: Seconds for one request.
        patience: Seconds after which a block is given up.
    """

    folder: str
    sampler: DomainBatchSampler
    dataset: StoredDataset
    blocks: Blocks
    limit: int
    depth: int
    prefetched: int
    ranks: tuple[int, int]
    world_size: int
    concurrency: int
    timeout: float
    patience: float

    @property
    def learns(self) -> bool:
        """Whether mixtures are known only a few steps ahead of training."""
        return isinstance(self.sampler.schedule, AdaptiveSchedule)

    @property
    def stop(self) -> int:
        """The last step plus one."""
        return NEVER if self.sampler.num_steps is None else self.sampler.num_steps

    def identity(self) -> dict[str, Any]:
        """Return the JSON values that must be equal in another job for it to share the cache."""
        state = self.sampler.state_dict(step=0)
        order = {name: value for name, value in state.items() if name not in ("version", "step", "draws", "credits")}
        digest = hashlib.sha256()
        for item in self.dataset.objects:
            digest.update(f"{item.url}\0{item.version}\0{item.size}\n".encode())
        digest.update(self.blocks.bounds.tobytes())
        options = {name: getattr(self, name) for name in ("limit", "depth", "prefetched", "world_size")}
        options |= {"ranks": list(self.ranks), "num_steps": self.sampler.num_steps}
        return {**order, "epoch": 0, "blocks": digest.hexdigest(), **options}

    def actions(self, start: int, held: Integers) -> Iterator[Actions | None]:
        """Yield the cache's actions from a step on; see `cache_actions`."""
        # A schedule that learns is planned step by step, as soon as each is known.
        horizon = 1 if self.learns else 0
        options = {"limit": self.limit, "depth": self.depth, "prefetched": self.prefetched, "horizon": horizon}
        return cache_actions(self._uses(), start=start, stop=self.stop, held=held, **options)

    def surplus(self, start: int, held: set[int]) -> list[int]:
        """Return the held blocks that exceed the limit: those whose first use from a step on is farthest.

        A cache with a larger limit may have left more blocks than fit. Uses after the first `PART` count as unknown.
        """
        sizes, room = self.blocks.sizes, self.limit
        if sizes[np.fromiter(held, np.int64)].sum() <= room:
            return []
        kept: set[int] = set()
        for number in itertools.chain(itertools.islice(self._used_from(start), PART), sorted(held)):
            if number in held and number not in kept:
                room -= int(sizes[number])
                if room < 0:
                    break
                kept.add(number)
        return sorted(held - kept)

    def _used_from(self, step: int) -> Iterator[int]:
        """Yield the blocks that each step uses, as far as the steps are known."""
        uses = self._uses()
        with contextlib.suppress(LookupError):
            for number in range(step, self.stop):
                yield from uses.at(number).tolist()

    def _uses(self) -> BlockUses:
        return BlockUses(self.sampler, self.dataset, self.blocks, ranks=self.ranks, world_size=self.world_size)
