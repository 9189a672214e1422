"""Put the trainer of a recipe together: data, model, mixture and arguments."""

from __future__ import annotations

import atexit
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Subset
from transformers import PrinterCallback, TrainingArguments, set_seed

from pycooldown.data.manifest import Manifest
from pycooldown.huggingface.batches import collator
from pycooldown.huggingface.trainer import MixtureTrainer
from pycooldown.recipes import learning_rate
from pycooldown.recipes.models import build_model, load_model
from pycooldown.recipes.planning import build_schedule, training_sizes
from pycooldown.recipes.schema import Recipe


@atexit.register
def _close_process_group() -> None:
    """Join the threads of a process group that is still open; at times they abort a process that just exits."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


class RecipeTrainer(MixtureTrainer):
    """A MixtureTrainer with the learning rate of its recipe."""

    recipe: Recipe
    lr_scheduler: Any

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """Return Trainer's scheduler, or the exponential one that it lacks."""
        if self.lr_scheduler is None and self.recipe.training.decay == "exponential":
            self.lr_scheduler = learning_rate.exponential(
                optimizer or self.optimizer, warmup=self.recipe.training.warmup, num_steps=num_training_steps
            )
            self._created_lr_scheduler = True
        return super().create_scheduler(num_training_steps, optimizer)


def arguments(recipe: Recipe, output: Path, progress: bool) -> TrainingArguments:
    """Return the arguments of Trainer.

    Raises:
        ValueError: If the batch cannot be cut evenly into processes and micro-batches.
    """
    training = recipe.training
    args = TrainingArguments(
        output_dir=str(output),
        use_cpu=not torch.accelerator.is_available(),  # else processes on CPUs would not join one group
        max_steps=training.steps,
        gradient_accumulation_steps=training.accumulation,
        per_device_eval_batch_size=128,
        learning_rate=training.learning_rate,
        **learning_rate.arguments(training.decay),
        warmup_steps=training.warmup,
        weight_decay=training.weight_decay,
        adam_beta1=training.betas[0],
        adam_beta2=training.betas[1],
        adam_epsilon=training.epsilon,
        max_grad_norm=training.max_grad_norm,
        label_smoothing_factor=training.label_smoothing,
        seed=training.seed,
        logging_steps=training.log_every,
        logging_nan_inf_filter=False,  # show a loss that is not finite
        eval_strategy="steps",
        eval_steps=training.eval_every,
        save_strategy="steps",
        save_steps=training.save_every,
        save_total_limit=2,
        dataloader_num_workers=training.workers,
        disable_tqdm=not (progress and sys.stderr.isatty()),
        report_to="none",
    )
    parts = args.world_size * training.accumulation
    if training.batch_size % parts:
        raise ValueError(
            f"training.batch_size = {training.batch_size} cannot be cut evenly into {args.world_size} processes x "
            f"{training.accumulation} micro-batches; expected a multiple of {parts}"
        )
    args.per_device_train_batch_size = training.batch_size // parts
    return args


def assemble(recipe: Recipe, manifest: Manifest, sizes: Mapping[str, int], args: TrainingArguments) -> RecipeTrainer:
    """Return the trainer, with the data and the model that follow from the recipe's seed.

    What the recipe's method needs of a run comes from its hooks; see `pycooldown.recipes.methods.MethodOptions`.
    """
    set_seed(recipe.training.seed)
    method = recipe.mixture
    dataset: Any = manifest.dataset("train", sizes)
    collate = collator(recipe.model.family, recipe.data.max_length, manifest.tokenizer.pad_id)
    kept, probe = training_sizes(recipe, sizes), None
    if kept != sizes:
        dataset, held_out = _hold_out(dataset, sizes, kept)
        probe = method.probe(held_out, collate, recipe.training.seed)
    reference = method.reference_run()
    trainer = RecipeTrainer(
        build_model(recipe, manifest.tokenizer),
        args,
        schedule=build_schedule(recipe, kept),
        allocation=recipe.training.allocation,
        train_dataset=dataset,
        eval_dataset=validation_pairs(manifest, sizes, recipe.data.eval_samples),
        data_collator=collate,
        reference_model=None if reference is None else load_model(recipe.model.family, reference),
        probe=probe,
        allow_non_finite_loss=recipe.training.allow_non_finite,
    )
    trainer.recipe = recipe
    trainer.remove_callback(PrinterCallback)  # metrics.jsonl has what it would print
    for callback in method.callbacks(recipe.training.steps):
        trainer.add_callback(callback)
    return trainer


def validation_pairs(manifest: Manifest, domains: Iterable[str], count: int) -> dict[str, Subset[Any]]:
    """Return at most ``count`` validation samples of each domain, evenly spread."""
    chosen = {}
    for domain in domains:
        dataset: Any = manifest.dataset("validation", [domain])
        places = np.unique(np.linspace(0, len(dataset) - 1, count).astype(np.int64))
        chosen[domain] = Subset(dataset, places.tolist())
    return chosen


def _hold_out(
    dataset: Any, sizes: Mapping[str, int], kept: Mapping[str, int]
) -> tuple[Subset[Any], dict[str, Subset[Any]]]:
    """Return the training samples, and by domain the others, which are spread evenly over it."""
    train: list[int] = []
    held_out, begin = {}, 0
    for domain, size in sizes.items():
        out = begin + np.unique(np.linspace(0, size - 1, size - kept[domain]).astype(np.int64))
        held_out[domain] = Subset(dataset, out.tolist())
        train += np.setdiff1d(np.arange(begin, begin + size), out).tolist()
        begin += size
    return Subset(dataset, train), held_out
