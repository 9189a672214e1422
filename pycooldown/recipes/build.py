"""Assemble the trainer of a recipe from data, model, mixture and arguments."""

from __future__ import annotations

import atexit
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch.utils.data import Subset
from transformers import PrinterCallback, TrainingArguments, set_seed

from pycooldown.huggingface.trainer import MixtureTrainer
from pycooldown.recipes import learning_rate_decay
from pycooldown.recipes.adapters import adapt
from pycooldown.recipes.corpus import Corpus
from pycooldown.recipes.models import build_model, load_model
from pycooldown.recipes.planning import build_schedule, training_sizes
from pycooldown.recipes.schema import Recipe


@atexit.register
def _close_process_group() -> None:
    """Close an open process group and join its threads, which may abort the process if it just exits."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


class RecipeTrainer(MixtureTrainer):
    """A MixtureTrainer with the learning rate of its recipe."""

    recipe: Recipe
    lr_scheduler: Any

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """Return Trainer's scheduler, or the exponential one, which Trainer lacks."""
        if self.lr_scheduler is None and self.recipe.training.decay == "exponential":
            self.lr_scheduler = learning_rate_decay.exponential(
                optimizer or self.optimizer, warmup=self.recipe.training.warmup, num_steps=num_training_steps
            )
            self._created_lr_scheduler = True
        return super().create_scheduler(num_training_steps, optimizer)


def assemble(recipe: Recipe, corpus: Corpus, args: TrainingArguments) -> RecipeTrainer:
    """Return the trainer, with the data and the model that follow from the recipe's seed.

    The recipe's method states its needs through hooks; see `pycooldown.recipes.methods.MethodOptions`.

    Raises:
        ValueError: If model and data do not fit together, or no domain has validation data.
    """
    set_seed(recipe.training.seed)
    method, sizes = recipe.mixture, corpus.sizes
    model = build_model(recipe.model, corpus)
    dataset = corpus.train()
    collate = corpus.collator(translates=model.config.is_encoder_decoder)
    if recipe.decoding is not None and not model.config.is_encoder_decoder:
        raise ValueError(f"decoding needs an encoder-decoder, but {type(model).__name__} is none; leave decoding out")
    if recipe.peft is not None:
        model = adapt(model, recipe.peft)
    kept, probe = training_sizes(recipe, sizes), None
    if kept != sizes:
        dataset, held_out = _hold_out(dataset, sizes, kept)
        probe = method.probe(held_out, collate, recipe.training.seed)
    reference = method.reference_run()
    trainer = RecipeTrainer(
        model,
        args,
        schedule=build_schedule(recipe, kept),
        allocation=recipe.training.allocation,
        stop=recipe.training.steps if isinstance(recipe.training.steps, str) else None,
        train_dataset=dataset,
        eval_dataset=_validation(corpus, recipe.data.eval_samples),
        data_collator=collate,
        reference_model=None if reference is None else load_model(reference),
        probe=probe,
        allow_non_finite_loss=recipe.training.allow_non_finite,
    )
    trainer.recipe = recipe
    trainer.remove_callback(PrinterCallback)  # metrics.jsonl holds the same values
    for from_step, batch_size in recipe.training.batch_sizes[1:]:
        trainer.set_batch_size(batch_size, from_step=from_step)
    for callback in method.callbacks(args.max_steps):
        trainer.add_callback(callback)
    return trainer


def _validation(corpus: Corpus, count: int) -> dict[str, Any]:
    """Return validation sequences by domain, and warn about domains that have none."""
    found = corpus.validation(count)
    missing = [domain for domain in corpus.sizes if domain not in found]
    if not found:
        raise ValueError(
            "no domain has validation documents; run `pycooldown tokenize` with --validation (for example 20), or set "
            "data.validation_sources"
        )
    if missing:
        warnings.warn(
            f"{', '.join(missing)}: no validation documents, so these domains are not evaluated", stacklevel=2
        )
    return found


def _hold_out(
    dataset: Any, sizes: Mapping[str, int], kept: Mapping[str, int]
) -> tuple[Subset[Any], dict[str, Subset[Any]]]:
    """Return the training samples, and by domain the held-out ones, which are spread evenly over the domain."""
    train: list[int] = []
    held_out, begin = {}, 0
    for domain, size in sizes.items():
        out = begin + np.unique(np.linspace(0, size - 1, size - kept[domain]).astype(np.int64))
        held_out[domain] = Subset(dataset, out.tolist())
        train += np.setdiff1d(np.arange(begin, begin + size), out).tolist()
        begin += size
    return Subset(dataset, train), held_out
