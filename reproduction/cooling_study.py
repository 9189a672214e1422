"""When does cooling help? Trainings over the epochs of the rarest domain and the skew of the sizes, on real text.

English to German and Chinese (frequent) and Romanian (rare), all cut so that Romanian is passed through a chosen number
of times under temperature sampling with tau = 5. The rule that judges the outcome is in `reproduction.cooling`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from pycooldown import temperature
from pycooldown.data.manifest import load_manifest
from pycooldown.processes import run_all
from pycooldown.sampling import AllocationName
from reproduction.cooling import STATIC, Evidence, Regime
from reproduction.model import Pair
from reproduction.texts import VALIDATION, Texts, read_samples, spread
from reproduction.translation import Setting, TrainedSystem, train_system

FREQUENT, RARE = ("de", "zh-Hans"), "ro"
BATCH_SIZE, MAX_LENGTH = 32, 32
# Skew of the sizes, epochs of the rare language at tau = 5, and steps. No language of the demo corpus has more than
# 14,000 pairs, so 5 epochs at a skew of 200 would be too short a run. More epochs need fewer pairs or longer runs; half
# of this is done by either, and all domains are larger than their share of a batch.
SETTINGS = ((25, 5, 288), (25, 20, 288), (25, 75, 420), (25, 300, 600), (200, 20, 288), (200, 75, 420), (200, 250, 600))
SYSTEMS: dict[str, tuple[str, AllocationName]] = {
    "temperature 1": ("temperature 1", "multinomial"),
    STATIC: ("temperature 5", "multinomial"),
    "temperature 5, systematic": ("temperature 5", "systematic"),
    "temperature 100": ("temperature 100", "multinomial"),
    "cooldown": ("cooldown", "multinomial"),
    "linear": ("linear", "multinomial"),
    "increase": ("increase", "multinomial"),
    "unimax": ("unimax", "multinomial"),
}


@dataclass(frozen=True)
class CoolingJob:
    """One training of the study."""

    data: Path
    folder: Path
    skew: int
    epochs: int
    steps: int
    system: str
    seed: int


def study_cooling(
    data: Path,
    folder: Path,
    *,
    settings: Sequence[tuple[int, int, int]] = SETTINGS,
    seeds: int = 4,
    workers: int = 1,
    train: Callable[[CoolingJob], TrainedSystem] | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> Evidence:
    """Train what ``folder`` does not have yet, seed by seed, and gather the losses.

    Args:
        data: Packed data with German, Chinese and Romanian.
        folder: Folder that trainings are kept in; a study that was interrupted goes on.
        settings: Skew, epochs of the rare language at tau = 5, and steps, of each regime.
        seeds: Number of seeds of data selection, initialization and order, shared by all systems; at least 2.
        workers: Processes that train at a time, with one thread each.
        train: What runs a job; by default `run_job`.
        progress: Called after each training with "training", how many are done and how many there are.

    Raises:
        ValueError: If ``seeds`` is too small or the data lack a language.
    """
    if seeds < 2:
        raise ValueError(f"seeds = {seeds}; expected at least 2, for differences to have a spread")
    seeded = [(seed, setting) for seed in range(seeds) for setting in settings]
    jobs = [CoolingJob(data, folder, *setting, system, seed) for seed, setting in seeded for system in SYSTEMS]
    runs: dict[CoolingJob, TrainedSystem] = {}
    for number, training in run_all(train or run_job, jobs, workers=workers):
        runs[jobs[number]] = training
        if progress:
            progress("training", len(runs), len(jobs))
    regimes = []
    for setting in settings:
        by_system = {
            system: [runs[CoolingJob(data, folder, *setting, system, seed)] for seed in range(seeds)]
            for system in SYSTEMS
        }
        sizes = regime_sizes(*setting)
        losses = {system: [{d: r.final(d) for d in sizes} for r in rs] for system, rs in by_system.items()}
        epochs = {s: {d: float(np.mean([r.epochs[d] for r in rs])) for d in sizes} for s, rs in by_system.items()}
        regimes.append(Regime(sizes, setting[-1], losses, epochs))
    return Evidence(regimes)


def regime_sizes(skew: int, epochs: int, steps: int) -> dict[str, int]:
    """Return the training pairs of each language, for ``epochs`` of the rare one at tau = 5."""
    rare = round(temperature([skew, skew, 1], 5)[-1] * steps * BATCH_SIZE / epochs)
    return {**dict.fromkeys(FREQUENT, skew * rare), RARE: rare}


def run_job(job: CoolingJob) -> TrainedSystem:
    """Run one training, or read it if the folder has it."""
    sizes = regime_sizes(job.skew, job.epochs, job.steps)
    setting = Setting(steps=job.steps, batch_size=BATCH_SIZE, evaluations=2)
    system, allocation = SYSTEMS[job.system]
    return train_system(
        select(job.data, sizes, job.seed),
        system,
        job.seed,
        job.folder / f"skew-{job.skew}-epochs-{job.epochs}",
        setting,
        allocation=allocation,
        max_epochs=unimax_cap(sizes, setting.steps * BATCH_SIZE),
    )


def unimax_cap(sizes: Mapping[str, int], draws: int) -> float:
    """Return UniMax's cap: 10 passes, unless all the data must be passed through more often than that."""
    return max(10, 2 * draws / sum(sizes.values()))


def select(data: Path, sizes: dict[str, int], seed: int) -> Texts:
    """Choose training pairs at random by ``seed``; the validation pairs are the same for all seeds.

    Raises:
        ValueError: If the data have fewer pairs.
    """
    rng = np.random.default_rng(seed)
    train_samples: list[Pair] = []
    for domain, size in sizes.items():
        samples = _read(data, domain, "train")
        if len(samples) < size:
            raise ValueError(f"{data} has {len(samples)} pairs of {domain!r}; the study needs {size}")
        train_samples += [samples[i] for i in rng.permutation(len(samples))[:size]]
    validation = {d: spread(_read(data, d, "validation"), VALIDATION) for d in sizes}
    return Texts(train_samples, sizes, validation, load_manifest(data).tokenizer.vocabulary_size)


@cache
def _read(data: Path, domain: str, split: str) -> list[Pair]:
    return read_samples(data, domain, split, MAX_LENGTH)
