"""The trainer's sampler: how it starts, how it changes in a running job, and how it resumes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import TrainingArguments

from pycooldown.huggingface.checks import check_change, check_last_batch
from pycooldown.huggingface.trainer_logs import LogPart
from pycooldown.sampling.sampler import AllocationName, DomainBatchSampler, StopRule
from pycooldown.schedules import Schedule


class SamplerPart(LogPart):
    """The batches of a job, one part of `MixtureTrainerMixin`."""

    schedule: Schedule
    allocation: AllocationName
    stop: StopRule | None
    _changes: list[tuple[str, Any, int]]  # method of the sampler, its argument, from_step

    def set_schedule(self, schedule: Schedule, *, from_step: int) -> None:
        """Use another schedule from a step on, whose batch no loader has asked for yet; see `DomainBatchSampler`.

        Call it before `train` or from a callback. A job that resumes from a later checkpoint must make the same call.

        Raises:
            ValueError: If the step is past, either schedule learns, or the domains or their sizes differ.
        """
        check_change(self.schedule, schedule, from_step)
        self._change("set_schedule", schedule, from_step)

    def set_batch_size(self, batch_size: int, *, from_step: int) -> None:
        """Train on batches of another size from a step on; no sample is lost or repeated.

        Call it before `train`, for a ramp or to resume with another batch size, or from a callback, for a step whose
        batch no loader has asked for yet. A job that resumes from a later checkpoint must make the same call and leave
        its arguments unchanged. The numbers of ranks and micro-batches stay: each micro-batch gets more or fewer
        samples. Each step still counts as one for the schedule and the learning rate.

        Args:
            batch_size: Samples of the global batch, over all ranks and micro-batches.
            from_step: The first step with this batch size.

        Raises:
            ValueError: If the step is past or comes before an earlier change, or if a micro-batch would be empty or
                hold a domain's samples more than once.
        """
        parts = self.args.world_size * self.args.gradient_accumulation_steps
        if batch_size < parts:
            raise ValueError(
                f"batch_size = {batch_size}; expected at least {parts}, one sample for each of {self.args.world_size} "
                f"processes x {self.args.gradient_accumulation_steps} micro-batches"
            )
        self._change("set_batch_size", batch_size, from_step)

    def _change(self, method: str, value: Any, from_step: int) -> None:
        if self.stop is not None and self.is_in_train:
            raise ValueError(
                f"stop = {self.stop!r} has set the length of this training, which the change would alter; call it "
                "before train(), or pass max_steps in place of stop"
            )
        getattr(self.sampler, method)(value, from_step=from_step)
        self._changes.append((method, value, from_step))
        self._follow_stop()

    def _follow_stop(self) -> None:
        """Set the length of training to that of the sampler's pass."""
        if self.stop is not None:
            self.args.max_steps = self.sampler.num_steps
            check_last_batch(self.args, self.sampler.batch_size_at(self.args.max_steps - 1))

    def _new_sampler(self, state: Mapping[str, Any] | None = None) -> DomainBatchSampler:
        """Return a sampler at the start of the job, or in a saved state, with the changes that the user made.

        Changes that are not in the state are applied after it is loaded, so they must be for later steps.
        """
        sampler = new_sampler(self.args, self.schedule, self.allocation, self.stop)
        later = []
        for change in self._changes:
            if state is None or _knows(state, change):
                _apply(sampler, change)
            else:
                later.append(change)
        if state is not None:
            # Load it last: otherwise a learned schedule forgets mixtures that a new sampler asks for first.
            if self._learner is not None:
                self._learner.schedule.load_state_dict(state.get("learned", {}))
            sampler.load_state_dict(state)
        for change in later:
            _apply(sampler, change)
        return sampler


def new_sampler(
    args: TrainingArguments, schedule: Schedule, allocation: AllocationName, stop: StopRule | None
) -> DomainBatchSampler:
    """Return the sampler of a job described by Trainer's arguments; ``max_steps`` is its length unless it stops."""
    return DomainBatchSampler(
        schedule,
        batch_size=args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size,
        seed=args.seed if args.data_seed is None else args.data_seed,
        num_steps=args.max_steps if stop is None else None,
        rank=args.process_index,
        world_size=args.world_size,
        allocation=allocation,
        stop=stop,
    )


def _apply(sampler: DomainBatchSampler, change: tuple[str, Any, int]) -> None:
    method, value, from_step = change
    getattr(sampler, method)(value, from_step=from_step)


def _knows(state: Mapping[str, Any], change: tuple[str, Any, int]) -> bool:
    """Return whether a change was made before a state was saved. The sampler itself does not check this."""
    method, _, from_step = change
    if method == "set_schedule":
        return any(entry.get("from_step") == from_step for entry in state.get("changes", []))
    return any(pair[0] == from_step for pair in state.get("batch_sizes", []))
