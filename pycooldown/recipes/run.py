"""Runs a recipe: from packed data to a folder with model, metrics and summary.

A run's folder holds ``recipe.json`` (as resolved, with the data's fingerprint), ``metrics.jsonl``, ``tensorboard/``,
``checkpoint-*/``, ``model/``, ``translations.jsonl`` if the recipe asks for translations and, written last,
``summary.json``.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from accelerate.utils import gather_object
from torch.utils.tensorboard import SummaryWriter
from transformers.integrations import TensorBoardCallback

from pycooldown import adaptive
from pycooldown._files import write_atomically
from pycooldown.adaptive import LearnedSchedule
from pycooldown.data.manifest import Manifest, load_manifest
from pycooldown.huggingface.callbacks import MetricsFile, ProgressLines
from pycooldown.huggingface.checkpoints import complete_checkpoint, discard_incomplete
from pycooldown.huggingface.checks import warn_of_lengths
from pycooldown.recipes.build import RecipeTrainer, arguments, assemble, validation_pairs
from pycooldown.recipes.doremi import after_proxy
from pycooldown.recipes.history import METRICS, RECIPE, SUMMARY, TRANSLATIONS, Run
from pycooldown.recipes.learning_methods import DoReMi
from pycooldown.recipes.planning import domain_sizes
from pycooldown.recipes.schema import Recipe
from pycooldown.recipes.translation import Translation, score, translate


def train(recipe: Recipe, output: str | Path, *, resume: bool = False, progress: bool = True) -> Run:
    """Trains what a recipe says, unless ``output`` holds that run already.

    Args:
        recipe: from `load_recipe`.
        output: the run's folder.
        resume: go on with a run of this recipe that was interrupted in ``output``, from its newest complete
            checkpoint; the outcome is the same as without the interruption.
        progress: show a bar on a terminal, elsewhere a line for each log.

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
    args = arguments(recipe, output, progress)
    if _is_finished(output, resolved, resume):  # every rank looks, before one of them writes
        return Run.read(output)

    warn_of_lengths(sizes, {domain: manifest.domains[domain]["train"].tgt_tokens for domain in sizes})
    trainer = assemble(recipe, manifest, sizes, args)
    if progress and args.disable_tqdm:
        trainer.add_callback(ProgressLines())
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
        trainer.add_callback(metrics := MetricsFile(output / METRICS))
        # Events after the checkpoint are of the process that was interrupted and will come again.
        trainer.add_callback(TensorBoardCallback(SummaryWriter(str(output / "tensorboard"), purge_step=start + 1)))

    trainer.train(resume_from_checkpoint=checkpoint)
    trainer.save_model(str(output / "model"))
    final = _final_losses(trainer)
    tokens = trainer.sums.tokens()
    translations = _translations(trainer, manifest, recipe)
    if args.should_save:
        scores = score(translations)
        if translations:
            lines = (json.dumps(asdict(translation), ensure_ascii=False) for translation in translations)
            write_atomically(output / TRANSLATIONS, "".join(f"{line}\n" for line in lines))
        exposure = trainer.sampler.exposure(recipe.training.steps)
        summary = {
            "steps": recipe.training.steps,
            "resumed_at": int(checkpoint.rpartition("-")[2]) if checkpoint else None,
            "seconds": round(metrics.seconds, 3),
            "parameters": sum(p.numel() for p in trainer.model.parameters()),
            "eval_loss": final["eval_loss"],
            "domains": {
                domain: {
                    "size": size,
                    "draws": int(draws),
                    "tokens": tokens[domain],
                    "epochs": float(epochs),
                    "loss": final[f"eval_loss/{domain}"],
                    **scores.get(domain, {}),
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
    if isinstance(schedule, adaptive.DoReMi):  # differs from the average if the weights have not settled
        columns["moving_average"] = schedule.moving_average.target
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
            # None has a part in the outcome; accumulation may change with the number of processes, of which its share
            # of the batch is the inverse.
            ignored = {("training", "workers"), ("training", "accumulation"), ("data", "path")}
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


def _translations(trainer: RecipeTrainer, manifest: Manifest, recipe: Recipe) -> list[Translation]:
    """What the recipe wants translated, each language by one rank; all of it on every rank."""
    if recipe.decoding is None:
        return []
    args = trainer.args
    mine = trainer.domains[args.process_index :: args.world_size]
    pairs = validation_pairs(manifest, mine, recipe.decoding.samples)
    model, length = trainer.accelerator.unwrap_model(trainer.model), recipe.data.max_length
    found: list[Translation] = gather_object(translate(model, pairs, manifest.tokenizer, length, recipe.decoding))
    return found


def _final_losses(trainer: RecipeTrainer) -> dict[str, float]:
    """The last evaluation, if it was at the last step, or a new one."""
    logged = [entry for entry in trainer.state.log_history if "eval_loss" in entry]
    if logged and logged[-1]["step"] == trainer.state.global_step:
        last: dict[str, float] = logged[-1]
        return last
    return trainer.evaluate()
