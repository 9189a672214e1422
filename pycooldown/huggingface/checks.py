"""Refuse settings that cannot work, and warn about settings with surprising effects."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from itertools import zip_longest
from typing import Any

import numpy as np
from torch.utils.data import ConcatDataset
from transformers import TrainingArguments

from pycooldown.huggingface.arguments import refuse
from pycooldown.huggingface.sources import known_sizes
from pycooldown.mixture import Mixture
from pycooldown.sampling.sampler import AllocationName
from pycooldown.schedules import AdaptiveSchedule, Schedule

_LENGTH_RATIO = 2.0


def check_arguments(
    args: TrainingArguments,
    mixture: Mixture,
    evaluation: Mapping[str, Any] | None,
    options: Mapping[str, Any] | None = None,
    *,
    generates: bool = False,
) -> None:
    """Raise ValueError for arguments of Trainer, or datasets, that a mixture cannot work with.

    Args:
        args: The trainer's arguments. ``ignore_data_skip`` is set, since the loader itself continues in the right
            place.
        mixture: The first mixture of the schedule.
        evaluation: Evaluation sets by domain.
        options: Further arguments of ``Trainer.__init__``.
        generates: Whether the trainer is a Seq2SeqTrainer.
    """
    check_launcher(args.world_size)
    if args.n_gpu > 1:
        raise ValueError(
            f"one process has {args.n_gpu} GPUs; expected one: start a process per GPU with torchrun --nproc-per-node"
        )
    refuse(args, options or {}, generates=generates)
    args.ignore_data_skip = True
    if unknown := sorted(set(evaluation or {}) - set(mixture.domains)):
        raise ValueError(
            f"eval_dataset names {unknown[0]!r}; expected domains of the mixture, such as {mixture.domains[0]!r}"
        )


def check_launcher(world_size: int) -> None:
    """Check that the trainer has as many processes as the launcher started.

    torchrun's count (``WORLD_SIZE``) always belongs to this job, so a difference is an error. The counts of Slurm and
    Open MPI may belong to an allocation in which the user starts a single process on purpose, and Accelerate does not
    state its count. For these there is only a warning.

    Args:
        world_size: Number of processes that the trainer knows about.

    Raises:
        ValueError: If torchrun started another number of processes.
    """
    if (started := os.environ.get("WORLD_SIZE")) is not None:
        if int(started) != world_size:
            raise ValueError(
                f"torchrun started {started} processes but Trainer knows about {world_size}, so each would train "
                "alone; on CPUs, pass use_cpu=True to TrainingArguments"
            )
        return
    for name, launcher in (("SLURM_NTASKS", "Slurm"), ("OMPI_COMM_WORLD_SIZE", "Open MPI")):
        started = os.environ.get(name, "1")
        if started.isdecimal() and int(started) != world_size:
            warnings.warn(
                f"{launcher} has {started} tasks ({name}), but Trainer knows about {world_size}. If each task runs "
                "this program, each trains alone, on the same data. Start it with torchrun, which tells Trainer about "
                "all tasks (one torchrun per node: srun --ntasks-per-node=1 torchrun --nnodes ... --nproc-per-node "
                "...)",
                stacklevel=2,
            )
    # Asked for several processes, `accelerate launch --cpu` sets the address at which they meet but starts only one.
    if {"ACCELERATE_USE_CPU", "MASTER_ADDR"} <= os.environ.keys() and world_size == 1:
        warnings.warn(
            "`accelerate launch` was asked for several processes, but on CPUs it starts only one; use torchrun "
            "--nproc-per-node N",
            stacklevel=2,
        )


def check_sizes(source: Any, mixture: Mixture) -> None:
    """Raise ValueError if a dataset cannot be the mixture's domains laid end to end.

    Args:
        source: A map-style dataset. If it knows its domains (``sizes``), names, order and sizes are compared, otherwise
            its length only.
        mixture: The first mixture of the schedule.
    """
    expected = dict(zip(mixture.domains, mixture.sizes.tolist(), strict=True))
    sizes = known_sizes(source)
    if sizes is None:
        if len(source) != sum(expected.values()):
            raise ValueError(
                f"train_dataset has {len(source)} samples but the schedule's domains have {sum(expected.values())}; "
                "expected the domains laid end to end"
            )
        parts = np.diff(source.cumulative_sizes, prepend=0).tolist() if isinstance(source, ConcatDataset) else []
        if sorted(parts) == sorted(expected.values()) and parts != list(expected.values()):
            raise ValueError(
                f"train_dataset concatenates datasets of {parts} samples, but the schedule's domains have "
                f"{list(expected.values())}; expected the domains in the order of the schedule's"
            )
        return
    for (domain, size), (other, count) in zip_longest(sizes.items(), expected.items(), fillvalue=("no domain", 0)):
        if domain != other:
            raise ValueError(
                f"train_dataset has {domain!r} where the schedule has {other!r}; expected the same domains in the same "
                "order"
            )
        if size != count:
            raise ValueError(
                f"domain {domain!r} has {size} samples in train_dataset but {count} in the schedule; make the schedule "
                "from the sizes of the data, for example by a function of them: schedule=lambda sizes: ..."
            )


def check_max_steps(args: TrainingArguments, stop: str, num_steps: int | None) -> None:
    """Set ``args.max_steps`` to the steps of a pass, or raise ValueError if another length is given."""
    if args.max_steps not in (-1, 0, num_steps):
        raise ValueError(
            f"stop = {stop!r} sets max_steps, but max_steps = {args.max_steps} is given too; leave one out"
        )
    if args.num_train_epochs not in (1, type(args).__dataclass_fields__["num_train_epochs"].default):
        raise ValueError(
            f"stop = {stop!r} trains one pass, but num_train_epochs = {args.num_train_epochs}; leave it out, or pass "
            "max_steps in place of stop"
        )
    assert num_steps is not None
    args.max_steps = num_steps


def check_last_batch(args: TrainingArguments, size: int) -> None:
    """Raise ValueError if what is left for the last batch of a pass is too little for all micro-batches."""
    parts = args.world_size * args.gradient_accumulation_steps
    if size < parts:
        raise ValueError(
            f"{size} samples are left for the last batch of the pass; expected at least {parts}, one for each of "
            f"{args.world_size} processes x {args.gradient_accumulation_steps} micro-batches; take a batch size whose "
            "last batch is larger, or fewer gradient_accumulation_steps"
        )


def check_unit(unit: str, tokens_per_sample: Mapping[str, float] | None) -> None:
    """Raise ValueError for a unit of the mixture that is not known, or lengths that it does not need."""
    if unit not in ("samples", "tokens"):
        raise ValueError(f"mixture_unit = {unit!r}; expected 'samples' or 'tokens'")
    if tokens_per_sample is not None and unit == "samples":
        raise ValueError("tokens_per_sample has no effect on a mixture of samples; pass mixture_unit='tokens' too")


def check_schedule(schedule: Schedule) -> None:
    """Raise TypeError for a schedule that learns but lacks a method or attribute that the trainer needs."""
    if hasattr(schedule, "update") and not isinstance(schedule, AdaptiveSchedule):
        names = ("delay", "statistics", "needs", "update", "state_dict", "load_state_dict")
        missing = [name for name in names if not hasattr(schedule, name)]
        raise TypeError(
            f"{type(schedule).__name__} has update() but not {', '.join(missing)}; expected all members of the "
            "protocol pycooldown.schedules.AdaptiveSchedule, for example a pycooldown.adaptive.LearnedSchedule"
        )


def check_change(old: Schedule, new: Schedule, from_step: int) -> None:
    """Raise ValueError if a job cannot change from the old schedule to the new one."""
    for schedule in (old, new):
        if isinstance(schedule, AdaptiveSchedule):
            raise ValueError(
                f"{schedule.describe()} learns from the job whose mixture it decides; expected schedules that are "
                "known beforehand, as a job can only change between these"
            )
    before, after = old.mixture(0), new.mixture(from_step)
    if before.domains != after.domains or (before.sizes != after.sizes).any():
        raise ValueError(
            "the new schedule has other domains or sizes than the job's first one, but a trainer's dataset is fixed; "
            "to add data, use a DomainBatchSampler and your own loader"
        )


def check_learning(
    args: TrainingArguments, schedule: AdaptiveSchedule, reference: Any, allocation: AllocationName
) -> None:
    """Raise ValueError if the schedule cannot learn under these settings.

    While step t is trained, loaders have already asked for ``workers * prefetch_factor`` later micro-batches. The
    mixtures of these must be decided. Losses with label smoothing cannot be compared with those of a reference, which
    have none. The best sampling depends on the allocation.
    """
    if (theirs := getattr(schedule, "allocation", allocation)) != allocation:
        raise ValueError(
            f"allocation = {allocation!r}, but the schedule learns the best sampling for {theirs!r}; expected the same "
            "allocation in both"
        )
    if reference is not None and args.label_smoothing_factor:
        raise ValueError(
            f"label_smoothing_factor = {args.label_smoothing_factor}; expected 0 with a reference model, as its loss "
            "is "
            "computed without smoothing"
        )
    ahead = args.dataloader_num_workers * (args.dataloader_prefetch_factor or 2)
    needed = 1 if ahead == 0 else 2 + (ahead - 1) // args.gradient_accumulation_steps
    if schedule.delay < needed:
        raise ValueError(
            f"delay = {schedule.delay}, but {args.dataloader_num_workers} workers read {ahead} micro-batches ahead, "
            "from "
            f"up to {needed - 1} steps that are not trained yet; expected a delay of at least {needed}, or fewer "
            "workers"
        )


def warn_of_lengths(samples: Mapping[str, int], tokens: Mapping[str, int]) -> bool:
    """Warn if domains differ so much in tokens per sample that shares of samples and of tokens differ clearly.

    Domains are drawn by the sample, but the loss is a mean over tokens. So domain i weighs p_i times its mean length.

    Returns:
        Whether there was a warning.
    """
    lengths = {domain: tokens[domain] / n for domain, n in samples.items()}
    longest, shortest = max(lengths, key=lengths.__getitem__), min(lengths, key=lengths.__getitem__)
    if lengths[longest] <= _LENGTH_RATIO * lengths[shortest]:
        return False
    warnings.warn(
        f"a sample of {longest!r} has {lengths[longest]:.0f} tokens on average, one of {shortest!r} "
        f"{lengths[shortest]:.0f}. Sampling counts samples but the loss counts tokens, so {longest!r} weighs "
        f"{lengths[longest] / lengths[shortest]:.1f} times as much as its share of the mixture says (see share/ in the "
        'logs). Pack samples to one length, or pass mixture_unit="tokens" to the trainer',
        stacklevel=2,
    )
    return True
