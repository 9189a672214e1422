"""Many short trainings of a small Transformer on real translations, systems x seeds, kept in files.

`pycooldown.huggingface.MixtureTrainer` trains them, as a user's model: the loss of a batch is the weighted mean over
the tokens of its translations, and a validation loss is the mean over the tokens of a language's pairs.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from tempfile import gettempdir
from typing import Any, NamedTuple

import torch
from transformers import PrinterCallback, TrainingArguments

from pycooldown import Mixture, schedules
from pycooldown.huggingface import MixtureTrainer
from pycooldown.huggingface.callbacks import ResetAtStep
from pycooldown.sampling import AllocationName
from pycooldown.schedules import Schedule
from reproduction import kept
from reproduction.model import Decoder, DecoderConfig, Pair, collate
from reproduction.texts import FREQUENT, Sizes, Texts

ORDER_MATTERS = "order matters"


@dataclass(frozen=True)
class Setting:
    """The common settings of a comparison's trainings.

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


def systems(steps: int, batch_size: int, max_epochs: float) -> dict[str, Callable[[Sizes], Schedule]]:
    """Return the systems of the papers' tables, and "averaged": the passes of Cooldown without its order, by name.

    Args:
        steps: Steps of a training; schedules with a switch have it at half of them.
        batch_size: Samples in a batch.
        max_epochs: UniMax's cap.
    """
    half = steps // 2
    unimax = partial(schedules.unimax, budget=steps * batch_size, max_epochs=max_epochs)

    def temperature(tau: float) -> Callable[[Sizes], Schedule]:
        return lambda sizes: schedules.constant(Mixture.temperature_sampling(sizes, tau))

    def scalarization(tau: float) -> Callable[[Sizes], Schedule]:
        return lambda sizes: schedules.constant(Mixture.scalarization(sizes, tau))

    def averaged(sizes: Sizes) -> Schedule:
        proportional = Mixture.proportional(sizes)
        warm = half / steps * Mixture.temperature_sampling(sizes, 5).sampling
        return schedules.constant(proportional.reweighted(warm + (1 - half / steps) * proportional.sampling))

    return {
        "temperature 1": temperature(1),
        "temperature 5": temperature(5),
        "temperature 100": temperature(100),
        "scalarization 5": scalarization(5),
        "scalarization 100": scalarization(100),
        "cooldown": lambda sizes: schedules.cooldown(sizes, tau=5, final_tau=1, switch_step=half),
        "increase": lambda sizes: schedules.cooldown(sizes, tau=1, final_tau=5, switch_step=half),
        "linear": lambda sizes: schedules.anneal(sizes, tau=5, final_tau=1, num_steps=steps),
        "exponential": lambda sizes: schedules.anneal(sizes, tau=5, final_tau=1, num_steps=steps, shape="exponential"),
        "averaged": averaged,
        "unimax": unimax,
        "unimax front-loaded": partial(unimax, mode="frontload", num_steps=steps),
        ORDER_MATTERS: lambda sizes: schedules.order_matters(sizes, high_resource=[FREQUENT], switch_step=half, tau=5),
    }


def restart(system: str, steps: int) -> ResetAtStep | None:
    """Return the callback that restarts optimizer and learning rate at the switch, for the system that does so."""
    return ResetAtStep(steps // 2, optimizer=True, learning_rate=True) if system == ORDER_MATTERS else None


@dataclass(frozen=True)
class TrainedSystem:
    """The outcome of one training.

    Attributes:
        system: Name of the system.
        seed: Seed of initialization and data order.
        steps: Steps after which validation losses were taken, the last one at the end.
        losses: Validation loss of each domain at these steps, in nats a token.
        epochs: Passes through each domain at the end.
        cpu_seconds: CPU time of the training, including its evaluations.
    """

    system: str
    seed: int
    steps: list[int]
    losses: dict[str, list[float]]
    epochs: dict[str, float]
    cpu_seconds: float = 0.0

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
    """Put samples of similar length into one batch, to reduce padding."""
    return sorted(samples, key=lambda sample: len(sample[0]))


class TrainingJob(NamedTuple):
    """Everything that a training depends on.

    Attributes:
        texts: Training and validation samples.
        system: One of `systems`.
        seed: Seed of initialization and data order.
        setting: The common settings of the comparison.
        max_epochs: UniMax's cap.
        allocation: How slots of a batch are allocated to domains; see `pycooldown.DomainBatchSampler`.
    """

    texts: Texts
    system: str
    seed: int
    setting: Setting
    max_epochs: float = 10
    allocation: AllocationName = "multinomial"

    @property
    def schedule(self) -> Schedule:
        """The system's mixtures by step."""
        return systems(self.setting.steps, self.setting.batch_size, self.max_epochs)[self.system](self.texts.sizes)

    @property
    def identity(self) -> dict[str, Any]:
        """Everything that distinguishes this training from all others."""
        return {
            "system": self.system,
            "seed": self.seed,
            "setting": asdict(self.setting),
            "schedule": self.schedule.describe(),
            "restart": restart(self.system, self.setting.steps) is not None,
            "sizes": self.texts.sizes,
            "allocation": self.allocation,
            "data": self.texts.fingerprint,
        }

    def path(self, folder: Path) -> Path:
        """Return the file of the training; another identity has another file."""
        return folder / f"{self.system.replace(' ', '-')}-{self.seed}-{identity_digest(self.identity)}.json"


def identity_digest(identity: Mapping[str, Any]) -> str:
    """Return a hash of everything in an identity and of the code's revision."""
    return kept.digest([json.dumps({**identity, "revision": kept.REVISION}, sort_keys=True).encode()])


def train_system(job: TrainingJob, folder: Path, *, keep_weights: bool = False) -> TrainedSystem:
    """Train one system, unless ``folder`` has exactly this training.

    Args:
        job: The training.
        folder: Folder for trainings.
        keep_weights: Whether to keep the weights for `trained_model`.
    """
    path, identity = job.path(folder), job.identity
    weights = path.with_suffix(".model")
    found = kept.read(path, identity)
    if found is not None and (weights.exists() or not keep_weights):
        return TrainedSystem(**found)
    trainer = build_trainer(job.texts, job.schedule, job.seed, job.setting, job.allocation)
    if (callback := restart(job.system, job.setting.steps)) is not None:
        trainer.add_callback(callback)
    start = time.process_time()
    trainer.train()
    seconds = time.process_time() - start
    evaluations = [entry for entry in trainer.state.log_history if "eval_loss" in entry]
    exposure = trainer.sampler.exposure(job.setting.steps)
    training = TrainedSystem(
        job.system,
        job.seed,
        [entry["step"] for entry in evaluations],
        {domain: [entry[f"eval_loss/{domain}"] for entry in evaluations] for domain in job.texts.sizes},
        dict(zip(exposure.domains, exposure.epochs.tolist(), strict=True)),
        round(seconds, 2),
    )
    if keep_weights:
        trainer.model.save_pretrained(weights)
    kept.write(path, identity, asdict(training))
    return training


def trained_model(job: TrainingJob, folder: Path) -> Decoder:
    """Return the model whose weights `train_system` kept."""
    model: Decoder = Decoder.from_pretrained(job.path(folder).with_suffix(".model"))
    return model
