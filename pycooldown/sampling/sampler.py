"""Turn a schedule into batches of sample indices, each a pure function of (seed, step)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from pycooldown.mixture import Integers, Mixture
from pycooldown.sampling import checks
from pycooldown.sampling.batches import BatchPlan, Exposure
from pycooldown.sampling.block_shuffle import BlockShuffle, ShuffleName, check_shuffle
from pycooldown.sampling.changes import BatchSizes, Job, ScheduleHistory
from pycooldown.sampling.checks import AllocationName as AllocationName
from pycooldown.sampling.exclusive import Exclusive
from pycooldown.sampling.seeking import Planner, epoch_seed
from pycooldown.sampling.state import read_state, write_state
from pycooldown.sampling.stops import ONCE, check_stop, steps_of_pass
from pycooldown.sampling.stops import StopRule as StopRule
from pycooldown.schedules import Schedule


class DomainBatchSampler:
    """A batch sampler that mixes domains by a schedule, for ``DataLoader(dataset, batch_sampler=...)``.

    The dataset holds the domains laid end to end, in the order of the schedule's domains (as ``ConcatDataset`` does).
    The *global* batch of a step is planned first and then sliced. So the order of samples depends only on the seed and
    the schedule, not on ranks, workers or prefetching, and a job can continue with another number of ranks. Within a
    domain, samples are drawn without replacement: each epoch of a domain is a permutation of it.

    Args:
        schedule: The mixture at each step, from `pycooldown.schedules`.
        batch_size: Size B of the global batch in samples, over all ranks; for a ramp, (first step, size) pairs with
            increasing first steps, the first one 0.
        seed: Integer in [0, 2^64).
        num_steps: Number of steps of a pass; ``None`` for a pass without an end.
        rank: This process's position among ``world_size``.
        world_size: Number of processes that share the batch.
        allocation: "multinomial" draws each slot's domain independently; "systematic" gives domain i floor(B q_i) or
            ceil(B q_i) slots, which is unbiased too and has less variance; "quota" carries the rounding error over, so
            that after any number of steps each domain has been drawn within one sample of the sum of its B q_i. This
            holds as far as mixtures are known when a batch is planned: 32 steps ahead if they change at every step.
        shuffle: ``False`` takes each domain's samples in their own order. "blocks" permutes blocks of samples, then the
            samples within groups of blocks, so that few blocks are in use at a time.
        shard_sizes: For "blocks", the samples of each shard by domain, as in ``dataset.shard_sizes``.
        block: Samples in a block, by default 64.
        group: Blocks whose samples are mixed, by default 16.
        homogeneous: ``True`` makes each batch of one domain, for in-batch negatives; ``allocation`` allots batches.
        stop: A rule that ends a pass and sets ``num_steps``, by the names of `datasets.interleave_datasets`.
            "first_exhausted": before the first step that would repeat a sample. "all_exhausted": after the first step
            by which each sample was drawn, so that small domains repeat. Both need a schedule that is known beforehand.
            "all_exhausted_without_replacement": each sample is drawn exactly once. Slots of a domain that is exhausted
            go to the others by their sampling probabilities; the last batch has what is left.

    A sampler may be used from several threads and can be pickled; a signal handler that uses it while its own thread
    does gets a RuntimeError. Loaders that slice batches by rank themselves (Accelerate's ``split_batches=True``) need
    ``world_size=1``; those that would wrap it (Lightning) ``use_distributed_sampler=False``.

    Raises:
        TypeError: If a number is not an integer.
        ValueError: If an argument is out of range, or a batch would on average hold more samples of a domain than the
            domain has.
    """

    def __init__(
        self,
        schedule: Schedule,
        *,
        batch_size: int | Sequence[tuple[int, int]],
        seed: int,
        num_steps: int | None = None,
        rank: int = 0,
        world_size: int = 1,
        allocation: AllocationName = "multinomial",
        shuffle: bool | ShuffleName = True,
        shard_sizes: Mapping[str, Sequence[int]] | None = None,
        block: int | None = None,
        group: int | None = None,
        homogeneous: bool = False,
        stop: StopRule | None = None,
    ) -> None:
        history = ScheduleHistory(schedule)
        numbers = {"seed": seed, "rank": rank, "world_size": world_size}
        seed, rank, world_size = (checks.integer(name, value) for name, value in numbers.items())
        num_steps = None if num_steps is None else checks.integer("num_steps", num_steps)
        checks.check_options(seed=seed, num_steps=num_steps, rank=rank, world_size=world_size, allocation=allocation)
        check_stop(stop, num_steps, schedule, homogeneous=homogeneous)
        self.seed, self.epoch = seed, 0
        self.num_steps, self.allocation, self.rank, self.world_size = num_steps, allocation, rank, world_size
        order = check_shuffle(shuffle, shard_sizes, block, group, history.newest.first)
        self.shuffle = "blocks" if isinstance(order, BlockShuffle) else order
        self.homogeneous, self._stop = bool(homogeneous), stop
        sizes = BatchSizes(checks.batch_size_pairs(batch_size), history.newest.num_samples if stop == ONCE else None)
        self._job = Job(history, sizes, seed, allocation, order, self.homogeneous)
        self._exclusive = Exclusive()
        self._check_batches(schedule, sizes, 0)
        self._planner = Planner(self._job)
        self._next_step = 0  # where iteration continues
        self._pass_ended = False  # whether the last batch has been yielded, so that the next pass starts at step 0
        self._listeners: list[Callable[[int], None]] = []
        self._apply_stop()

    @property
    def schedule(self) -> Schedule:
        """The newest schedule."""
        return self._job.history.newest.schedule

    @property
    def batch_size(self) -> int:
        """The newest size of the global batch, in samples."""
        return self._job.batch_sizes.newest

    def batch_size_at(self, step: int) -> int:
        """Return the size of the global batch of a step, in samples."""
        return self._job.batch_sizes.at(checks.step_number(step))

    @property
    def domains(self) -> tuple[str, ...]:
        """Names of the domains, in order."""
        return self._job.history.newest.first.domains

    @property
    def sizes(self) -> Integers:
        """Samples of each domain, (K,), the newest where they have grown."""
        return self._job.history.newest.first.sizes

    def __len__(self) -> int:
        """Return ``num_steps``, the length of a complete pass; a pass continued from a state has fewer steps left."""
        if self.num_steps is None:
            raise TypeError("the sampler has no end, so it has no length; set num_steps")
        return self.num_steps

    def __iter__(self) -> Iterator[list[int]]:
        """Yield this rank's sample indices, step after step, up to ``num_steps``.

        A pass ends with its last batch, and the next one starts at step 0. If a pass is interrupted, the next iteration
        continues with the next batch. An iteration after `load_state_dict` continues too; after a state at the end, it
        yields no batch. A ``DataLoader`` with workers requests batches ahead. They are lost if its iterator is dropped:
        keep the iterator, or go back with ``sampler.load_state_dict(sampler.state_dict(step=consumed))``.
        """
        with self._exclusive.hold():
            if self._pass_ended:
                self._next_step, self._pass_ended = 0, False
            step = self._next_step
        while self.num_steps is None or step < self.num_steps:
            with self._exclusive.hold():
                plan = self._planner.plan(step, *self._job.batch_sizes.part(step, self.rank, self.world_size))
                step += 1
                self._next_step, self._pass_ended = step, step == self.num_steps
            for listener in self._listeners:
                listener(step - 1)
            yield plan.indices.tolist()
        with self._exclusive.hold():
            if self._next_step >= self.num_steps:  # false if a state was loaded in the meantime
                self._next_step, self._pass_ended = 0, False

    def watch(self, listener: Callable[[int], None]) -> None:
        """Call a function with the number of each step, before its batch is yielded. Copies do not call it."""
        self._listeners.append(listener)

    def set_schedule(self, schedule: Schedule, *, from_step: int) -> None:
        """Mix by another schedule from a step on, in a running job.

        The change is part of the state: a job that resumes makes the same calls of ``set_schedule`` before
        `load_state_dict`. Steps before ``from_step`` stay as they were planned, in replays too.

        Domains may join after the old ones, which keep their order. Domains may grow: the running epoch of a domain
        ends at its old size, and the next one is a permutation of the new size. From this call on, the indices of all
        steps refer to the domains *at their newest sizes*: if a domain grows, those of later domains move up.

        Args:
            schedule: The new schedule; its steps are those of the job, not counted from the change.
            from_step: The first step that it decides.

        Raises:
            ValueError: If iteration has yielded the batch of ``from_step``, ``from_step`` is not after the last change,
                the schedule drops, moves or shrinks a domain, or batches do not fit. Nothing is changed then.
        """
        from_step = checks.integer("from_step", from_step)
        with self._exclusive.hold():
            checks.check_not_yielded(from_step, self._next_step)
            check_stop(self._stop, None, schedule)
            change = self._job.next_change(schedule, from_step)
            sizes = self._job.batch_sizes.of_pass(change.num_samples)
            self._check_batches(schedule, sizes, from_step)
            self._planner.forget_after(from_step)
            self._job.history.changes.append(change)
            self._job.batch_sizes.become(sizes.pairs, sizes.total)
            self._planner.follow_changes()
            self._apply_stop()

    def set_batch_size(self, batch_size: int, *, from_step: int) -> None:
        """Make batches of another size from a step on, in a running job; no sample is lost or repeated.

        The change is part of the state: a job that resumes makes the same calls of ``set_batch_size`` before
        `load_state_dict`. To resume with another batch size, call it after `load_state_dict`, from the step of the
        state on. Steps count batches of any size, and schedules depend on steps.

        Args:
            batch_size: The new size of the global batch, in samples.
            from_step: The first step that has it.

        Raises:
            ValueError: If iteration has yielded the batch of ``from_step``, ``from_step`` is not after the last change
                of the batch size, or batches do not fit. Nothing is changed then.
        """
        from_step = checks.integer("from_step", from_step)
        with self._exclusive.hold():
            checks.check_not_yielded(from_step, self._next_step)
            pairs = checks.batch_size_pairs([*self._job.batch_sizes.pairs, (from_step, batch_size)])
            sizes = BatchSizes(pairs, self._job.batch_sizes.total)
            for change in self._job.history.in_force_from(from_step):
                self._check_batches(change.schedule, sizes, max(change.from_step, from_step))
            self._planner.forget_after(from_step)
            self._job.batch_sizes.become(sizes.pairs, sizes.total)
            self._planner.follow_changes()
            self._apply_stop()

    def mixture(self, step: int) -> Mixture:
        """Return the mixture in force at a step."""
        return self._job.history.at(checks.step_number(step)).schedule.mixture(step)

    def plan(self, step: int) -> BatchPlan:
        """Return the global batch of any step; far from the current one, the steps between are counted first."""
        with self._exclusive.hold():
            return self._planner.plan(checks.step_number(step), 0, self._job.batch_sizes.at(step))

    def exposure(self, step: int | None = None, *, estimate: bool = False) -> Exposure:
        """Return how often the steps before ``step`` draw each domain: a count, and a forecast for steps to come.

        The forecast is exact, as the steps between are counted one by one. It can be interrupted (Ctrl-C).

        Args:
            step: The end of the count; by default ``num_steps``, or the current step if there is no end.
            estimate: Whether steps to come count with their expected draws, the sum of their B q_i, which takes less
                time. With multinomial allocation, draws have a standard deviation of at most sqrt(samples drawn) / 2.

        Raises:
            LookupError: If a schedule that learns has not decided the mixtures of all these steps.
        """
        with self._exclusive.hold():
            end = self._next_step if self.num_steps is None else self.num_steps
            step = end if step is None else checks.step_number(step)
            return self._planner.exposure(step, estimate=estimate)

    def state_dict(self, step: int | None = None) -> dict[str, Any]:
        """Return the JSON values that are needed to continue from ``step``.

        Args:
            step: Number of batches that training has consumed; by default those that iteration has yielded, which a
                prefetching ``DataLoader`` asks for ahead of their use.
        """
        with self._exclusive.hold():
            step = self._next_step if step is None else checks.step_number(step)
            position = self._planner.before(step)
            self._planner.remember(step, position)
            return write_state(self._job, step, self.epoch, position)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a saved state; rank and world size may differ.

        Raises:
            ValueError: If the state is damaged or belongs to another job. Nothing is changed then.
        """
        with self._exclusive.hold():
            saved = read_state(state, self._job)
            self._begin_epoch(saved.epoch)
            for change, draws in zip(self._job.history.changes[1:], saved.draws_at_changes, strict=True):
                change.draws = draws
            self._planner.go_on(saved.step, saved.position)
            self._next_step, self._pass_ended = saved.step, False

    def set_epoch(self, epoch: int) -> None:
        """Give the next pass a number, for loops that count passes: each number has another order.

        The first pass has number 0. A new number starts a pass at step 0; that of the running pass changes nothing.

        Args:
            epoch: Integer in [0, 2^64). It has nothing to do with passes through a domain.
        """
        with self._exclusive.hold():
            self._begin_epoch(checks.epoch_number(epoch))

    def _begin_epoch(self, epoch: int) -> None:
        if epoch != self.epoch:
            self._planner.reseed(epoch_seed(self.seed, epoch))
            self.epoch, self._next_step, self._pass_ended = epoch, 0, False
            self._apply_stop()

    def _apply_stop(self) -> None:
        if self._stop is not None:
            self.num_steps = steps_of_pass(self._stop, self._planner, self._job)

    def _check_batches(self, schedule: Schedule, sizes: BatchSizes, from_step: int) -> None:
        end = self.num_steps if self._stop is None else None
        checks.check_batches(schedule, sizes, from_step, end, self.world_size, homogeneous=self.homogeneous)

    def __getstate__(self) -> dict[str, Any]:
        with self._exclusive.hold():  # copies, so that other threads do not change them during pickling
            job = self._job.copy()
            return self.__dict__ | {"_job": job, "_planner": self._planner.copy(job), "_listeners": []}
