"""Runs a recipe: from packed data to a folder with model, metrics and summary.

A run's folder holds ``recipe.json`` (as resolved, with the data's fingerprint), ``metrics.jsonl``, ``tensorboard/``,
``checkpoint-*/``, ``model/`` and, written last, ``summary.json``.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import Subset
from torch.utils.tensorboard import SummaryWriter
from transformers import LlamaConfig, LlamaForCausalLM, PrinterCallback, TrainingArguments, set_seed
from transformers.integrations import TensorBoardCallback

from pycooldown import adaptive
from pycooldown.adaptive import LearnedSchedule
from pycooldown.data.manifest import Manifest, load_manifest
from pycooldown.data.shards import TarDataset
from pycooldown.training.batches import PackedText
from pycooldown.training.callbacks import MetricsFile, ResetAtStep
from pycooldown.training.checkpoints import complete_checkpoint, discard_incomplete, write_atomically
from pycooldown.training.checks import warn_of_lengths
from pycooldown.training.doremi import after_proxy
from pycooldown.training.history import METRICS, RECIPE, SUMMARY, Run
from pycooldown.training.learning_methods import DoReMi, Probing
from pycooldown.training.methods import OrderMatters
from pycooldown.training.planning import build_schedule, domain_sizes, training_sizes
from pycooldown.training.probe import Probe
from pycooldown.training.recipe import Recipe
from pycooldown.training.trainer import MixtureTrainer


def train(recipe: Recipe, output: str | Path, *, resume: bool = False, progress: bool = True) -> Run:
    """Trains what a recipe says, unless ``output`` holds that run already.

    Args:
        recipe: from `load_recipe`.
        output: the run's folder.
        resume: go on with a run of this recipe that was interrupted in ``output``, from its newest complete
            checkpoint; the outcome is the same as without the interruption.
        progress: show progress bars.

    Returns:
        The finished run.

    Raises:
        FileNotFoundError: if the recipe's data are not there.
        ValueError: if the recipe does not fit the data or the number of processes, or ``output`` holds another run, or
            one that was interrupted and ``resume`` is not set.
    """
    output = Path(output)
    if isinstance(recipe.mixture, DoReMi) and recipe.mixture.reference is None:
        recipe = after_proxy(
            recipe, output, lambda stage, folder: train(stage, folder, resume=resume, progress=progress)
        )
    manifest = load_manifest(Path(recipe.data.path))
    sizes = domain_sizes(recipe)
    resolved = {**recipe.to_dict(), "fingerprint": manifest.fingerprint, "sizes": sizes}
    args = _arguments(recipe, output, progress)
    if _is_finished(output, resolved, resume):  # every rank looks, before one of them writes
        return Run.read(output)

    warn_of_lengths(sizes, manifest.tokens("train"))
    trainer = _trainer(recipe, manifest, sizes, args)
    checkpoint = None
    if resume and any(output.glob("checkpoint-*")):
        try:
            checkpoint, _ = complete_checkpoint(output)
        except ValueError as error:
            print(f"starting anew: {error}")
            if args.should_save:
                discard_incomplete(output)
    trainer.accelerator.wait_for_everyone()
    if args.should_save:
        output.mkdir(parents=True, exist_ok=True)
        write_atomically(output / RECIPE, json.dumps(resolved, indent=1, ensure_ascii=False))
        start = int(checkpoint.rpartition("-")[2]) if checkpoint else 0
        trainer.add_callback(MetricsFile(output / METRICS))
        # Events after the checkpoint are of the process that was interrupted and will come again.
        trainer.add_callback(TensorBoardCallback(SummaryWriter(str(output / "tensorboard"), purge_step=start + 1)))

    begin = time.perf_counter()
    trainer.train(resume_from_checkpoint=checkpoint)
    seconds = time.perf_counter() - begin
    trainer.save_model(str(output / "model"))
    final = _final_losses(trainer)
    if args.should_save:
        exposure = trainer.sampler.exposure(recipe.training.steps)
        summary = {
            "steps": recipe.training.steps,
            "resumed_at": int(checkpoint.rpartition("-")[2]) if checkpoint else None,
            "seconds": round(seconds, 1),
            "parameters": sum(p.numel() for p in trainer.model.parameters()),
            "eval_loss": final["eval_loss"],
            "domains": {
                domain: {
                    "size": size,
                    "draws": int(draws),
                    "epochs": float(epochs),
                    "loss": final[f"eval_loss/{domain}"],
                }
                for (domain, size), draws, epochs in zip(sizes.items(), exposure.draws, exposure.epochs, strict=True)
            },
        }
        if isinstance(trainer.schedule, LearnedSchedule):
            summary["learned"] = _learned(trainer.schedule)
        write_atomically(output / SUMMARY, json.dumps(summary, indent=1, ensure_ascii=False))
    trainer.accelerator.wait_for_everyone()
    return Run.read(output)


def _learned(schedule: LearnedSchedule) -> dict[str, dict[str, float]]:
    """What the run ended with; of DoReMi the average, which is its outcome."""
    mixture = schedule.average if isinstance(schedule, adaptive.DoReMi) else schedule.current
    columns = {"target": mixture.target, "sampling": mixture.sampling}
    return {name: dict(zip(mixture.domains, values.tolist(), strict=True)) for name, values in columns.items()}


def _is_finished(output: Path, resolved: dict[str, Any], resume: bool) -> bool:
    """Whether ``output`` holds the finished run; raises where training would spoil what it holds."""
    if not (output / RECIPE).exists():
        if output.is_dir() and any(path.suffix != ".partial" for path in output.iterdir()):
            raise ValueError(f"{output} is not empty and holds no run; choose another folder")
        return False
    try:
        stored = json.loads((output / RECIPE).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{output / RECIPE} is damaged: {error}; choose another folder") from error
    if not isinstance(stored, dict):
        raise ValueError(f"{output / RECIPE} is damaged: expected a JSON object; choose another folder")
    for section in sorted({*stored, *resolved}):
        theirs, mine = stored.get(section), resolved.get(section)
        if isinstance(theirs, dict) and isinstance(mine, dict):
            ignored = {("training", "workers"), ("data", "path")}  # neither has a part in the outcome
            for key in sorted({*theirs, *mine}):
                if _jsonable(theirs.get(key)) != _jsonable(mine.get(key)) and (section, key) not in ignored:
                    raise ValueError(
                        f"{output} holds a run of another recipe: {section}.{key} is {theirs.get(key)!r} there and "
                        f"{mine.get(key)!r} here; choose another folder"
                    )
        elif theirs != mine:
            raise ValueError(f"{output} holds a run of another recipe: {section} differs; choose another folder")
    finished = (output / SUMMARY).exists()
    if not finished and not resume:
        raise ValueError(f"{output} holds a run that was interrupted; go on with it with --resume, or remove it")
    return finished


def _jsonable(value: Any) -> Any:
    return json.loads(json.dumps(value))


def _arguments(recipe: Recipe, output: Path, progress: bool) -> TrainingArguments:
    training = recipe.training
    args = TrainingArguments(
        output_dir=str(output),
        max_steps=training.steps,
        gradient_accumulation_steps=training.accumulation,
        per_device_eval_batch_size=128,
        learning_rate=training.learning_rate,
        lr_scheduler_type="cosine_with_min_lr",
        lr_scheduler_kwargs={"min_lr_rate": 0.1},
        warmup_steps=training.warmup,
        weight_decay=training.weight_decay,
        max_grad_norm=training.max_grad_norm,
        seed=training.seed,
        logging_steps=training.log_every,
        logging_nan_inf_filter=False,  # a loss that is not finite shall be seen
        eval_strategy="steps",
        eval_steps=training.eval_every,
        save_strategy="steps",
        save_steps=training.save_every,
        save_total_limit=2,
        dataloader_num_workers=training.workers,
        disable_tqdm=not progress,
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


def _trainer(recipe: Recipe, manifest: Manifest, sizes: dict[str, int], args: TrainingArguments) -> MixtureTrainer:
    set_seed(recipe.training.seed)
    shards, validation = manifest.shards("train"), manifest.shards("validation")
    dataset: Any = TarDataset({domain: shards[domain] for domain in sizes})
    collate = PackedText(recipe.data.max_length)
    kept, probe = training_sizes(recipe, sizes), None
    if isinstance(recipe.mixture, Probing):
        dataset, probe = _hold_out(dataset, sizes, kept, recipe.mixture, collate, recipe.training.seed)
    trainer = MixtureTrainer(
        _model(recipe, manifest),
        args,
        schedule=build_schedule(recipe, kept),
        allocation=recipe.training.allocation,
        train_dataset=dataset,
        eval_dataset={d: _spread(TarDataset({d: validation[d]}), recipe.data.eval_samples) for d in sizes},
        data_collator=collate,
        reference_model=_reference(recipe),
        probe=probe,
    )
    trainer.remove_callback(PrinterCallback)  # metrics.jsonl has what it would print
    if isinstance(recipe.mixture, OrderMatters):
        trainer.add_callback(ResetAtStep(recipe.mixture, recipe.training.steps))
    return trainer


def _hold_out(
    dataset: Any, sizes: dict[str, int], kept: dict[str, int], method: Probing, collate: PackedText, seed: int
) -> tuple[Subset[Any], Probe]:
    """The training samples, and a probe of the others, which are spread evenly over each domain."""
    train: list[int] = []
    probes, begin = {}, 0
    for domain, size in sizes.items():
        out = begin + np.unique(np.linspace(0, size - 1, size - kept[domain]).astype(np.int64))
        probes[domain] = Subset(dataset, out.tolist())
        train += np.setdiff1d(np.arange(begin, begin + size), out).tolist()
        begin += size
    probe = Probe(
        probes,
        tuple(sizes),
        collate,
        size=method.probe_size,
        parameters=method.probe_parameters or "",
        seed=seed,
    )
    return Subset(dataset, train), probe


def _reference(recipe: Recipe) -> LlamaForCausalLM | None:
    if not isinstance(recipe.mixture, DoReMi):
        return None
    assert recipe.mixture.reference is not None  # `after_proxy` has filled it in
    return LlamaForCausalLM.from_pretrained(Path(recipe.mixture.reference) / "model")


def _model(recipe: Recipe, manifest: Manifest) -> LlamaForCausalLM:
    tokenizer = manifest.tokenizer
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=tokenizer.vocabulary_size,
            hidden_size=recipe.model.width,
            intermediate_size=recipe.model.mlp_width,
            num_hidden_layers=recipe.model.layers,
            num_attention_heads=recipe.model.heads,
            max_position_embeddings=recipe.data.max_length,
            pad_token_id=tokenizer.pad_id,
            bos_token_id=tokenizer.bos_id,
            eos_token_id=tokenizer.eos_id,
            tie_word_embeddings=True,
            use_cache=False,
        )
    )


def _spread(dataset: Any, count: int) -> Subset[Any]:
    """At most ``count`` samples, evenly spread."""
    return Subset(dataset, np.unique(np.linspace(0, len(dataset) - 1, count).astype(np.int64)).tolist())


def _final_losses(trainer: MixtureTrainer) -> dict[str, float]:
    """The last evaluation, if it was at the last step, or a new one."""
    logged = [entry for entry in trainer.state.log_history if "eval_loss" in entry]
    if logged and logged[-1]["step"] == trainer.state.global_step:
        last: dict[str, float] = logged[-1]
        return last
    return trainer.evaluate()
