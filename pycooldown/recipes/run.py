"""Run a recipe: from tokens or packed pairs to a folder with model, metrics and summary.

A run's folder holds ``recipe.json`` (the resolved recipe with the data's fingerprint), ``metrics.jsonl``,
``tensorboard/``, ``checkpoint-*/``, ``model/``, ``translations.jsonl`` if the recipe asks for translations and, written
last, ``summary.json``.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from accelerate.utils import gather_object
from torch.utils.tensorboard import SummaryWriter
from transformers import TrainerCallback, TrainingArguments
from transformers.integrations import TensorBoardCallback

from pycooldown._files import write_atomically
from pycooldown.huggingface.callbacks import MetricsFile, MixtureProgress, ProgressLines
from pycooldown.huggingface.checkpoints import complete_checkpoint, discard_incomplete, valid_json
from pycooldown.huggingface.trainer_logs import LOGGED_DOMAINS
from pycooldown.recipes.build import RecipeTrainer, assemble
from pycooldown.recipes.corpus import Corpus, open_corpus
from pycooldown.recipes.history import METRICS, RECIPE, SUMMARY, TRANSLATIONS, Run
from pycooldown.recipes.live import LiveTable
from pycooldown.recipes.methods import MethodOptions
from pycooldown.recipes.model_section import AnyModel
from pycooldown.recipes.models import model_fingerprint
from pycooldown.recipes.run_folder import folder_state
from pycooldown.recipes.run_lock import lock_run
from pycooldown.recipes.saved_tokenizer import save_tokenizer
from pycooldown.recipes.schema import Recipe
from pycooldown.recipes.trainer_arguments import arguments
from pycooldown.recipes.translation import Translation, score, translate


def train(recipe: Recipe, output: str | Path, *, resume: bool = False, progress: bool = True) -> Run:
    """Train a recipe, unless its finished run is already in ``output``.

    Args:
        recipe: From `load_recipe`.
        output: The run's folder.
        resume: Whether to continue an interrupted run of this recipe in ``output`` from its newest complete checkpoint.
            The result is the same as without the interruption.
        progress: Whether to show a bar on a terminal, or elsewhere a line for each log.

    Returns:
        The finished run.

    Raises:
        FileNotFoundError: If the recipe's data do not exist.
        FloatingPointError: If a loss is not finite, unless the recipe allows it. The message names step and domains.
        ValueError: If the recipe does not fit the data or the number of processes. Also if ``output`` holds another
            run, or an interrupted one and ``resume`` is not set, or if another process trains there.
    """
    output = Path(output)

    def train_stage(method: MethodOptions, folder: Path, model: AnyModel | None = None) -> Run:
        # Losses of stages are compared with each other, so label smoothing is switched off.
        plain = replace(recipe.training, label_smoothing=0.0)
        stage = replace(recipe, mixture=method, training=plain, decoding=None)
        if model is not None:
            stage = replace(stage, model=model, peft=None)
        return train(stage, folder, resume=resume, progress=progress)

    recipe = replace(recipe, mixture=recipe.mixture.run_stages(output, train_stage))
    corpus = open_corpus(recipe.data)
    recipe = replace(recipe, data=corpus.data)
    resolved = {**recipe.to_dict(), "fingerprint": corpus.fingerprint, "sizes": corpus.sizes}
    if (weights := model_fingerprint(recipe.model)) is not None:
        resolved["model_fingerprint"] = weights
    args = arguments(recipe, output, progress)
    if folder_state(output, recipe, resolved) == "finished":  # every rank checks
        return Run.read(output)
    with _locked(output, args):
        state = folder_state(output, recipe, resolved)  # another process may have finished meanwhile
        if state == "finished":
            return Run.read(output)
        if state == "interrupted" and not resume:
            raise ValueError(f"{output} holds an interrupted run; continue it with --resume, or remove it")
        return _train(recipe, output, resolved, args, corpus, resume, progress)


class _RecipeFile(TrainerCallback):  # type: ignore[misc]
    """A callback that writes the recipe when training begins. Before, a checkpoint may refuse a changed recipe."""

    def __init__(self, path: Path, resolved: dict[str, Any]) -> None:
        self.path, self.resolved = path, resolved

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Write the file."""
        write_atomically(self.path, valid_json(self.resolved, indent=1))


def _train(
    recipe: Recipe,
    output: Path,
    resolved: dict[str, Any],
    args: TrainingArguments,
    corpus: Corpus,
    resume: bool,
    progress: bool,
) -> Run:
    trainer = assemble(recipe, corpus, args)
    live = LiveTable()
    if progress and args.disable_tqdm:
        trainer.add_callback(ProgressLines())
    elif progress:
        trainer.remove_callback(MixtureProgress)
        trainer.add_callback(live)
    checkpoint = None
    if resume and any(output.glob("checkpoint-*")):
        try:
            checkpoint, _ = complete_checkpoint(output)
        except ValueError as error:
            warnings.warn(f"training starts from the beginning: {error}", stacklevel=2)
            if args.should_save:
                discard_incomplete(output)
    trainer.accelerator.wait_for_everyone()
    resumed_at = int(checkpoint.rpartition("-")[2]) if checkpoint else None
    metrics = MetricsFile(output / METRICS)
    if args.should_save:
        trainer.add_callback(_RecipeFile(output / RECIPE, resolved))
        trainer.add_callback(metrics)
        # Events after the checkpoint come from the interrupted process and will be written again.
        events = SummaryWriter(str(output / "tensorboard"), purge_step=(resumed_at or 0) + 1)
        trainer.add_callback(TensorBoardCallback(events))

    try:
        trainer.train(resume_from_checkpoint=checkpoint)
        trainer.save_model(str(output / "model"))
        final = _final_losses(trainer)
    except FloatingPointError as error:
        raise FloatingPointError(f"{error}; in a recipe: training.allow_non_finite=true") from error
    finally:
        live.close()
    if args.should_save:
        save_tokenizer(corpus, recipe.model, output / "model")
    tokens = trainer.sums.tokens()
    translations = _translations(trainer, corpus, recipe)
    if args.should_save:
        scores = score(translations)
        evaluated = corpus.validation(1)
        if translations:
            lines = (json.dumps(asdict(translation), ensure_ascii=False) for translation in translations)
            write_atomically(output / TRANSLATIONS, "".join(f"{line}\n" for line in lines))
        exposure = trainer.sampler.exposure(args.max_steps)
        summary = {
            "steps": args.max_steps,
            "resumed_at": resumed_at,
            "seconds": round(metrics.seconds, 3),
            "parameters": sum(p.numel() for p in trainer.model.parameters()),
            "eval_loss": final["eval_loss"],
            "domains": {
                domain: {
                    "size": size,
                    "draws": int(draws),
                    "tokens": tokens[domain],
                    "epochs": float(epochs),
                    **({"loss": final[f"eval_loss/{domain}"]} if domain in evaluated else {}),
                    **scores.get(domain, {}),
                }
                for (domain, size), draws, epochs in zip(
                    corpus.sizes.items(), exposure.draws, exposure.epochs, strict=True
                )
            },
        }
        if (learned := recipe.mixture.learned(trainer.schedule)) is not None:
            summary["learned"] = learned
        write_atomically(output / SUMMARY, valid_json(summary, indent=1))
    trainer.accelerator.wait_for_everyone()
    return Run.read(output)


@contextmanager
def _locked(output: Path, args: TrainingArguments) -> Iterator[None]:
    """Hold the lock of a run's folder in the first process; if it is taken, raise in every rank."""
    fault: Exception | None = None
    with ExitStack() as stack:
        if args.process_index == 0:
            try:
                stack.enter_context(lock_run(output))
            except (OSError, ValueError) as error:
                fault = error
        faults = gather_object([None if fault is None else str(fault)])
        if fault is not None:
            raise fault
        if faults[0] is not None:
            raise ValueError(faults[0])
        yield


def _translations(trainer: RecipeTrainer, corpus: Corpus, recipe: Recipe) -> list[Translation]:
    """Translate the pairs that the recipe asks for, each language on one rank, and return all on every rank."""
    if recipe.decoding is None:
        return []
    args = trainer.args
    mine = trainer.domains[args.process_index :: args.world_size]
    assert corpus.tokenizer is not None  # an encoder-decoder always has packed pairs
    pairs = corpus.validation(recipe.decoding.samples, mine)
    model = trainer.accelerator.unwrap_model(trainer.model)
    found: list[Translation] = gather_object(translate(model, pairs, corpus.tokenizer, corpus.length, recipe.decoding))
    return found


def _final_losses(trainer: RecipeTrainer) -> dict[str, float]:
    """Return the losses of the last evaluation if it was at the last step, or else of a new evaluation."""
    logged = [entry for entry in trainer.state.log_history if "eval_loss" in entry]
    if logged and logged[-1]["step"] == trainer.state.global_step:
        if len(trainer.domains) <= LOGGED_DOMAINS:
            last: dict[str, float] = logged[-1]
            return last
        if (losses := trainer.domain_values.get("eval_loss")) is not None:  # with many domains, the log has only some
            return dict(logged[-1]) | {
                f"eval_loss/{d}": x for d, x in zip(trainer.domains, losses.tolist(), strict=True)
            }
    return trainer.evaluate()
