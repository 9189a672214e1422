"""Refuse settings that cannot work, and warn about those that do something else than they seem to."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from typing import Any

from transformers import TrainingArguments

from pycooldown.huggingface.arguments import refuse
from pycooldown.mixture import Mixture
from pycooldown.sampling.sampler import AllocationName
from pycooldown.schedules import AdaptiveSchedule, Schedule

_LENGTH_RATIO = 2.0


def check_arguments(
    args: TrainingArguments,
    mixture: Mixture,
    length: int,
    evaluation: Mapping[str, Any] | None,
    options: Mapping[str, Any] | None = None,
    *,
    generates: bool = False,
) -> None:
    """Raise ValueError for arguments of Trainer, or datasets, that a mixture cannot work with.

    Args:
        args: Of the trainer; ``ignore_data_skip`` is set, as the loader itself goes on from the right place.
        mixture: The first.
        length: Samples of train_dataset.
        evaluation: By domain.
        options: Further arguments of ``Trainer.__init__``.
        generates: Whether the trainer is a Seq2SeqTrainer.
    """
    check_launcher(args.world_size)
    if args.n_gpu > 1:
        raise ValueError(f"{args.n_gpu} GPUs in one process: start one for each, with torchrun --nproc-per-node")
    refuse(args, options or {}, generates=generates)
    args.ignore_data_skip = True
    check_length(length, mixture)
    if unknown := sorted(set(evaluation or {}) - set(mixture.domains)):
        raise ValueError(f"eval_dataset names {unknown[0]!r}; expected domains of the mixture")


def check_launcher(world_size: int) -> None:
    """Check that the trainer has as many processes as the launcher has started.

    torchrun's count (``WORLD_SIZE``) is of this very job. Slurm's and Open MPI's may be of an allocation in which one
    process is started on purpose, and Accelerate does not say its own, so these are warned of.

    Args:
        world_size: That the trainer knows of.

    Raises:
        ValueError: If torchrun has started another number.
    """
    if (started := os.environ.get("WORLD_SIZE")) is not None:
        if int(started) != world_size:
            raise ValueError(
                f"{started} processes are started but Trainer knows of {world_size}, so that each would train alone; "
                "on CPUs, pass use_cpu=True to TrainingArguments"
            )
        return
    for name, launcher in (("SLURM_NTASKS", "Slurm"), ("OMPI_COMM_WORLD_SIZE", "Open MPI")):
        started = os.environ.get(name, "1")
        if started.isdecimal() and int(started) != world_size:
            warnings.warn(
                f"{launcher} has {started} tasks ({name}), but Trainer knows of {world_size}: if each task runs this "
                "program, each trains alone, on the same data; start it with torchrun, which tells Trainer of them "
                "(one torchrun on each node: srun --ntasks-per-node=1 torchrun --nnodes ... --nproc-per-node ...)",
                stacklevel=2,
            )
    # For more than one process, `accelerate launch --cpu` sets an address to meet at, and then starts one process.
    if {"ACCELERATE_USE_CPU", "MASTER_ADDR"} <= os.environ.keys() and world_size == 1:
        warnings.warn(
            "`accelerate launch` was asked for several processes, but on CPUs it starts one; use "
            "torchrun --nproc-per-node N",
            stacklevel=2,
        )


def check_length(length: int, mixture: Mixture) -> None:
    """Raise ValueError if a dataset cannot be the mixture's domains laid end to end."""
    if length != mixture.sizes.sum():
        raise ValueError(
            f"train_dataset has {length} samples, the schedule's domains {mixture.sizes.sum()}; expected the "
            "domains laid end to end"
        )


def check_max_steps(args: TrainingArguments, stop: str, num_steps: int | None) -> None:
    """Set ``args.max_steps`` to the steps of a pass, or raise ValueError if another length is given."""
    if args.max_steps not in (-1, 0, num_steps):
        raise ValueError(f"stop = {stop!r} sets max_steps, which is {args.max_steps}; expected only one of them")
    if args.num_train_epochs not in (1, type(args).__dataclass_fields__["num_train_epochs"].default):
        raise ValueError(
            f"stop = {stop!r} trains one pass, and num_train_epochs is {args.num_train_epochs}; leave it out, or give "
            "max_steps in place of stop"
        )
    assert num_steps is not None
    args.max_steps = num_steps


def check_unit(unit: str, tokens_per_sample: Mapping[str, float] | None) -> None:
    """Raise ValueError for a unit of the mixture that is not known, or lengths that it does not need."""
    if unit not in ("samples", "tokens"):
        raise ValueError(f"mixture_unit = {unit!r}; expected 'samples' or 'tokens'")
    if tokens_per_sample is not None and unit == "samples":
        raise ValueError("tokens_per_sample has no effect on a mixture of samples; pass mixture_unit='tokens' too")


def check_schedule(schedule: Schedule) -> None:
    """Raise TypeError for a schedule that learns but lacks a part of what the trainer needs of it."""
    if hasattr(schedule, "update") and not isinstance(schedule, AdaptiveSchedule):
        names = ("delay", "statistics", "needs", "update", "state_dict", "load_state_dict")
        missing = [name for name in names if not hasattr(schedule, name)]
        raise TypeError(
            f"{type(schedule).__name__} has update() but not {', '.join(missing)}; expected all of "
            "pycooldown.schedules.AdaptiveSchedule, such as pycooldown.adaptive.LearnedSchedule gives"
        )


def check_change(old: Schedule, new: Schedule, from_step: int) -> None:
    """Raise ValueError if a job cannot change from one schedule to the other."""
    for schedule in (old, new):
        if isinstance(schedule, AdaptiveSchedule):
            raise ValueError(
                f"{schedule.describe()} learns from the job whose mixture it decides: a job can change only between "
                "schedules that are known beforehand"
            )
    before, after = old.mixture(0), new.mixture(from_step)
    if before.domains != after.domains or (before.sizes != after.sizes).any():
        raise ValueError(
            "the schedule has other domains or sizes than the one that the job began with, and a trainer's dataset is "
            "fixed; to add data, use a DomainBatchSampler and a loader of your own"
        )


def check_learning(
    args: TrainingArguments, schedule: AdaptiveSchedule, reference: Any, allocation: AllocationName
) -> None:
    """Raise ValueError if the schedule could not learn what it should.

    While step t is trained, ``workers * prefetch_factor`` micro-batches beyond it have been asked for, whose mixtures
    must be decided. Losses with label smoothing do not compare with a reference's, which are without. What is the best
    sampling depends on the allocation.
    """
    if (theirs := getattr(schedule, "allocation", allocation)) != allocation:
        raise ValueError(
            f"allocation = {allocation!r}, but the schedule learns the best sampling for {theirs!r}; expected the same "
            "allocation in both"
        )
    if reference is not None and args.label_smoothing_factor:
        raise ValueError(
            f"label_smoothing_factor = {args.label_smoothing_factor}; expected 0 with a reference model, over whose "
            "loss the excess is taken"
        )
    ahead = args.dataloader_num_workers * (args.dataloader_prefetch_factor or 2)
    needed = 1 if ahead == 0 else 2 + (ahead - 1) // args.gradient_accumulation_steps
    if schedule.delay < needed:
        raise ValueError(
            f"delay = {schedule.delay}, but {args.dataloader_num_workers} workers read {ahead} micro-batches ahead, of "
            f"up to {needed - 1} steps that are not trained; expected a delay of at least {needed}, or fewer workers"
        )


def warn_of_lengths(samples: Mapping[str, int], tokens: Mapping[str, int]) -> bool:
    """Warn if domains differ so much in tokens a sample that a mixture of samples is another one of tokens.

    Domains are drawn by the sample, but the loss is a mean over tokens: domain i weighs p_i times its mean length.

    Returns:
        Whether there was a warning.
    """
    lengths = {domain: tokens[domain] / n for domain, n in samples.items()}
    longest, shortest = max(lengths, key=lengths.__getitem__), min(lengths, key=lengths.__getitem__)
    if lengths[longest] <= _LENGTH_RATIO * lengths[shortest]:
        return False
    warnings.warn(
        f"a sample of {longest!r} has {lengths[longest]:.0f} tokens on average, one of {shortest!r} "
        f"{lengths[shortest]:.0f}: sampling counts samples but the loss counts tokens, so {longest!r} weighs "
        f"{lengths[longest] / lengths[shortest]:.1f} times as much as its share of the mixture says (see share/ in the "
        'logs); pack samples to one length, or pass mixture_unit="tokens" to the trainer',
        stacklevel=2,
    )
    return True
