"""Short trainings of a small Transformer on real translations, many of them: systems x seeds, kept in files.

They are trained by `pycooldown.huggingface.MixtureTrainer`, as a user's model is: the loss of a batch is the weighted
mean over the tokens of its translations, and a validation loss is the mean over the tokens of a language's pairs.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import gettempdir

import torch
from transformers import PrinterCallback, TrainingArguments

from pycooldown import Mixture, schedules
from pycooldown.huggingface import MixtureTrainer
from pycooldown.sampling import AllocationName
from pycooldown.schedules import Schedule
from reproduction import kept
from reproduction.model import Decoder, DecoderConfig, Pair, collate
from reproduction.texts import HIGH, Sizes, Texts


@dataclass(frozen=True)
class Setting:
    """What all trainings of a comparison share.

    Attributes:
        steps: Optimizer steps.
        batch_size: Samples in a batch.
        width: Width of the model.
        layers: Layers of the model.
        learning_rate: Highest learning rate; it falls with the root of the steps after the warm-up.
        warmup: Steps in which the learning rate rises.
        evaluations: Number of evaluations, evenly spread, the last one at the end.
    """

    steps: int = 400
    batch_size: int = 32
    width: int = 64
    layers: int = 2
    learning_rate: float = 3e-3
    warmup: int = 40
    evaluations: int = 8

    def __post_init__(self) -> None:
        if self.steps % self.evaluations:
            raise ValueError(f"evaluations = {self.evaluations}; expected a divisor of steps = {self.steps}")


def systems(steps: int, batch_size: int, max_epochs: float = 10) -> dict[str, Callable[[Sizes], Schedule]]:
    """Return the systems of the papers' tables, by name.

    Args:
        steps: Steps of a training; schedules with a switch have it at half of them.
        batch_size: Samples in a batch.
        max_epochs: UniMax's cap.
    """
    half = steps // 2

    def temperature(tau: float) -> Callable[[Sizes], Schedule]:
        return lambda sizes: schedules.constant(Mixture.temperature_sampling(sizes, tau))

    def scalarization(tau: float) -> Callable[[Sizes], Schedule]:
        return lambda sizes: schedules.constant(Mixture.scalarization(sizes, tau))

    return {
        "temperature 1": temperature(1),
        "temperature 5": temperature(5),
        "temperature 100": temperature(100),
        "scalarization 5": scalarization(5),
        "scalarization 100": scalarization(100),
        "cooldown": lambda sizes: schedules.cooldown(sizes, tau=5, final_tau=1, switch_step=half),
        "increase": lambda sizes: schedules.cooldown(sizes, tau=1, final_tau=5, switch_step=half),
        "linear": lambda sizes: schedules.anneal(sizes, tau=5, final_tau=1, num_steps=steps),
        "unimax": lambda sizes: schedules.unimax(sizes, budget=steps * batch_size, max_epochs=max_epochs),
        "order matters": lambda sizes: schedules.order_matters(sizes, high_resource=[HIGH], switch_step=half, tau=5),
    }


@dataclass(frozen=True)
class TrainedSystem:
    """The outcome of one training.

    Attributes:
        system: Name of the system.
        seed: Seed of initialization and data order.
        steps: Steps after which validation losses were taken, the last one at the end.
        losses: Validation loss of each domain at these steps, in nats a token.
        epochs: Passes through each domain at the end.
    """

    system: str
    seed: int
    steps: list[int]
    losses: dict[str, list[float]]
    epochs: dict[str, float]

    def final(self, domain: str) -> float:
        """Return the last validation loss of a domain."""
        return self.losses[domain][-1]


def initial_model(texts: Texts, setting: Setting, seed: int) -> Decoder:
    """Return a model at its initialization."""
    torch.manual_seed(seed)
    return Decoder(DecoderConfig(texts.vocabulary_size, setting.width, setting.layers))


def build_trainer(
    texts: Texts, schedule: Schedule, seed: int, setting: Setting, allocation: AllocationName = "multinomial"
) -> MixtureTrainer:
    """Return the package's trainer for one training."""
    args = TrainingArguments(
        output_dir=gettempdir(),  # nothing is saved there
        max_steps=setting.steps,
        per_device_train_batch_size=setting.batch_size,
        per_device_eval_batch_size=100,
        learning_rate=setting.learning_rate,
        lr_scheduler_type="inverse_sqrt",
        warmup_steps=setting.warmup,
        adam_beta1=0.9,
        adam_beta2=0.98,
        weight_decay=0.0,
        max_grad_norm=1.0,
        seed=seed,
        eval_strategy="steps",
        eval_steps=setting.steps // setting.evaluations,
        logging_strategy="no",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
    )
    trainer = MixtureTrainer(
        initial_model(texts, setting, seed),
        args,
        schedule=schedule,
        allocation=allocation,
        train_dataset=texts.train,
        eval_dataset={domain: _by_length(pairs) for domain, pairs in texts.validation.items()},
        data_collator=collate,
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def _by_length(samples: list[Pair]) -> list[Pair]:
    """Put samples of like length into one batch, so that there is little padding."""
    return sorted(samples, key=lambda sample: len(sample[0]))


def train_system(
    texts: Texts,
    system: str,
    seed: int,
    folder: Path,
    setting: Setting,
    *,
    allocation: AllocationName = "multinomial",
    max_epochs: float = 10,
    keep_weights: bool = False,
) -> TrainedSystem:
    """Train one system, unless ``folder`` has its training.

    Args:
        texts: Training and validation samples.
        system: One of `systems`.
        seed: Seed of initialization and data order.
        folder: Folder that trainings are kept in.
        setting: What the trainings of a comparison share.
        allocation: How slots of a batch are allocated to domains; see `pycooldown.DomainBatchSampler`.
        max_epochs: UniMax's cap.
        keep_weights: Whether to keep the weights for `trained_model`.

    Raises:
        ValueError: If ``folder`` has a training of this name that depends on other data or another setting.
    """
    path = folder / f"{system.replace(' ', '-')}-{allocation}-{seed}.json"
    schedule = systems(setting.steps, setting.batch_size, max_epochs)[system](texts.sizes)
    identity = {
        "system": system,
        "seed": seed,
        "setting": asdict(setting),
        "schedule": schedule.describe(),
        "sizes": texts.sizes,
        "allocation": allocation,
        "data": texts.fingerprint,
    }
    weights = path.with_suffix(".model")
    found = kept.read(path, identity)
    if found is not None and (weights.exists() or not keep_weights):
        return TrainedSystem(**found)
    trainer = build_trainer(texts, schedule, seed, setting, allocation)
    trainer.train()
    evaluations = [entry for entry in trainer.state.log_history if "eval_loss" in entry]
    exposure = trainer.sampler.exposure(setting.steps)
    training = TrainedSystem(
        system,
        seed,
        [entry["step"] for entry in evaluations],
        {domain: [entry[f"eval_loss/{domain}"] for entry in evaluations] for domain in texts.sizes},
        dict(zip(exposure.domains, exposure.epochs.tolist(), strict=True)),
    )
    if keep_weights:
        trainer.model.save_pretrained(weights)
    kept.write(path, identity, asdict(training))
    return training


def trained_model(system: str, seed: int, folder: Path) -> Decoder:
    """Return the model whose weights `train_system` kept."""
    model: Decoder = Decoder.from_pretrained(folder / f"{system.replace(' ', '-')}-multinomial-{seed}.model")
    return model


def kept_trainings(folder: Path, system: str) -> list[TrainedSystem]:
    """Return the trainings of a system, with multinomial batches, that a folder has."""
    paths = sorted(folder.glob(f"{system.replace(' ', '-')}-multinomial-*.json"))
    return [TrainedSystem(**json.loads(path.read_text(encoding="utf-8"))["outcome"]) for path in paths]
