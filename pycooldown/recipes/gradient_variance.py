"""Gradient variance at the weights of a finished run, measured and predicted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import TypeAdapter
from transformers import PreTrainedModel

from pycooldown import plots
from pycooldown.gradients import theory
from pycooldown.gradients.variance import DomainMoments, MixtureVariance, domain_moments, measure
from pycooldown.huggingface.batches import Collator, Samples
from pycooldown.mixture import Mixture
from pycooldown.recipes.corpus import open_corpus
from pycooldown.recipes.history import Run
from pycooldown.recipes.models import load_model
from pycooldown.recipes.schema import Data


@dataclass(frozen=True)
class RunGradients:
    """The model and the data of a run, for measuring its gradients.

    Attributes:
        model: The model with the run's final weights, without dropout.
        dataset: The training samples, domain after domain.
        sizes: Training samples of each domain.
        batch_size: Sequences of a step.
        collate: Makes the model's inputs from samples.
        label_smoothing: Label smoothing of the training loss.
    """

    model: PreTrainedModel
    dataset: Samples
    sizes: Mapping[str, int]
    batch_size: int
    collate: Collator
    label_smoothing: float

    @classmethod
    def load(cls, folder: str | Path) -> RunGradients:
        """Read a run written by `train`.

        Raises:
            ValueError: If there is no finished run, or its data have changed.
        """
        run = Run.read(folder)
        data = TypeAdapter(Data).validate_python(run.recipe["data"])
        corpus = open_corpus(data)
        if corpus.fingerprint != run.recipe["fingerprint"]:
            raise ValueError(f"{data.path} holds other data than {folder} was trained on; restore the data of that run")
        model, size = load_model(run.path).eval(), run.recipe["training"]["batch_size"]
        return cls(
            model,
            corpus.train(),
            run.sizes,
            size if isinstance(size, int) else size[-1][1],
            corpus.collator(translates=model.config.is_encoder_decoder),
            run.recipe["training"]["label_smoothing"],
        )

    def losses(self, model: Any, samples: list[Any]) -> torch.Tensor:
        """Return the mean loss over the tokens of each sample, (N,)."""
        inputs = self.collate(samples)
        labels = inputs.pop("labels")
        logits = model(**inputs).logits
        if "decoder_input_ids" not in inputs:  # a language model, whose labels are its inputs
            logits, labels = logits[:, :-1], labels[:, 1:]
        losses = F.cross_entropy(logits.transpose(1, 2), labels, reduction="none", label_smoothing=self.label_smoothing)
        return losses.sum(1) / (labels >= 0).sum(1).clamp(min=1)


def measure_run(
    folder: str | Path,
    taus: Sequence[float],
    *,
    num_batches: int = 32,
    num_groups: int = 32,
    projection: int | None = 4096,
    seed: int = 0,
) -> tuple[DomainMoments, list[MixtureVariance]]:
    """Measure gradients at a run's final weights, on its data and with its batch size.

    Each tau is measured for temperature sampling (multinomial and systematic allocation), scalarization, and
    variance-aware sampling, whose q is `theory.optimal_sampling` of the measured moments. The loss of a sample is the
    mean over its tokens.

    Args:
        folder: A run written by `train`.
        taus: Temperatures.
        num_batches: Batches for each mixture and allocation.
        num_groups: Groups of 8 samples, for the moments of each domain.
        projection: See `pycooldown.gradients.variance.domain_moments`.
        seed: Seed of the samples.

    Raises:
        ValueError: If there is no finished run, or its data have changed.
    """
    run = RunGradients.load(folder)
    given = run.model, run.losses, run.dataset
    options: dict[str, Any] = {"projection": projection, "seed": seed}
    moments = domain_moments(*given, Mixture.proportional(run.sizes), num_groups=num_groups, **options)
    sampling = {f"temperature {tau:g}": Mixture.temperature_sampling(run.sizes, tau) for tau in taus}
    others = {}
    for tau in taus:
        target = Mixture.temperature_sampling(run.sizes, tau)
        best = theory.optimal_sampling(target.target, moments.second_moments)
        others[f"scalarization {tau:g}"] = Mixture.scalarization(run.sizes, tau)
        others[f"variance-aware {tau:g}"] = Mixture(target.domains, target.sizes, target.target, best)
    options |= {"batch_size": run.batch_size, "num_batches": num_batches, "moments": moments}
    results = measure(*given, sampling, allocations=("multinomial", "systematic"), **options)
    return moments, results + measure(*given, others, **options)


def save_figures(results: Sequence[MixtureVariance], folder: str | Path) -> list[Path]:
    """Write figures of the inflation F by tau and of the measured gradient norms (Li et al., 2025, figures 2 and 3)."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    first = results[0].mixture
    sizes = dict(zip(first.domains, first.sizes.tolist(), strict=True))
    taus = np.geomspace(1, 100, 60)
    inflation = [theory.variance_inflation(Mixture.scalarization(sizes, tau)) for tau in taus]
    figures = {
        "variance_inflation.png": plots.inflation({"this corpus": plots.Curve(taus, np.array(inflation))}),
        "gradient_norms.png": plots.gradient_norms({f"{r.name}\n{r.allocation}": r.norms for r in results}),
    }
    for name, figure in figures.items():
        figure.savefig(folder / name)
    return [folder / name for name in figures]
