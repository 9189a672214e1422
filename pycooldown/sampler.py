"""Turns a schedule into batches of sample indices, each a pure function of (seed, step)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from pycooldown import _core
from pycooldown.mixture import Mixture
from pycooldown.schedules import AdaptiveSchedule, Schedule

AllocationName = Literal["multinomial", "systematic", "quota"]
Integers = npt.NDArray[np.int64]

# How many past positions are remembered, so that a state a little behind the newest batch costs no replay from step 0.
_MAX_SNAPSHOTS = 16
# How many changes of the mixture quota allocation looks ahead to see deadlines.
_MAX_STAGES = 32
_NEVER = 2**64 - 1


_Position = tuple[Integers, Integers]  # draws, and credits in 2^-32 samples


@dataclass(frozen=True)
class BatchPlan:
    """The samples of one global batch, in slot order; rank r of R takes slots [r B / R, (r + 1) B / R).

    Attributes:
        domain_ids: int32 (B,), positions in ``mixture.domains``.
        indices: int64 (B,), sample indices into the domains laid end to end.
        epochs: int64 (B,), the pass through its domain that a sample belongs to, from 0.
        mixture: the mixture in force.
    """

    domain_ids: npt.NDArray[np.int32]
    indices: Integers
    epochs: Integers
    mixture: Mixture


@dataclass(frozen=True)
class Exposure:
    """How often each domain has been drawn.

    Attributes:
        domains: K names.
        draws: int64 (K,), samples drawn.
        epochs: float64 (K,), draws over domain size.
    """

    domains: tuple[str, ...]
    draws: Integers
    epochs: npt.NDArray[np.float64]


@dataclass(frozen=True)
class _Stage:
    """The mixture in force in steps [start, end), and its alias table."""

    start: int
    end: int
    mixture: Mixture
    table: _core.AliasTable


class DomainBatchSampler:
    """A batch sampler that mixes domains by a schedule, for ``DataLoader(dataset, batch_sampler=...)``.

    The dataset holds the domains laid end to end, in the order of the schedule's domains (as ``ConcatDataset`` does).
    The *global* batch of a step is planned first and then sliced, so the order of samples depends on the seed and the
    schedule alone, not on ranks, workers or prefetching, and a job can go on with another number of ranks. Within a
    domain, samples are drawn without replacement: each epoch of a domain is a permutation of it.

    Args:
        schedule: the mixture at each step, from `pycooldown.schedules`.
        batch_size: size B of the global batch in samples, over all ranks.
        seed: integer in [0, 2^64).
        num_steps: stop after this step; ``None`` to go on for ever.
        rank: this process's position among ``world_size``.
        world_size: number of processes that share the batch.
        allocation: "multinomial" draws each slot's domain independently; "systematic" gives domain i floor(B q_i) or
            ceil(B q_i) slots, which is unbiased too and has less variance; "quota" carries the rounding error over, so
            that after any number of steps each domain has been drawn within one sample of the sum of its B q_i
            (under a schedule that changes at every step, as far as 32 steps ahead tell, and under an adaptive one, as
            far as it is decided).
        shuffle: ``False`` takes each domain's samples in their own order.

    Raises:
        ValueError: if an argument is out of range, or a batch would on average hold more samples of a domain than the
            domain has.
    """

    def __init__(
        self,
        schedule: Schedule,
        *,
        batch_size: int,
        seed: int,
        num_steps: int | None = None,
        rank: int = 0,
        world_size: int = 1,
        allocation: AllocationName = "multinomial",
        shuffle: bool = True,
    ) -> None:
        if not isinstance(schedule, Schedule):
            raise TypeError(f"schedule is a {type(schedule).__name__}; expected one made by pycooldown.schedules")
        if not 0 < batch_size < 2**31:
            raise ValueError(f"batch_size = {batch_size}; expected 1 to 2^31 - 1 samples")
        if not 0 <= seed < 2**64:
            raise ValueError(f"seed = {seed}; expected an integer in [0, 2^64)")
        if num_steps is not None and num_steps < 0:
            raise ValueError(f"num_steps = {num_steps}; expected a number >= 0, or None for no end")
        if not 0 <= rank < world_size:
            raise ValueError(f"rank = {rank} of world_size = {world_size}; expected 0 <= rank < world_size")
        if world_size > batch_size:
            raise ValueError(f"world_size = {world_size} is above batch_size = {batch_size}; some ranks would be idle")
        if allocation not in _core.Allocation.__members__:
            names = ", ".join(map(repr, _core.Allocation.__members__))
            raise ValueError(f"allocation = {allocation!r}; expected one of {names}")
        self.schedule = schedule
        self.batch_size = batch_size
        self.seed = seed
        self.num_steps = num_steps
        self.rank = rank
        self.world_size = world_size
        self.allocation = allocation
        self.shuffle = shuffle

        self._is_adaptive = isinstance(schedule, AdaptiveSchedule)
        self._max_snapshots = _MAX_SNAPSHOTS + (schedule.delay if isinstance(schedule, AdaptiveSchedule) else 0)
        first = schedule.mixture(0)
        self.domains, self.sizes = first.domains, first.sizes
        self._check_batches_fit()
        self._stages: list[_Stage] = []
        self._planner = _core.BatchPlanner(
            self.sizes, _core.Allocation[allocation], batch_size=batch_size, seed=seed, shuffle=shuffle
        )
        self._step = 0  # where the planner stands
        self._next_step = 0  # where iteration starts
        nothing = np.zeros(len(self.sizes), dtype=np.int64)
        self._snapshots: dict[int, _Position] = {0: (nothing, nothing)}

    def __len__(self) -> int:
        """Steps left of ``num_steps``."""
        if self.num_steps is None:
            raise TypeError("the sampler has no end: give num_steps to have a length")
        return max(0, self.num_steps - self._next_step)

    def __iter__(self) -> Iterator[list[int]]:
        """Yields this rank's sample indices, step after step, from the step of the last loaded state."""
        step = self._next_step
        while self.num_steps is None or step < self.num_steps:
            plan = self._plan(step, *self._slice())
            step += 1
            self._next_step = step
            yield plan.indices.tolist()
        self._next_step = 0  # a further pass starts anew

    def plan(self, step: int) -> BatchPlan:
        """The global batch of any step; far from the current one, the steps between are counted first."""
        if step < 0:
            raise ValueError(f"step = {step}; expected a step >= 0")
        return self._plan(step, 0, self.batch_size)

    def exposure(self, step: int | None = None) -> Exposure:
        """What the steps before ``step`` draw: a count for past steps, an exact forecast for those to come.

        Args:
            step: the end of the count; by default ``num_steps``, or the current step if there is no end.
        """
        if step is None:
            step = self._next_step if self.num_steps is None else self.num_steps
        counts, _ = self._position_before(step)
        return Exposure(self.domains, counts, counts / self.sizes)

    def state_dict(self, step: int | None = None) -> dict[str, Any]:
        """What is needed to go on from ``step``, as JSON values.

        Args:
            step: number of batches that training has consumed; by default those that iteration has yielded, which a
                prefetching ``DataLoader`` asks for ahead of their use.
        """
        step = self._next_step if step is None else step
        counts, credits = self._position_before(step)
        self._remember(step, (counts, credits))
        state = {"version": 1, "step": step, "draws": self._by_name(counts), **self._identity()}
        if self.allocation == "quota":  # what each domain has earned and not been given, in 2^-32 samples
            state["credits"] = self._by_name(credits)
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from a saved state; rank and world size may be other ones.

        Raises:
            ValueError: if the state belongs to another job, saying what differs. Nothing is changed then.
        """
        needed = {"version", "step", "draws", *self._identity(), *(["credits"] if self.allocation == "quota" else [])}
        missing = needed - set(state)
        if missing:
            raise ValueError(f"state lacks {sorted(missing)}; expected a value of DomainBatchSampler.state_dict()")
        if state["version"] != 1:
            raise ValueError(f"state has version {state['version']!r}; this pycooldown reads version 1")
        for name, mine in self._identity().items():
            if state[name] != mine or (name == "sizes" and list(state[name]) != list(self.domains)):
                raise ValueError(f"state is of another job: {_difference(name, state[name], mine)}")
        counts, credits = (self._by_position(name, state) for name in ("draws", "credits"))
        step = state["step"]
        if step < 0 or (counts < 0).any() or counts.sum() != step * self.batch_size or credits.sum() != 0:
            raise ValueError(
                f"state is damaged: {int(counts.sum())} draws in {step} steps of {self.batch_size} samples each"
            )
        self._snapshots = {0: self._snapshots[0], step: (counts, credits)}
        self._seek(step)
        self._next_step = step

    def _identity(self) -> dict[str, Any]:
        """What decides the order of samples, but for the position in it."""
        return {
            "sizes": self._by_name(self.sizes),
            "schedule": self.schedule.describe(),
            "batch_size": self.batch_size,
            "seed": self.seed,
            "allocation": self.allocation,
            "shuffle": self.shuffle,
        }

    def _slice(self) -> tuple[int, int]:
        return (
            self.batch_size * self.rank // self.world_size,
            self.batch_size * (self.rank + 1) // self.world_size,
        )

    def _by_name(self, values: Integers) -> dict[str, int]:
        return dict(zip(self.domains, values.tolist(), strict=True))

    def _by_position(self, name: str, state: Mapping[str, Any]) -> Integers:
        values = state.get(name, dict.fromkeys(self.domains, 0))
        if set(values) != set(self.domains):
            raise ValueError(f"state is damaged: {name!r} and 'sizes' name different domains")
        return np.array([values[domain] for domain in self.domains], dtype=np.int64)

    def _plan(self, step: int, begin: int, end: int) -> BatchPlan:
        self._seek(step)
        if self._is_adaptive:  # the schedule forgets the mixtures that a replay would need
            self._remember(step, (self._planner.counts, self._planner.credits))
        stages = self._stages_from(step)
        plan = BatchPlan(*self._planner.plan(_pairs(stages), step, begin, end), stages[0].mixture)
        self._step = step + 1
        return plan

    def _stages_from(self, step: int) -> list[_Stage]:
        """The stage of ``step`` and, for quota allocation, those that follow as far as they are decided for good."""
        stages = [stage for stage in self._stages if stage.end > step]
        if not stages or stages[0].start > step:
            stages = [self._stage(step)]
        look_ahead = self.allocation == "quota" and not self._is_adaptive
        while look_ahead and len(stages) < _MAX_STAGES and stages[-1].end != _NEVER:
            stages.append(self._stage(stages[-1].end))
        self._stages = stages
        return stages

    def _stage(self, step: int) -> _Stage:
        mixture, change = self.schedule.mixture(step), self.schedule.next_change(step)
        if mixture.domains != self.domains or (mixture.sizes != self.sizes).any():
            raise ValueError(f"the schedule's mixture at step {step} has other domains or sizes than at step 0")
        return _Stage(step, _NEVER if change is None else change, mixture, _core.AliasTable(mixture.sampling))

    def _position_before(self, step: int) -> _Position:
        here = self._step
        self._remember(here, (self._planner.counts, self._planner.credits))
        self._seek(step)
        position = self._planner.counts, self._planner.credits
        self._seek(here)
        return position

    def _seek(self, step: int) -> None:
        """Moves the planner to the start of ``step``, from the nearest position known before it."""
        if step < 0:
            raise ValueError(f"step = {step}; expected a step >= 0")
        start = max(s for s in self._snapshots if s <= step)
        if not start <= self._step <= step:
            self._planner.seek(*self._snapshots[start])
            self._step = start
        while self._step < step:
            stages = self._stages_from(self._step)
            last = min(step, stages[0].end)
            self._planner.skip(_pairs(stages), self._step, last)
            self._step = last

    def _remember(self, step: int, position: _Position) -> None:
        self._snapshots[step] = position
        for oldest in sorted(self._snapshots)[1 : -self._max_snapshots]:
            del self._snapshots[oldest]

    def _check_batches_fit(self) -> None:
        """Looks at the first mixtures; of an adaptive schedule, at the one that it starts with."""
        step: int | None = 0
        for _ in range(_MAX_SNAPSHOTS):
            if step is None or (self.num_steps is not None and step >= self.num_steps):
                return
            mixture = self.schedule.mixture(step)
            draws = self.batch_size * mixture.sampling
            if (draws > self.sizes).any():
                i = int((draws / self.sizes).argmax())
                raise ValueError(
                    f"batch_size = {self.batch_size} would draw domain {self.domains[i]!r} {draws[i]:.1f} times on "
                    f"average in a batch at step {step}, but it has {self.sizes[i]} samples: every batch would repeat "
                    "some; use a smaller batch_size, a lower sampling probability, or merge the domain with another"
                )
            step = None if self._is_adaptive else self.schedule.next_change(step)


def _pairs(stages: list[_Stage]) -> list[tuple[_core.AliasTable, int]]:
    return [(stage.table, stage.end) for stage in stages]


def _difference(name: str, theirs: Any, mine: Any) -> str:
    if name == "sizes" and isinstance(theirs, Mapping):
        if only := set(theirs) ^ set(mine):
            where = "the state" if next(iter(sorted(only))) in theirs else "this job"
            return f"domain {min(only)!r} is only in {where}"
        if changed := [d for d in mine if theirs[d] != mine[d]]:
            return f"domain {changed[0]!r} has {theirs[changed[0]]} samples in the state and {mine[changed[0]]} here"
        return "the domains are in another order"
    return f"{name} is {theirs!r} in the state and {mine!r} here"
