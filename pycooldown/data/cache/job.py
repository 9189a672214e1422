"""The input of a fetcher: everything that decides which blocks are fetched and evicted, and when."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pycooldown.data.cache.blocks import Blocks, StoredDataset
from pycooldown.data.cache.plan import Actions, BlockUses, cache_actions
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
        uses = BlockUses(self.sampler, self.dataset, self.blocks, ranks=self.ranks, world_size=self.world_size)
        # A schedule that learns is planned step by step, as soon as each is known.
        horizon = 1 if self.learns else 0
        options = {"limit": self.limit, "depth": self.depth, "prefetched": self.prefetched, "horizon": horizon}
        return cache_actions(uses, start=start, stop=self.stop, held=held, **options)
