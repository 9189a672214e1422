"""A step's batch in micro-batches, and random numbers that depend only on a micro-batch's place in the run."""

from __future__ import annotations

import random
from collections.abc import Iterator

import numpy as np
import torch

from pycooldown.sampling.sampler import DomainBatchSampler


class SeededBatch(list[int]):
    """Sample indices of a micro-batch, with the seed of the random numbers that reading and collating it takes."""

    def __init__(self, indices: list[int], seed: list[int]) -> None:
        super().__init__(indices)
        self.seed = seed

    def seed_generators(self) -> None:
        """Seed the generators of torch, NumPy and Python."""
        of_torch, of_numpy, of_python = np.random.SeedSequence(self.seed).generate_state(3).tolist()
        torch.manual_seed(of_torch)
        np.random.seed(of_numpy)  # noqa: NPY002
        random.seed(of_python)


class MicroBatches:
    """The batches of a sampler, each cut into ``accumulation`` parts of equal size (to within one).

    Args:
        sampler: The batches of this rank.
        accumulation: Micro-batches of a batch.
        seed: With a seed, random numbers in a loader's workers (such as masks) depend only on the micro-batch's place
            in the job, so that a resumed job draws the same.

    Raises:
        ValueError: In iteration, if a batch has fewer samples than parts.
    """

    def __init__(self, sampler: DomainBatchSampler, accumulation: int, *, seed: int | None = None) -> None:
        self.sampler = sampler
        self.accumulation = accumulation
        self.seed = seed
        self._step = 0
        if seed is not None:
            sampler.watch(self._note_step)

    def _note_step(self, step: int) -> None:
        self._step = step

    def __iter__(self) -> Iterator[list[int]]:
        for batch in self.sampler:
            if len(batch) < self.accumulation:
                raise ValueError(
                    f"a batch of {len(batch)} samples cannot be cut into {self.accumulation} micro-batches; expected "
                    "at least one sample for each"
                )
            for part in range(self.accumulation):
                begin, end = (len(batch) * i // self.accumulation for i in (part, part + 1))
                indices = batch[begin:end]
                place = self.sampler.rank * self.accumulation + part
                yield indices if self.seed is None else SeededBatch(indices, [self.seed, self._step, place, 1])


def seed_micro_batch(seed: int, step: int, place: int) -> None:
    """Seed torch's generators, so that dropout depends only on the micro-batch's place in the run.

    Args:
        seed: The run's seed.
        step: Optimizer step.
        place: Number of the micro-batch within the global batch, counted over all ranks.
    """
    torch.manual_seed(int(np.random.SeedSequence([seed, step, place]).generate_state(1)[0]))
