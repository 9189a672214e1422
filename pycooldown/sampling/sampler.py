"""Turns a schedule into batches of sample indices, each a pure function of (seed, step)."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import numpy as np

from pycooldown import _core
from pycooldown.mixture import Mixture
from pycooldown.sampling.batches import BatchPlan, Exposure, Integers, check_batches_fit
from pycooldown.sampling.changes import Journal, difference
from pycooldown.sampling.planner import Planner
from pycooldown.schedules import Schedule

AllocationName = Literal["multinomial", "systematic", "quota"]


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
            (under a schedule that changes at every step, as far as 32 steps ahead tell, and under an adaptive one or
            a change by `set_schedule`, as far as it is decided).
        shuffle: ``False`` takes each domain's samples in their own order.

    A sampler can be pickled. In loaders that slice batches by rank themselves (Accelerate's ``prepare`` with
    ``split_batches=True``), leave ``world_size`` at 1; where they would wrap it (Lightning), let them not
    (``use_distributed_sampler=False``).

    Raises:
        TypeError: if a number is not an integer.
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
        self._journal = Journal(schedule)
        batch_size, seed, rank, world_size = (
            _integer(name, value)
            for name, value in [("batch_size", batch_size), ("seed", seed), ("rank", rank), ("world_size", world_size)]
        )
        num_steps = None if num_steps is None else _integer("num_steps", num_steps)
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
        self.batch_size = batch_size
        self.seed = seed
        self.num_steps = num_steps
        self.rank = rank
        self.world_size = world_size
        self.allocation = allocation
        self.shuffle = shuffle

        check_batches_fit(schedule, batch_size, 0, num_steps)
        self._next_step = 0  # where iteration goes on
        self._pass_ended = False  # whether the last batch has been yielded, so that the next pass starts at step 0
        self._planner = Planner(self._journal, batch_size=batch_size, seed=seed, allocation=allocation, shuffle=shuffle)

    @property
    def schedule(self) -> Schedule:
        """The newest schedule."""
        return self._journal.newest.schedule

    @property
    def domains(self) -> tuple[str, ...]:
        """Names of the domains, in order."""
        return self._journal.newest.first.domains

    @property
    def sizes(self) -> Integers:
        """Samples of each domain, (K,), the newest where they have grown."""
        return self._journal.newest.first.sizes

    def __len__(self) -> int:
        """Return ``num_steps``, the length of a whole pass, wherever iteration stands.

        A pass that goes on after `load_state_dict`, or after it was broken off, has as many steps as are left of it:
        ``num_steps`` minus the step of the state.
        """
        if self.num_steps is None:
            raise TypeError("the sampler has no end: give num_steps to have a length")
        return self.num_steps

    def __iter__(self) -> Iterator[list[int]]:
        """Yield this rank's sample indices, step after step, up to ``num_steps``.

        A pass ends with its last batch, and the next one starts at step 0. A pass that is broken off before goes on
        with the next batch, as does one after `load_state_dict`: no batch is yielded twice. A state of the end of a
        pass gives a pass of no steps, and then whole ones. A ``DataLoader`` with workers asks for batches ahead of
        their use, which are lost if its iterator is dropped: keep the iterator, or go back with
        ``sampler.load_state_dict(sampler.state_dict(step=consumed))``.
        """
        if self._pass_ended:
            self._next_step, self._pass_ended = 0, False
        step = self._next_step
        while self.num_steps is None or step < self.num_steps:
            plan = self._planner.plan(step, *self._slice())
            step += 1
            self._next_step, self._pass_ended = step, step == self.num_steps
            yield plan.indices.tolist()
        if self._next_step == self.num_steps:  # not if a state was loaded meanwhile
            self._next_step, self._pass_ended = 0, False

    def set_schedule(self, schedule: Schedule, *, from_step: int) -> None:
        """Mixes by another schedule from a step on, in a running job.

        The change is part of the state: a job that resumes makes the same calls of ``set_schedule`` before
        `load_state_dict`. Steps before ``from_step`` stay as they were planned, in replays too.

        Domains may join, behind the old ones, which keep their order. Domains may grow: the running epoch of a domain
        ends at its old size, and the next one is a permutation of the new size. From this call on, whatever the step,
        indices are into the domains laid end to end *at their newest sizes*, which the dataset must hold: they stay as
        they were if domains only join; if one grows, those of the domains behind it move up.

        Args:
            schedule: the new schedule; its steps are those of the job, not counted from the change.
            from_step: the first step that it decides.

        Raises:
            ValueError: if iteration has handed out the batch of ``from_step``, ``from_step`` is not after the last
                change, the schedule drops, moves or shrinks a domain, or batches do not fit; nothing is changed then.
        """
        if from_step < self._next_step:
            raise ValueError(
                f"from_step = {from_step}, but batches before step {self._next_step} have been handed out; expected a "
                f"step >= {self._next_step}, or load an earlier state first"
            )
        change = self._journal.next_change(schedule, from_step)
        check_batches_fit(schedule, self.batch_size, from_step, self.num_steps)
        self._journal.changes.append(change)
        self._planner.forget_after(from_step)
        self._planner.follow_journal()

    def mixture(self, step: int) -> Mixture:
        """The mixture in force at a step."""
        return self._journal.at(step).schedule.mixture(step)

    def plan(self, step: int) -> BatchPlan:
        """The global batch of any step; far from the current one, the steps between are counted first."""
        return self._planner.plan(step, 0, self.batch_size)

    def exposure(self, step: int | None = None) -> Exposure:
        """What the steps before ``step`` draw: a count for past steps, an exact forecast for those to come.

        Args:
            step: the end of the count; by default ``num_steps``, or the current step if there is no end.
        """
        if step is None:
            step = self._next_step if self.num_steps is None else self.num_steps
        counts, _ = self._planner.before(step)
        return Exposure(self.domains, counts, counts / self.sizes)

    def state_dict(self, step: int | None = None) -> dict[str, Any]:
        """What is needed to go on from ``step``, as JSON values.

        Args:
            step: number of batches that training has consumed; by default those that iteration has yielded, which a
                prefetching ``DataLoader`` asks for ahead of their use.
        """
        step = self._next_step if step is None else step
        counts, credits = self._planner.before(step)
        self._planner.keep(step, (counts, credits))
        state = {"version": 1, "step": step, "draws": self._by_name(counts), **self._identity()}
        if self.allocation == "quota":  # what each domain has earned and not been given, in 2^-32 samples
            state["credits"] = self._by_name(credits)
        if len(self._journal.changes) > 1:
            state["changes"] = self._journal.state()
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
            if state[name] != mine or (name == "sizes" and list(state[name]) != list(mine)):
                raise ValueError(f"state is of another job: {difference(name, state[name], mine)}")
        step = state["step"]
        if type(step) is not int:
            raise ValueError(f"state is damaged: step is {step!r}; expected an integer")
        draws_at_changes = self._journal.draws_of(state.get("changes", []), step)
        counts, credits = (self._by_position(name, state) for name in ("draws", "credits"))
        if step < 0 or (counts < 0).any() or counts.sum() != step * self.batch_size or credits.sum() != 0:
            raise ValueError(
                f"state is damaged: {int(counts.sum())} draws in {step} steps of {self.batch_size} samples each"
            )
        for change, draws in zip(self._journal.changes[1:], draws_at_changes, strict=True):
            change.draws = draws
        self._planner.go_on(step, (counts, credits))
        self._next_step, self._pass_ended = step, False

    def _identity(self) -> dict[str, Any]:
        """What decides the order of samples, but for the position in it."""
        return {
            "sizes": dict(self._journal.changes[0].sizes),
            "schedule": self._journal.changes[0].schedule.describe(),
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
        if name not in state:
            return np.zeros(len(self.domains), dtype=np.int64)
        values = state[name]
        if not isinstance(values, Mapping) or values.keys() != dict.fromkeys(self.domains).keys():
            raise ValueError(f"state is damaged: {name!r} and the mixture name different domains")
        array = np.array([values[domain] for domain in self.domains])
        if array.dtype != np.int64 or (abs(array) >= 2**62).any():
            wrong = [value for value in values.values() if type(value) is not int or abs(value) >= 2**62]
            raise ValueError(f"state is damaged: {name!r} holds {wrong[0]!r}; expected integers")
        return array


def _integer(name: str, value: Any) -> int:
    try:
        return operator.index(value)
    except TypeError:
        raise TypeError(f"{name} = {value!r}, a {type(value).__name__}; expected an integer") from None
