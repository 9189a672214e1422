"""Choose the checkpoint that a job resumes from, the same on all ranks."""

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

    One process of each node reads the files, so that all agree even if one node's copy is damaged. A warning names
    newer checkpoints that are not complete. Those that never were complete are removed, and damaged ones are renamed.

    Args:
        args: The trainer's arguments; ``output_dir`` holds the checkpoints.
        path: One of them, or None for the newest that is complete.

    Raises:
        ValueError: On all ranks, if the checkpoint is not complete, with the reason, or if there is none.
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
        raise ValueError(
            f"{path} is not a complete checkpoint: {faults[0][1].text}; pass another one, or True for the newest "
            "complete one"
        )
    raise ValueError(
        f"{args.output_dir} has no complete checkpoint to resume from ({checkpoints.reasons(faults)}); start a new run"
    )


def unnumber_cpu(args: TrainingArguments) -> None:
    """Set ``args.device`` to the CPU without a number, because torch.load rejects a numbered CPU.

    Accelerate numbers the CPU of each process, and transformers before version 5 loads optimizers to that device.
    """
    if args.device.type == "cpu" and args.device.index is not None:
        vars(args)["_setup_devices"] = torch.device("cpu")
