"""Mix streamed domains: a webdataset pipeline whose samples follow a schedule."""

from __future__ import annotations

import math
import os
import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from pycooldown._extras import require
from pycooldown.data.stages import Batches, held_back_by
from pycooldown.data.streams import LocalShards, Sample, SampleStream, Stream, expand_urls, local_path
from pycooldown.mixture import Integers
from pycooldown.sampling.sampler import AllocationName, DomainBatchSampler
from pycooldown.schedules import Schedule

require("data", "torch", "webdataset")

import webdataset  # noqa: E402
from torch.utils.data import get_worker_info  # noqa: E402
from webdataset.compat import FluidInterface  # noqa: E402
from webdataset.filters import default_collation_fn  # noqa: E402
from webdataset.handlers import reraise_exception  # noqa: E402
from webdataset.utils import pytorch_worker_info  # noqa: E402

__all__ = ["MixedPipeline", "mix"]

Collate = Callable[[list[Any]], Any]

_VERSION = 2  # version of states; states of version 1 are accepted


def mix(
    sources: Mapping[str, str | os.PathLike[str] | Iterable[str | os.PathLike[str]] | webdataset.DataPipeline],
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
    """Mix streamed domains by a schedule, for shards without random access; for local shards see `TarDataset`.

    Slot s of step t belongs to the domain that `DomainBatchSampler` gives it. Rank r of R takes slots
    [rB/R, (r+1)B/R) of each step. Worker w of W takes the steps `start_step + w`, `start_step + w + W` and so on, so a
    loader that batches B/R samples in its workers yields the steps in order. Ranks and workers are found as in
    webdataset.

    The R times W readers divide the shards of a domain: reader t mod W of a rank delivers its step t, on any worker.
    There are g = gcd(number of shards, readers) groups of readers, each with its own shards, and the readers of a group
    take turns at the samples. So every reader has samples and none repeats those of another, even with a single shard.
    All samples come equally often if shards hold equally many. Each domain starts again when it ends.

    Of uncompressed tar files on disk, a reader reads only its own samples, with their index (see `load_index`), so all
    readers together read the files once per pass. Other URLs are streams, of which a reader reads everything that its
    group shares: nothing is read twice if the number of shards is a multiple of the number of readers. webdataset reads
    streams up to the zero blocks that end a tar, and nothing after them. Each domain keeps one stream open.

    Args:
        sources: By domain, in the schedule's order: URLs that webdataset can open (`pipe:`, http, local paths, braces),
            or a webdataset pipeline. A pipeline must split itself by node and worker, and no part may be empty.
        schedule: The mixture at each step.
        batch_size: Size B of the global batch in samples, over all ranks.
        seed: Integer in [0, 2^64).
        num_steps: Stop before this step; `None` to continue forever.
        start_step: Number of steps that training has consumed, to continue there. The position in every domain follows
            from it: streams are read up to there, local shards are not. With a pipeline among the sources it must be a
            multiple of the number of workers, because these split the pipeline.
        allocation: As in `DomainBatchSampler`.
        shuffle_shards: Whether the order of a domain's shards changes from pass to pass.
        elastic: Whether every reader picks its samples from all shards. Then the samples of each step depend only on
            seed and schedule, and a job may continue with other numbers of ranks and workers. Every reader then reads
            each stream completely. Needs URLs.
        handler: webdataset's handler of errors in shards. With one that does not raise, local shards are streams.

    Returns:
        A webdataset pipeline of samples with `__key__`, `__url__`, `__domain__` and the bytes of each extension, with
        `.decode()`, `.map()`, `.batched()` and so on. `state_dict()` and `load_state_dict()` belong to one reader, for
        torchdata's `StatefulDataLoader`.

    Raises:
        ValueError: If the sources are not the schedule's domains, or an argument is out of range.
    """
    sampler = DomainBatchSampler(schedule, batch_size=batch_size, seed=seed, allocation=allocation, shuffle=False)
    if tuple(sources) != sampler.domains:
        raise ValueError(f"sources are {list(sources)}; expected the schedule's domains {list(sampler.domains)}")
    if start_step < 0:
        raise ValueError(f"start_step = {start_step}; expected a step >= 0")
    if num_steps is not None and num_steps < 0:
        raise ValueError(f"num_steps = {num_steps}; expected a step >= 0, or None")
    expanded: list[list[str] | webdataset.DataPipeline] = []
    for domain, source in sources.items():
        if isinstance(source, webdataset.DataPipeline):
            if elastic:
                raise ValueError(f"domain {domain!r} is a pipeline; elastic=True needs URLs")
            expanded.append(source)
        else:
            expanded.append(expand_urls(domain, source))
    return MixedPipeline(_Mix(sampler, expanded, num_steps, start_step, shuffle_shards, elastic, handler))


class MixedPipeline(webdataset.DataPipeline, FluidInterface):  # type: ignore[misc]
    """The result of `mix`: a webdataset pipeline that knows its position."""

    def iterator(self) -> Iterator[Any]:
        """Iterate over a pass; the next call starts again."""
        yield from super().iterator()
        source = self.pipeline[0]
        source.state["ended"] = source.ended = True  # last: a later stage may yield a rest after the mix has ended

    def batched(
        self, batchsize: int, collation_fn: Collate | None = default_collation_fn, partial: bool = True
    ) -> MixedPipeline:
        """Collate batches of the given size, as webdataset does, but without taking a sample before it is used."""
        return self.compose(Batches(batchsize, collation_fn, partial))  # type: ignore[no-any-return]

    def listed(self, batchsize: int, partial: bool = True) -> MixedPipeline:
        """Return lists of samples, like `batched` without collation."""
        return self.batched(batchsize, None, partial)

    def state_dict(self) -> dict[str, Any]:
        """Return this reader's position: how many samples have left the pipeline.

        Counts of other stages (`with_epoch`, `repeat`) are not included.

        Raises:
            ValueError: If a stage such as `shuffle` holds samples back, because they would be lost.
        """
        for stage in self.pipeline[1:]:
            if reason := held_back_by(stage):
                raise ValueError(
                    f"the pipeline's state does not include the position of its stage {reason}, so samples in it "
                    "would be lost; use stages that pass each sample on (map, decode, select, to_tuple, batched), put "
                    "others behind the loader, or continue with mix(start_step=...) and a DataLoader without states"
                )
        return dict(self.pipeline[0].state)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue after a saved state of the same reader among as many readers.

        Raises:
            ValueError: If this is no such state. A state of another reader or with another `start_step` is found only
                when iteration starts.
        """
        if not _is_state(state):
            raise ValueError(f"state is {state!r:.500}; expected a value of MixedPipeline.state_dict()")
        self.pipeline[0].load(dict(state))


def _is_state(state: Any) -> bool:
    def is_count(value: Any) -> bool:
        return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**62

    if not isinstance(state, Mapping) or state.get("version") not in (1, _VERSION):
        return False
    reader = state.get("reader")
    is_reader = reader is None or (isinstance(reader, list | tuple) and len(reader) == 4 and all(map(is_count, reader)))
    if not (is_reader and is_count(state.get("samples")) and isinstance(state.get("ended", False), bool)):
        return False
    return state["version"] == 1 or is_count(state.get("start_step"))


@dataclass
class _Mix(webdataset.PipelineStage):  # type: ignore[misc]
    sampler: DomainBatchSampler
    sources: list[list[str] | webdataset.DataPipeline]
    num_steps: int | None
    start_step: int
    shuffle_shards: bool
    elastic: bool
    handler: Callable[[Exception], bool]
    state: dict[str, Any] = field(init=False)
    ended: bool = field(init=False)

    def __post_init__(self) -> None:
        self.start_anew(reader=None)

    def start_anew(self, reader: list[int] | None) -> None:
        self.load({"version": _VERSION, "start_step": self.start_step, "samples": 0, "reader": reader})

    def load(self, state: dict[str, Any]) -> None:
        self.state, self.ended = {"ended": False, **state}, False

    def run(self) -> Iterator[Sample]:
        # A loader remembers that its pass has ended, and starts another one. It does not remember this for one of
        # several workers: that worker is asked again, and has nothing more for this pass.
        if self.state["ended"] and not self.ended and get_worker_info() is not None:
            self.ended = True
            return
        if self.ended or self.state["ended"]:
            self.start_anew(self.state["reader"])
        rank, world_size, worker, num_workers = reader = pytorch_worker_info()
        batch_size = self.sampler.batch_size
        begin, end = batch_size * rank // world_size, batch_size * (rank + 1) // world_size
        if begin == end:
            raise ValueError(
                f"batch_size = {batch_size} leaves rank {rank} of {world_size} without samples; expected at least "
                f"{world_size}"
            )
        first = self._take_part(list(reader))

        steps_done, slots_done = divmod(self.state["samples"], end - begin)
        step = first + steps_done * num_workers
        part = step % num_workers  # residue of the rank's steps, which decides the samples that this reader draws
        if part != worker and any(isinstance(source, webdataset.DataPipeline) for source in self.sources):
            raise ValueError(
                f"start_step = {self.start_step} is no multiple of the {num_workers} workers, among which a pipeline "
                "source splits itself, so their parts would change; start at a multiple, or pass URLs"
            )
        streams = [
            self._stream(i, rank * num_workers + part, world_size * num_workers) for i in range(len(self.sources))
        ]
        own_draws = self._own_draws(range(part, step, num_workers), begin, end)
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
        self.ended = True

    def _take_part(self, reader: list[int]) -> int:
        """Check that the state belongs to this reader, and return the first step that the reader takes."""
        if self.state["reader"] is not None and list(self.state["reader"]) != reader:
            raise ValueError(
                f"state belongs to the reader (rank, world_size, worker, num_workers) = {list(self.state['reader'])}, "
                f"but this is {reader}; continue with start_step, and with elastic=True to get exactly the same samples"
            )
        self.state["reader"] = reader
        _, _, worker, num_workers = reader
        if self.state["version"] == 1:  # worker w took the steps t with t mod W = w, which left them out of order
            return self.start_step + (worker - self.start_step) % num_workers
        if self.state["start_step"] != self.start_step:
            raise ValueError(
                f"state counts from start_step = {self.state['start_step']}, but this pipeline from "
                f"{self.start_step}; make the pipeline with the former start_step"
            )
        return self.start_step + worker

    def _own_draws(self, steps: range, begin: int, end: int) -> Integers:
        """Return how often this reader has drawn each domain, (K,); for an elastic reader, the draws of all readers."""
        draws = np.zeros(len(self.sources), dtype=np.int64)
        for step in () if self.elastic else steps:
            draws += np.bincount(self.sampler.plan(step).domain_ids[begin:end], minlength=len(draws))
        return draws

    def _stream(self, domain: int, reader: int, readers: int) -> SampleStream:
        source, name = self.sources[domain], self.sampler.domains[domain]
        if isinstance(source, webdataset.DataPipeline):
            return Stream(name, lambda number: iter(source))
        groups = 1 if self.elastic else math.gcd(len(source), readers)
        own = source[reader % groups :: groups]
        offset, stride = (0, 1) if self.elastic else (reader // groups, readers // groups)

        def order(number: int) -> list[int]:
            places = list(range(len(own)))
            if self.shuffle_shards:  # the same for all readers of the group
                random.Random(f"{self.sampler.seed}/{name}/{number}").shuffle(places)
            return places

        def samples_of(number: int) -> Iterator[Sample]:
            urls = ({"url": own[place]} for place in order(number))
            return iter(webdataset.tariterators.tarfile_samples(urls, handler=self.handler))

        stream = partial(Stream, name, samples_of, offset, stride)
        paths = [local_path(url) for url in own] if self.handler is reraise_exception else [None]
        if None in paths:
            return stream()
        known = [path for path in paths if path is not None]
        return LocalShards(name, own, known, order=order, offset=offset, stride=stride, stream=stream)


def _occurrences(domain_ids: npt.NDArray[np.int32], draws: Integers) -> Integers:
    """Return for each slot how often its domain was drawn before it. `draws`, (K,), is advanced by the batch."""
    order = np.argsort(domain_ids, kind="stable")
    grouped = domain_ids[order]
    ordinals = np.empty(len(domain_ids), dtype=np.int64)
    ordinals[order] = np.arange(len(domain_ids)) - np.searchsorted(grouped, grouped) + draws[grouped]
    draws += np.bincount(domain_ids, minlength=len(draws))
    return ordinals
