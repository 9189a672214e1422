"""Which checkpoint a job resumes from, the same on all ranks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast_object_list, gather_object
from transformers import TrainingArguments

from pycooldown.huggingface import checkpoints
from pycooldown.huggingface.checkpoints import Fault


def agree_on_checkpoint(args: TrainingArguments, path: str | None) -> tuple[str, dict[str, Any]]:
    """Return the checkpoint that all ranks resume from, and the sampler's state in it.

    One process of each node reads the files, so that all agree even if one node's copy is damaged. Newer checkpoints
    that are not whole are named in a warning; those that never were are removed, and damaged ones set aside.

    Args:
        args: Of the trainer; ``output_dir`` has the checkpoints.
        path: One of them, or None for the newest that is whole.

    Raises:
        ValueError: If it is not whole, saying why, or there is none. All ranks raise.
    """
    reads = args.local_process_index == 0
    found = broadcast_object_list([checkpoints.checkpoints(args.output_dir) if path is None else [Path(path)]])[0]
    faults: list[tuple[Path, Fault]] = []
    for checkpoint in found:
        seen = gather_object([checkpoints.find_fault(checkpoint) if reads else None])
        if any(seen):
            faults.append((checkpoint, next(fault for fault in seen if fault)))
            continue
        if reads:
            checkpoints.warn_of_faults(faults, checkpoint)
        if args.should_save:
            checkpoints.discard(faults)
        return str(checkpoint), checkpoints.read_state(checkpoint)
    if path is not None:
        raise ValueError(f"{path} is not a complete checkpoint: {faults[0][1].text}")
    raise ValueError(
        f"{args.output_dir} has no complete checkpoint to resume from ({checkpoints.reasons(faults)}): start anew"
    )


def unnumber_cpu(args: TrainingArguments) -> None:
    """Make ``args.device`` the CPU without a number, which torch.load takes no checkpoint to.

    Accelerate numbers the CPU of each process, and transformers before 5 loads optimizers to that.
    """
    if args.device.type == "cpu" and args.device.index is not None:
        vars(args)["_setup_devices"] = torch.device("cpu")
