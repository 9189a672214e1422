"""Mixing streamed domains: a webdataset pipeline whose samples follow a schedule."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from pycooldown._extras import require
from pycooldown.sampling.sampler import AllocationName, DomainBatchSampler
from pycooldown.schedules import Schedule

require("data", "webdataset")

import webdataset  # noqa: E402
from webdataset.compat import FluidInterface  # noqa: E402
from webdataset.handlers import reraise_exception  # noqa: E402
from webdataset.utils import pytorch_worker_info  # noqa: E402

__all__ = ["MixedPipeline", "mix"]

Sample = dict[str, Any]
Integers = npt.NDArray[np.int64]


def mix(
    sources: Mapping[str, str | Sequence[str] | webdataset.DataPipeline],
    schedule: Schedule,
    *,
    batch_size: int,
    seed: int,
    num_steps: int | None = None,
    start_step: int = 0,
    allocation: AllocationName = "multinomial",
    shuffle_shards: bool = True,
    elastic: bool = False,
    handler: Callable[[Exception], bool] = reraise_exception,
) -> MixedPipeline:
    """Mix streamed domains by a schedule, for shards that cannot be read at random; for local ones see `TarDataset`.

    Slot s of step t is of the domain that `DomainBatchSampler` gives it. Rank r of R takes slots [rB/R, (r+1)B/R) of
    each step, worker w of W the steps t with t mod W = w; so a loader that batches B/R samples in its workers yields
    the steps in order. Ranks and workers are found as webdataset finds them.

    The readers (R times W of them) share out the shards of a domain: g = gcd(number of shards, readers) groups of
    readers each stream their own shards, and the readers of a group take turns at the samples. So no reader is without
    samples and none repeats those of another, even with a single shard. Nothing is read twice where the number of
    shards is a multiple of the number of readers, and samples come equally often where shards hold equally many. Each
    domain starts anew when it ends, and keeps one stream open.

    Args:
        sources: By domain, in the schedule's order: URLs that webdataset can open (`pipe:`, http, local paths, braces),
            or a webdataset pipeline, which then has to split itself by node and worker and must not be empty anywhere.
        schedule: The mixture at each step.
        batch_size: Size B of the global batch in samples, over all ranks.
        seed: Integer in [0, 2^64).
        num_steps: Stop before this step; `None` to go on for ever.
        start_step: Where to go on: the number of steps that training has consumed. The position in every domain
            follows from it; streams are read up to there.
        allocation: As in `DomainBatchSampler`.
        shuffle_shards: Take the shards of a domain in another order in each of its epochs.
        elastic: Let every reader stream all shards and pick its samples, so that the samples of each step depend on the
            seed and the schedule alone: a job may go on with other numbers of ranks and workers. Costs readers times
            the reading. Needs URLs.
        handler: What webdataset does about errors in shards.

    Returns:
        A webdataset pipeline of samples with `__key__`, `__url__`, `__domain__` and the bytes of each extension, with
        `.decode()`, `.map()`, `.batched()` and so on. `state_dict()` and `load_state_dict()` are of one reader, for
        torchdata's `StatefulDataLoader`.

    Raises:
        ValueError: If the sources are not the schedule's domains, or an argument is out of range.
    """
    sampler = DomainBatchSampler(schedule, batch_size=batch_size, seed=seed, allocation=allocation, shuffle=False)
    if tuple(sources) != sampler.domains:
        raise ValueError(f"sources are {list(sources)}; expected the schedule's domains {list(sampler.domains)}")
    if start_step < 0:
        raise ValueError(f"start_step = {start_step}; expected a step >= 0")
    expanded: list[list[str] | webdataset.DataPipeline] = []
    for domain, source in sources.items():
        if isinstance(source, webdataset.DataPipeline):
            if elastic:
                raise ValueError(f"domain {domain!r} is a pipeline; elastic=True needs URLs")
            expanded.append(source)
            continue
        urls = list(webdataset.shardlists.expand_source(source))
        if not urls:
            raise ValueError(f"domain {domain!r} has no shards")
        expanded.append(urls)
    return MixedPipeline(_Mix(sampler, expanded, num_steps, start_step, shuffle_shards, elastic, handler))


class MixedPipeline(webdataset.DataPipeline, FluidInterface):  # type: ignore[misc]
    """What `mix` returns: a webdataset pipeline that knows where it stands."""

    def state_dict(self) -> dict[str, Any]:
        """Where this reader stands: how many samples left the mix, those that later stages hold back included."""
        return self.pipeline[0].state  # type: ignore[no-any-return]

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on behind a saved state of the same reader among as many.

        Raises:
            ValueError: If this is no such state; that it is another reader's is found when iteration starts.
        """
        if state.get("version") != 1 or state.get("samples", -1) < 0:
            raise ValueError(f"state is {dict(state)}; expected a value of MixedPipeline.state_dict()")
        self.pipeline[0].state = dict(state)


@dataclass
class _Mix(webdataset.PipelineStage):  # type: ignore[misc]
    sampler: DomainBatchSampler
    sources: list[list[str] | webdataset.DataPipeline]
    num_steps: int | None
    start_step: int
    shuffle_shards: bool
    elastic: bool
    handler: Callable[[Exception], bool]
    state: dict[str, Any] = field(default_factory=lambda: {"version": 1, "samples": 0, "reader": None})

    def run(self) -> Iterator[Sample]:
        rank, world_size, worker, num_workers = reader = pytorch_worker_info()
        if self.state["reader"] not in (None, list(reader)):
            raise ValueError(
                f"state is of the reader (rank, world_size, worker, num_workers) = {self.state['reader']}, this is "
                f"{list(reader)}; go on with start_step instead, and with elastic=True for the very same samples"
            )
        self.state["reader"] = list(reader)
        batch_size = self.sampler.batch_size
        begin, end = batch_size * rank // world_size, batch_size * (rank + 1) // world_size
        streams = [self._stream(domain, rank * num_workers + worker, world_size * num_workers) for domain in self._all]

        steps_done, slots_done = divmod(self.state["samples"], end - begin)
        step = self.start_step + (worker - self.start_step) % num_workers + steps_done * num_workers
        own_draws = self._own_draws(range(worker, step, num_workers), begin, end)
        while self.num_steps is None or step < self.num_steps:
            if self.elastic:
                draws = self.sampler.exposure(step).draws
                domain_ids = self.sampler.plan(step).domain_ids
                ordinals = _occurrences(domain_ids, draws)[begin:end]
                domain_ids = domain_ids[begin:end]
            else:
                domain_ids = self.sampler.plan(step).domain_ids[begin:end]
                ordinals = _occurrences(domain_ids, own_draws)
            for domain, ordinal in zip(domain_ids[slots_done:].tolist(), ordinals[slots_done:].tolist(), strict=True):
                sample = streams[domain].get(ordinal)
                sample["__domain__"] = self.sampler.domains[domain]
                self.state["samples"] += 1
                yield sample
            step += num_workers
            slots_done = 0
        self.state["samples"] = 0  # a further pass starts anew

    @property
    def _all(self) -> range:
        return range(len(self.sources))

    def _own_draws(self, steps: range, begin: int, end: int) -> Integers:
        """How often this reader has drawn each domain, (K,); an elastic one asks for the draws of all instead."""
        draws = np.zeros(len(self.sources), dtype=np.int64)
        for step in () if self.elastic else steps:
            draws += np.bincount(self.sampler.plan(step).domain_ids[begin:end], minlength=len(draws))
        return draws

    def _stream(self, domain: int, reader: int, readers: int) -> _Stream:
        source, name = self.sources[domain], self.sampler.domains[domain]
        if isinstance(source, webdataset.DataPipeline):
            return _Stream(name, lambda epoch: iter(source))
        groups = 1 if self.elastic else math.gcd(len(source), readers)
        own = source[reader % groups :: groups]

        def samples_of(epoch: int) -> Iterator[Sample]:
            urls = list(own)
            if self.shuffle_shards:  # the same for all readers of the group
                random.Random(f"{self.sampler.seed}/{name}/{epoch}").shuffle(urls)
            samples = webdataset.tariterators.tarfile_samples(({"url": url} for url in urls), handler=self.handler)
            return iter(samples)

        if self.elastic:
            return _Stream(name, samples_of)
        return _Stream(name, samples_of, reader // groups, readers // groups)


class _Stream:
    """One domain, epoch after epoch; the reader's n-th sample is number ``offset + n * stride`` of it."""

    def __init__(
        self, domain: str, samples_of: Callable[[int], Iterator[Sample]], offset: int = 0, stride: int = 1
    ) -> None:
        self._domain = domain
        self._samples_of = samples_of
        self._offset, self._stride = offset, stride
        self._epoch = 0
        self._samples = samples_of(0)
        self._begin = self._position = 0  # of the epoch and of the next sample, counted over all epochs
        self._length: int | None = None  # of an epoch, once one has ended

    def get(self, n: int) -> Sample:
        wanted = self._offset + n * self._stride
        while True:
            for sample in self._samples:
                self._position += 1
                if self._position > wanted:
                    return sample
            if self._position == self._begin:
                raise ValueError(
                    f"domain {self._domain!r} has no samples for this reader; leave it out, or give its URLs, which "
                    "mix shares out, where a pipeline was given"
                )
            # Once the length of an epoch is known, those that lie wholly before the wanted sample are not read.
            self._length = self._length or self._position
            self._epoch = max(self._epoch + 1, wanted // self._length)
            self._begin = self._position = self._epoch * self._length
            self._samples = self._samples_of(self._epoch)


def _occurrences(domain_ids: npt.NDArray[np.int32], draws: Integers) -> Integers:
    """For each slot, how often its domain was drawn before it. ``draws``, (K,), is moved past the batch."""
    order = np.argsort(domain_ids, kind="stable")
    grouped = domain_ids[order]
    ordinals = np.empty(len(domain_ids), dtype=np.int64)
    ordinals[order] = np.arange(len(domain_ids)) - np.searchsorted(grouped, grouped) + draws[grouped]
    draws += np.bincount(domain_ids, minlength=len(draws))
    return ordinals
