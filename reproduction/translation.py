"""Short trainings of a small Transformer on real translations, many of them: systems x seeds, kept in files.

English-{German, Romanian} from packed data: German as it is, Romanian cut to ``NUM_ROMANIAN`` pairs, as skewed as
English-Romanian is among the pairs of Li et al. (NAACL 2025). A decoder reads tag, English and translation; the loss
of a sample is the mean over the tokens of its translation, that of a batch the weighted mean over samples.
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from pycooldown import schedules
from pycooldown.data.manifest import load_manifest
from pycooldown.data.publish import write_atomically
from pycooldown.mixture import Mixture
from pycooldown.sampling.sampler import AllocationName, DomainBatchSampler
from pycooldown.schedules import Schedule

HIGH, LOW = "de", "ro"
NUM_ROMANIAN = 240
MAX_LENGTH = 48
VALIDATION = 300  # pairs of each language

Sample = tuple[npt.NDArray[np.int64], int]  # tokens, and how many of them come before the translation
Sizes = dict[str, int]


@dataclass(frozen=True)
class Setting:
    """What all runs of a comparison share."""

    steps: int = 400
    batch_size: int = 32
    width: int = 64
    layers: int = 2
    learning_rate: float = 3e-3
    warmup: int = 40
    evaluations: int = 8


def systems(steps: int, batch_size: int, max_epochs: float = 10) -> dict[str, Callable[[Sizes], Schedule]]:
    """The systems of the papers' tables, by name. The switch is at half of the steps, UniMax's cap ``max_epochs``."""
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
class Run:
    """One training.

    Attributes:
        system: its name.
        seed: of initialization and data order.
        steps: at which validation losses were taken, the last one at the end.
        losses: validation loss of each domain at these steps, nats per token averaged over samples.
        epochs: passes through each domain at the end.
    """

    system: str
    seed: int
    steps: list[int]
    losses: dict[str, list[float]]
    epochs: dict[str, float]

    def final(self, domain: str) -> float:
        """Its last validation loss."""
        return self.losses[domain][-1]


@dataclass(frozen=True)
class Texts:
    """Samples of the two domains, laid end to end, and validation samples."""

    train: list[Sample]
    sizes: Sizes
    validation: dict[str, list[Sample]]
    vocabulary_size: int


@cache
def read_texts(folder: Path) -> Texts:
    """Reads packed data that hold both languages, once in a process.

    Raises:
        ValueError: if they lack one.
    """
    high, low = (read_samples(folder, domain, "train") for domain in (HIGH, LOW))
    low = spread(low, NUM_ROMANIAN)
    validation = {d: spread(read_samples(folder, d, "validation"), VALIDATION) for d in (HIGH, LOW)}
    vocabulary_size = load_manifest(folder).tokenizer.vocabulary_size
    return Texts([*high, *low], {HIGH: len(high), LOW: len(low)}, validation, vocabulary_size)


def read_samples(folder: Path, domain: str, split: str, max_length: int = MAX_LENGTH) -> list[Sample]:
    """Samples of one language, cut to ``max_length`` tokens of which at most half are English.

    Raises:
        ValueError: if the packed data in ``folder`` do not have it.
    """
    manifest = load_manifest(folder)
    if domain not in manifest.domains:
        raise ValueError(f"{folder} has no {domain!r}; pack a corpus with that language")
    dataset = manifest.dataset(split, [domain])
    samples = []
    for packed in dataset.__getitems__(list(range(len(dataset)))):
        source, target = (
            np.load(io.BytesIO(packed[f"{side}.npy"]), allow_pickle=False).astype(np.int64) for side in ("src", "tgt")
        )
        source = source[: max_length // 2]
        # The target goes on without its start token, as the end token of the source is there.
        samples.append((np.concatenate([source, target[1:]])[:max_length], len(source)))
    return samples


def spread(samples: list[Sample], count: int) -> list[Sample]:
    """``count`` of them, evenly spread."""
    return [samples[i] for i in np.linspace(0, len(samples) - 1, min(count, len(samples))).astype(int)]


class Decoder(torch.nn.Module):
    """A decoder-only Transformer: layer norm first, learned positions, tied embeddings."""

    def __init__(self, vocabulary_size: int, width: int, layers: int, heads: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.tokens = torch.nn.Embedding(vocabulary_size, width)
        self.positions = torch.nn.Embedding(MAX_LENGTH, width)
        self.attention = torch.nn.ModuleList(
            torch.nn.Sequential(torch.nn.LayerNorm(width), torch.nn.Linear(width, 3 * width)) for _ in range(layers)
        )
        self.output = torch.nn.ModuleList(torch.nn.Linear(width, width) for _ in range(layers))
        self.feed_forward = torch.nn.ModuleList(
            torch.nn.Sequential(
                torch.nn.LayerNorm(width),
                torch.nn.Linear(width, 4 * width),
                torch.nn.GELU(),
                torch.nn.Linear(4 * width, width),
            )
            for _ in range(layers)
        )
        self.norm = torch.nn.LayerNorm(width)
        for embedding in (self.tokens, self.positions):
            torch.nn.init.normal_(embedding.weight, std=0.02)

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """(n, length) tokens to (n, length, width); `tokens.weight` turns these into logits."""
        x = self.tokens(rows) + self.positions.weight[: rows.shape[1]]
        for attention, output, feed_forward in zip(self.attention, self.output, self.feed_forward, strict=True):
            q, k, v = (t.unflatten(2, (self.heads, -1)).transpose(1, 2) for t in attention(x).chunk(3, dim=2))
            mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
            x = x + output(mixed.transpose(1, 2).flatten(2))
            x = x + feed_forward(x)
        return torch.as_tensor(self.norm(x))


def build_model(texts: Texts, setting: Setting, seed: int) -> Decoder:
    """A model at its initialization."""
    torch.manual_seed(seed)
    return Decoder(texts.vocabulary_size, setting.width, setting.layers)


def sample_losses(model: Decoder, samples: list[Sample]) -> torch.Tensor:
    """(n,) mean loss of each sample over its translation. Padding is on the right, where causal attention stays out."""
    length = max(len(tokens) for tokens, _ in samples)
    rows = torch.zeros(len(samples), length, dtype=torch.int64)
    labels = torch.full((len(samples), length), -100, dtype=torch.int64)
    for row, label, (tokens, prefix) in zip(rows, labels, samples, strict=True):
        row[: len(tokens)] = torch.from_numpy(tokens)
        label[prefix : len(tokens)] = row[prefix : len(tokens)]
    chosen = labels[:, 1:] >= 0
    logits = F.linear(model(rows[:, :-1])[chosen], model.tokens.weight)
    losses = F.cross_entropy(logits, labels[:, 1:][chosen], reduction="none")
    counts = chosen.sum(1)
    return torch.zeros(len(samples)).index_add(0, chosen.nonzero()[:, 0], losses) / counts


def train(
    texts: Texts,
    system: str,
    seed: int,
    folder: Path,
    setting: Setting,
    *,
    allocation: AllocationName = "multinomial",
    max_epochs: float = 10,
    keep_weights: bool = False,
) -> Run:
    """Trains one system, unless ``folder`` has its run; ``max_epochs`` is for UniMax, the weights for `load_model`."""
    path = folder / f"{system.replace(' ', '-')}-{allocation}-{seed}.json"
    identity = {"setting": asdict(setting), "sizes": texts.sizes}
    kept = path.with_suffix(".safetensors")
    if path.exists() and (kept.exists() or not keep_weights):
        stored = json.loads(path.read_text(encoding="utf-8"))
        if stored["identity"] != identity:
            raise ValueError(f"{path} is of another setting: {stored['identity']}; choose another folder")
        return Run(**stored["run"])
    schedule = systems(setting.steps, setting.batch_size, max_epochs)[system](texts.sizes)
    sampler = DomainBatchSampler(
        schedule, batch_size=setting.batch_size, seed=seed, num_steps=setting.steps, allocation=allocation
    )
    model = build_model(texts, setting, seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=setting.learning_rate, betas=(0.9, 0.98), weight_decay=0)
    # Inverse square root after a linear warm-up, as in the paper.
    rate = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda s: min((s + 1) / setting.warmup, math.sqrt(setting.warmup / (s + 1)))
    )
    steps: list[int] = []
    losses: dict[str, list[float]] = {domain: [] for domain in texts.sizes}
    for step in range(setting.steps):
        plan = sampler.plan(step)
        weights = torch.from_numpy(plan.mixture.loss_weights[plan.domain_ids]).float()
        optimizer.zero_grad()
        loss = (weights * sample_losses(model, [texts.train[i] for i in plan.indices])).mean()
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        rate.step()
        if (step + 1) * setting.evaluations // setting.steps > step * setting.evaluations // setting.steps:
            steps.append(step + 1)
            for domain, samples in texts.validation.items():
                losses[domain].append(_evaluate(model, samples))
    exposure = sampler.exposure(setting.steps)
    run = Run(system, seed, steps, losses, dict(zip(exposure.domains, exposure.epochs.tolist(), strict=True)))
    folder.mkdir(parents=True, exist_ok=True)
    if keep_weights:
        save_file(model.state_dict(), kept)
    write_json(path, {"identity": identity, "run": asdict(run)})
    return run


def load_model(texts: Texts, system: str, seed: int, folder: Path, setting: Setting) -> Decoder:
    """The weights that `train` kept."""
    model = build_model(texts, setting, seed)
    path = folder / f"{system.replace(' ', '-')}-multinomial-{seed}.safetensors"
    model.load_state_dict(load_file(path))
    return model


def _evaluate(model: Decoder, samples: list[Sample]) -> float:
    with torch.no_grad():
        ordered = sorted(samples, key=lambda s: len(s[0]))
        return float(
            torch.cat([sample_losses(model, ordered[i : i + 100]) for i in range(0, len(ordered), 100)]).mean()
        )


def write_json(path: Path, value: Any) -> None:
    """All or nothing, so that an interrupted run is not taken for a finished one."""
    write_atomically(path, json.dumps(value, indent=1))
