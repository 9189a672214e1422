"""Build Trainer's arguments from a recipe's sections ``training`` and ``trainer``."""

from __future__ import annotations

import dataclasses
import sys
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments

from pycooldown.huggingface.arguments import TRAINING_ARGUMENTS
from pycooldown.recipes import learning_rate_decay
from pycooldown.recipes.schema import Recipe

# Arguments that other keys of the recipe decide, and the way to set them.
DECIDED = {
    "output_dir": "the run's folder is --output",
    "do_train": "`train` always trains",
    "do_eval": "set training.eval_every",
    "do_predict": "set the section decoding to translate",
    "local_rank": "the launcher decides it",
    "overwrite_output_dir": "a folder with another run is refused",
    "resume_from_checkpoint": "give --resume",
    "max_steps": "set training.steps",
    "num_train_epochs": "set training.steps; a mixture has no single epoch",
    "per_device_train_batch_size": "set training.batch_size, over all ranks, and training.accumulation",
    "gradient_accumulation_steps": "set training.accumulation",
    "learning_rate": "set training.learning_rate",
    "warmup_steps": "set training.warmup",
    "warmup_ratio": "set training.warmup",
    "weight_decay": "set training.weight_decay",
    "adam_beta1": "set training.betas",
    "adam_beta2": "set training.betas",
    "adam_epsilon": "set training.epsilon",
    "max_grad_norm": "set training.max_grad_norm",
    "label_smoothing_factor": "set training.label_smoothing",
    "seed": "set training.seed",
    "data_seed": "set training.seed",
    "logging_strategy": "set training.log_every",
    "logging_steps": "set training.log_every",
    "logging_nan_inf_filter": "set training.allow_non_finite",
    "logging_dir": "events for TensorBoard are in the folder tensorboard of the run's folder",
    "eval_strategy": "set training.eval_every",
    "eval_steps": "set training.eval_every",
    "save_strategy": "set training.save_every",
    "save_steps": "set training.save_every",
    "dataloader_num_workers": "set training.workers",
    "load_best_model_at_end": "the run's model and losses are those of its last step",
    "ignore_data_skip": "the loader itself continues from the right place",
}


def arguments(recipe: Recipe, output: Path, progress: bool) -> TrainingArguments:
    """Return Trainer's arguments. CUDA devices with bfloat16 use it, unless the recipe says otherwise.

    Raises:
        ValueError: If the batch cannot be cut evenly into processes and micro-batches. Also if ``trainer`` has a key
            that the installed transformers lacks, or that cannot be honoured.
    """
    training = recipe.training
    given = _checked(recipe)
    accumulation = training.accumulation
    another = "lr_scheduler_type" in given  # then kwargs of the recipe's decay do not fit
    decay = {"lr_scheduler_kwargs": None} if another else learning_rate_decay.arguments(training.decay)
    if not {"bf16", "fp16"} & set(given) and recipe.model.dtype != "float16":
        given["bf16"] = torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    values: dict[str, Any] = {
        "output_dir": str(output),
        "use_cpu": not torch.accelerator.is_available(),  # otherwise processes on CPUs would not join one group
        "max_steps": -1 if isinstance(training.steps, str) else training.steps,
        "gradient_accumulation_steps": accumulation,
        "per_device_eval_batch_size": 128,
        "learning_rate": training.learning_rate,
        **decay,
        "warmup_steps": training.warmup,
        "weight_decay": training.weight_decay,
        "adam_beta1": training.betas[0],
        "adam_beta2": training.betas[1],
        "adam_epsilon": training.epsilon,
        "max_grad_norm": training.max_grad_norm,
        "label_smoothing_factor": training.label_smoothing,
        "seed": training.seed,
        "logging_steps": training.log_every,
        "logging_nan_inf_filter": False,  # keeps losses that are not finite in the logs
        "eval_strategy": "steps",
        "eval_steps": training.eval_every,
        "save_strategy": "steps",
        "save_steps": training.save_every,
        "save_total_limit": 2,
        "dataloader_num_workers": training.workers,
        "disable_tqdm": not (progress and sys.stderr.isatty()),
        "report_to": "none",
        **given,
    }
    try:
        args = TrainingArguments(**values)
    except (TypeError, ValueError, ImportError, OSError) as error:
        if not given:
            raise
        raise ValueError(f"trainer: {error}") from error
    parts = args.world_size * accumulation
    for _, size in training.batch_sizes:
        if size % parts:
            raise ValueError(
                f"training.batch_size = {size} cannot be cut evenly into {args.world_size} processes x "
                f"{accumulation} micro-batches; expected a multiple of {parts}"
            )
    args.per_device_train_batch_size = training.batch_sizes[0][1] // parts
    # Events for TensorBoard are always in the run's folder; another callback would write them a second time.
    args.report_to = [name for name in args.report_to if name != "tensorboard"]
    return args


def _checked(recipe: Recipe) -> dict[str, Any]:
    """Return the section ``trainer``, or raise ValueError for keys that cannot be honoured."""
    known = [field.name for field in dataclasses.fields(TrainingArguments) if field.init]
    for name in recipe.trainer:
        if name in DECIDED:
            raise ValueError(f"trainer.{name} is decided by other keys of the recipe: {DECIDED[name]}; leave it out")
        if name not in known:
            close = get_close_matches(name, known, n=3)
            hint = f"; did you mean {' or '.join(close)}?" if close else ""
            raise ValueError(f"trainer.{name} is unknown to TrainingArguments of the installed transformers{hint}")
        rule = TRAINING_ARGUMENTS.get(name)
        if rule is not None and rule.by == "refused":
            raise ValueError(f"trainer.{name}: {rule.note}")
        if name.startswith("lr_scheduler") and recipe.training.decay != "cosine":
            raise ValueError(f"trainer.{name} conflicts with training.decay = {recipe.training.decay!r}; leave one out")
    return dict(recipe.trainer)
