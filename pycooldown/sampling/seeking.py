"""Move the core to any step. The core, `csrc/cpu/batch_planner.cpp`, chooses the samples of one step after another."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from pycooldown._core import AliasTable, Allocation, BatchPlanner, philox4x32
from pycooldown.mixture import Integers, Mixture, Vector
from pycooldown.sampling.batches import BatchPlan, Exposure
from pycooldown.sampling.block_shuffle import BlockShuffle
from pycooldown.sampling.changes import NEVER, Job, ScheduleChange
from pycooldown.schedules import Schedule

# Number of past positions that are remembered. A state slightly behind the newest batch then needs no replay from step
# 0.
_MAX_REMEMBERED = 16
# Number of mixtures, including the present one, that quota allocation knows when it ranks domains by urgency.
_LOOK_AHEAD = 32
# How many probabilities are computed at once when steps are skipped.
_CHUNK = 2**20
# Draws are counted in 64 bits. A limit below leaves room for sums.
MAX_DRAWS = 2**62

Position = tuple[Integers, Integers]  # draws of each domain, and its credit in 2^-32 samples


class MixtureSpan(NamedTuple):
    """The mixture in force in steps [start, end), and its alias table."""

    start: int
    end: int
    mixture: Mixture
    table: AliasTable
    schedule: Schedule

    @classmethod
    def from_step(cls, change: ScheduleChange, step: int) -> MixtureSpan:
        """Return the span that begins at ``step`` under the schedule of ``change``."""
        schedule, first = change.schedule, change.first
        mixture, end = schedule.mixture(step), schedule.next_change(step)
        _check_same_domains(mixture, first, step)
        return cls(step, NEVER if end is None else end, mixture, AliasTable(mixture.sampling), schedule)


class Planner:
    """The batches of a job's schedules. It is not thread-safe: `DomainBatchSampler` locks it.

    Args:
        job: Everything that decides the batches; call `follow_changes` when it has changed.
    """

    def __init__(self, job: Job) -> None:
        self._job = job
        self._seed = job.seed
        self._remembered: dict[int, Position] = {0: (np.zeros(0, np.int64), np.zeros(0, np.int64))}
        # None means: make it again from a remembered position. While the core moves, it is taken out of here. So an
        # interruption, such as a KeyboardInterrupt, never leaves it at another step than self._step.
        self._core: BatchPlanner | None = None
        self._step = 0
        self._spans: list[MixtureSpan] = []
        self.follow_changes()

    def follow_changes(self) -> None:
        """Take over the newest domains, their sizes and the sizes of batches."""
        self._core, self._spans = None, []
        num_domains = self._job.history.newest.first.num_domains
        for step, position in self._remembered.items():  # joined domains have not been drawn before
            draws, credits = (np.pad(values, (0, num_domains - len(values))) for values in position)
            self._remembered[step] = draws, credits

    def copy(self, job: Job) -> Planner:
        """Return a planner of a copied job, at the same step."""
        self._remember_position()
        other = object.__new__(Planner)
        other.__setstate__(self.__dict__ | {"_job": job, "_remembered": dict(self._remembered)})
        return other

    def plan(self, step: int, begin: int, end: int) -> BatchPlan:
        """Plan slots [begin, end) of the batch of ``step``. If it is far away, the steps between are counted first."""
        self._seek(step)
        if self._job.history.newest.delay:  # the schedule forgets the mixtures that a replay would need
            self._remember_position()
        spans = self._spans_from(step)
        core = self._take_core()
        samples = core.plan([(span.table, span.end) for span in spans], step, begin, end)
        self._stand(core, step + 1)
        return BatchPlan(*samples, spans[0].mixture)

    def before(self, step: int) -> Position:
        """Return how often each domain is drawn before ``step``, and its credit."""
        here = step if self._core is None else self._step
        self._remember_position()
        self._seek(step)
        position = self._position
        self._seek(here)
        return position

    def exposure(self, step: int, *, estimate: bool) -> Exposure:
        """Return how often the steps before ``step`` draw each domain; see `DomainBatchSampler.exposure`."""
        newest = self._job.history.newest.first
        if estimate and not self._job.once:
            expected = self.expected_before(step)
            return Exposure(newest.domains, expected.round().astype("int64"), expected / newest.sizes)
        draws, _ = self.before(step)
        return Exposure(newest.domains, draws, draws / newest.sizes)

    def expected_before(self, step: int) -> Vector:
        """Return how often each domain is drawn before ``step``: exactly where known, and on average after that."""
        self._remember_position()
        start = self._nearest(step)
        draws = self._remembered[start][0].astype(np.float64)
        while start < step:
            end = min(step, self._job.history.end(start), self._job.batch_sizes.end(start))
            for samples in _expected_draws(self._job.history.at(start), start, end, self._job.batch_sizes.at(start)):
                draws[: len(samples)] += samples
            start = end
        return draws

    def remember(self, step: int, position: Position) -> None:
        """Remember the position before a step, so that going back there costs no replay."""
        self._remembered[step] = position
        kept = _MAX_REMEMBERED + self._job.history.newest.delay
        for oldest in sorted(self._remembered)[1:-kept]:
            del self._remembered[oldest]

    def forget_after(self, step: int) -> None:
        """Forget the positions of later steps, because these will be planned again."""
        self._remember_position()
        self._remembered = {known: position for known, position in self._remembered.items() if known <= step}

    def reseed(self, seed: int) -> None:
        """Plan with another seed, from step 0 on."""
        self._seed = seed
        self._remembered = {0: self._remembered[0]}
        for change in self._job.history.changes:
            change.draws = {}
        self.follow_changes()
        self._step = 0

    def go_on(self, step: int, position: Position) -> None:
        """Go to a step with a known position."""
        self._remembered = {0: self._remembered[0], step: position}
        self.follow_changes()
        self._step = step
        self._seek(step)

    @property
    def _position(self) -> Position:
        assert self._core is not None
        return self._core.counts, self._core.credits

    def _remember_position(self) -> None:
        if self._core is not None:
            self.remember(self._step, self._position)

    def _nearest(self, step: int) -> int:
        """Return the last step up to ``step`` whose position is remembered."""
        if step < 0:
            raise ValueError(f"step = {step}; expected a step >= 0")
        if self._job.batch_sizes.samples_before(step) >= MAX_DRAWS:
            raise ValueError(f"step = {step}; expected a step before which fewer than 2^62 samples are drawn")
        return max(known for known in self._remembered if known <= step)

    def _seek(self, step: int) -> None:
        """Move the core to the start of ``step``, from the nearest position known before it."""
        start = self._nearest(step)
        if self._core is None or not start <= self._step <= step:
            core = self._new_core() if self._core is None else self._take_core()
            core.seek(*self._remembered[start])
            self._stand(core, start)
        while self._step < step:
            self._skip(step)

    def _skip(self, step: int) -> None:
        """Move the core towards ``step``, as far as one call can."""
        here, change = self._step, self._job.history.at(self._step)
        step = min(step, self._job.history.end(here))
        if (schedule := change.continuous) is not None and here < schedule.settled_from:
            look_ahead = _LOOK_AHEAD if self._job.allocation == "quota" else 1
            step = min(step, schedule.settled_from, here + max(_CHUNK // change.first.num_domains, look_ahead))
            end = min(step + look_ahead - 1, schedule.settled_from + 1)  # end of the rows
            rows = schedule.sampling(here, end)
            core = self._take_core()
            end = NEVER if end > schedule.settled_from else end
            core.skip_rows(rows, first_step=here, num_steps=step - here, look_ahead=look_ahead, end=end)
        else:
            spans = self._spans_from(here)
            step = min(step, spans[0].end)
            core = self._take_core()
            core.skip([(span.table, span.end) for span in spans], here, step)
        self._stand(core, step)

    def _spans_from(self, step: int) -> list[MixtureSpan]:
        """Return the span of ``step`` and, for quota allocation, those that follow as far as they are decided."""
        now = self._job.history.at(step)
        spans, passed = self._spans, 0  # spans of one schedule, each beginning at the previous end
        while passed < len(spans) and spans[passed].end <= step:
            passed += 1
        spans = spans[passed:]
        if not spans or spans[0].start > step or spans[0].schedule is not now.schedule:
            spans = [MixtureSpan.from_step(now, step)]
        # Do not look ahead beyond changes by set_schedule(): they were not known when the steps before were planned.
        look_ahead = self._job.allocation == "quota" and now.delay == 0
        while look_ahead and len(spans) < _LOOK_AHEAD and spans[-1].end != NEVER:
            spans.append(MixtureSpan.from_step(now, spans[-1].end))
        self._spans = spans
        return spans

    def _new_core(self) -> BatchPlanner:
        job = self._job
        core = BatchPlanner(
            job.history.newest.first.sizes,
            Allocation[job.allocation],
            batch_size=job.batch_sizes.at(0),
            seed=self._seed,
            shuffle=bool(job.shuffle),
            once=job.once,
            homogeneous=job.homogeneous,
        )
        if isinstance(blocks := job.shuffle, BlockShuffle):
            for number, sizes in enumerate(blocks.shard_sizes.values()):
                core.set_blocks(number, sizes, block=blocks.block, group=blocks.group)
        core.set_batch_sizes(job.batch_sizes.all_pairs)
        self._set_epoch_sizes(core)
        return core

    def _take_core(self) -> BatchPlanner:
        core, self._core = self._core, None
        assert core is not None
        return core

    def _stand(self, core: BatchPlanner, step: int) -> None:
        """Record where the core stands; a domain that grows here does so from its next epoch on."""
        if growing := self._job.history.growing_at(step):
            draws = dict(zip(self._job.history.newest.first.domains, core.counts.tolist(), strict=True))
            self._job.history.at(step).draws = {domain: draws[domain] for domain in growing}
            self._set_epoch_sizes(core)
        self._step = step
        self._core = core

    def _set_epoch_sizes(self, core: BatchPlanner) -> None:
        domains = self._job.history.newest.first.domains
        for domain, sizes in self._job.history.epoch_sizes().items():
            core.set_epoch_sizes(domains.index(domain), sizes)

    def __getstate__(self) -> dict[str, Any]:
        self._remember_position()
        return self.__dict__ | {"_core": None, "_spans": []}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        self.__dict__.update(state)
        self._core, self._spans = None, []


def _check_same_domains(mixture: Mixture, first: Mixture, step: int) -> None:
    same_domains = mixture.domains is first.domains or mixture.domains == first.domains
    if not same_domains or not (mixture.sizes is first.sizes or np.array_equal(mixture.sizes, first.sizes)):
        raise ValueError(f"the schedule's mixture at step {step} has other domains or sizes than the one it began with")


def _expected_draws(change: ScheduleChange, start: int, end: int, batch_size: int) -> list[Vector]:
    """Return float64 (K,) parts of the expected draws of steps [start, end), which one schedule decides."""
    schedule, parts = change.schedule, []
    while start < end:
        if (continuous := change.continuous) is not None and start < continuous.settled_from:
            last = min(end, continuous.settled_from, start + max(1, _CHUNK // change.first.num_domains))
            parts.append(batch_size * continuous.sampling(start, last).sum(axis=0))
        else:
            following = schedule.next_change(start)
            last = end if following is None else min(end, following)
            parts.append(batch_size * (last - start) * schedule.mixture(start).sampling)
        start = last
    return parts


def epoch_seed(seed: int, epoch: int) -> int:
    """Return the seed of a pass: the job's seed in epoch 0, otherwise a hash of seed and epoch."""
    if epoch == 0:
        return seed
    stream = 4  # Philox stream; csrc/include/pycooldown/philox.h lists the others
    low, high, _, _ = philox4x32([epoch % 2**32, epoch >> 32, stream, 0], [seed % 2**32, seed >> 32])
    return high << 32 | low
