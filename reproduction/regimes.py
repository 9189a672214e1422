"""Trainings of the systems in the regimes of `reproduction.rules`, kept in files, and their results as tidy CSV."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from pycooldown import DomainBatchSampler
from pycooldown.processes import run_all
from reproduction import kept
from reproduction.rules import BATCH_SIZE, MAP_SYSTEMS, SCALARIZATION_5, Regime, Trainings, unimax_cap
from reproduction.texts import Sizes, choose_texts
from reproduction.translation import Setting, TrainedSystem, TrainingJob, identity_digest, systems, train_system

RESULTS = Path(__file__).with_name("results") / "regimes"
_COLUMNS = ("skew", "passes", "steps", "system", "seed", "domain", "size", "epochs", "step", "loss", "cpu", "identity")


class Place(NamedTuple):
    """One training of a regime."""

    regime: Regime
    seed: int
    system: str


class ResultRow(NamedTuple):
    """A training with the hash of everything that it depends on."""

    place: Place
    training: TrainedSystem
    identity: str


def setting_of(regime: Regime) -> Setting:
    """Return the common settings of a regime's trainings; the paper's and those for speed have more evaluations."""
    often = regime.is_paper or SCALARIZATION_5 in regime.systems
    return Setting(steps=regime.steps, batch_size=BATCH_SIZE, evaluations=12 if often else 6)


def job_of(data: Path, place: Place) -> TrainingJob:
    """Return a training of a regime, from packed data with German and Romanian."""
    regime, seed, system = place
    texts = choose_texts(data, regime.sizes, seed)
    return TrainingJob(texts, system, seed, setting_of(regime), unimax_cap(regime))


def check_regime(regime: Regime) -> None:
    """Raise ValueError if a system would draw more samples of a language into each batch than the regime has of it."""
    build = systems(regime.steps, regime.batch_size, unimax_cap(regime))
    for system in regime.systems:
        schedule = build[system](regime.sizes)
        try:
            DomainBatchSampler(schedule, batch_size=regime.batch_size, seed=0, num_steps=regime.steps)
        except ValueError as error:
            raise ValueError(
                f"{regime.name}, {regime.steps} steps: {system} cannot be trained there ({error}); expected fewer "
                "passes, or more steps"
            ) from error


def train_regimes(
    data: Path,
    folder: Path,
    regimes: Sequence[Regime],
    *,
    seeds: Sequence[int],
    workers: int = 1,
    results: Path | None = None,
    job: Callable[[Path, Place], TrainingJob] = job_of,
    progress: Callable[[Place, TrainedSystem], None] | None = None,
) -> None:
    """Train the systems that ``folder`` does not have yet, regime by regime and seed by seed.

    Args:
        data: Packed data with German and Romanian.
        folder: Folder for trainings; an interrupted call is continued.
        regimes: The regimes, in order.
        seeds: Seeds of each system.
        workers: Processes that train in parallel.
        results: Folder for a CSV of each regime, rewritten after each training.
        job: Makes the training of a place in ``data``.
        progress: Called with each training, new or kept.

    Raises:
        ValueError: If the data have too few pairs for a regime, or a regime too few for a batch; the latter before
            anything is trained.
    """
    for regime in regimes:
        check_regime(regime)
    places = [place for regime in regimes for place in _places(regime, seeds)]
    rows: dict[Regime, list[ResultRow]] = {regime: [] for regime in regimes}
    for number, (training, identity) in run_all(partial(_train, data, folder, job), places, workers=workers):
        regime = places[number].regime
        rows[regime].append(ResultRow(places[number], training, identity))
        if progress:
            progress(places[number], training)
        if results is not None:
            write_results(rows[regime], results / f"{regime.skew}-{regime.passes}.csv")


def _places(regime: Regime, seeds: Sequence[int]) -> list[Place]:
    """Return the trainings of a regime in their order: the systems of the map seed by seed, then the others."""
    first = [system for system in regime.systems if system in MAP_SYSTEMS]
    later = [system for system in regime.systems if system not in MAP_SYSTEMS]
    return [Place(regime, seed, system) for trained in (first, later) for seed in seeds for system in trained]


def _train(
    data: Path, folder: Path, make: Callable[[Path, Place], TrainingJob], place: Place
) -> tuple[TrainedSystem, str]:
    job = make(data, place)
    return train_system(job, folder / f"{place.regime.skew}-{place.regime.passes}"), identity_digest(job.identity)


def write_results(rows: Iterable[ResultRow], path: Path) -> None:
    """Write a row for each evaluation of each domain in each training."""
    lines = [",".join(_COLUMNS)]
    for (regime, seed, system), training, identity in sorted(rows, key=lambda row: (row.place.seed, row.place.system)):
        for domain, size in regime.sizes.items():
            fixed = (regime.skew, regime.passes, regime.steps, system, seed, domain, size)
            epochs = f"{training.epochs[domain]:.5g}"
            for step, loss in zip(training.steps, training.losses[domain], strict=True):
                values = (*fixed, epochs, step, f"{loss:.5f}", f"{training.cpu_seconds:g}", identity)
                lines.append(",".join(map(str, values)))
    kept.write_text(path, "\n".join(lines) + "\n")


def read_results(path: Path) -> tuple[Regime, Trainings]:
    """Read the trainings of a regime.

    Raises:
        ValueError: If systems of one seed have different settings, because a row was added by hand.
    """
    first, _, trainings = read_trainings(path)
    return Regime(int(first["skew"]), int(first["passes"]), int(first["steps"]), tuple(trainings)), trainings


def read_trainings(path: Path) -> tuple[Mapping[str, str], Sizes, Trainings]:
    """Read a file of `write_results`: the first row, the sizes and the trainings by system and seed.

    Raises:
        ValueError: If systems of one seed have different settings, because a row was added by hand.
    """
    with open(path, encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    sizes = {row["domain"]: int(row["size"]) for row in rows}
    if len({(row["skew"], row["passes"], row["steps"], row["domain"], row["size"]) for row in rows}) != len(sizes):
        raise ValueError(f"{path} has rows of several regimes; expected one skew, number of passes and steps")
    found: dict[str, dict[int, TrainedSystem]] = {}
    for row in rows:
        seed = int(row["seed"])
        training = found.setdefault(row["system"], {}).setdefault(
            seed, TrainedSystem(row["system"], seed, [], {}, {}, float(row["cpu"]))
        )
        training.losses.setdefault(row["domain"], []).append(float(row["loss"]))
        training.epochs[row["domain"]] = float(row["epochs"])
        if int(row["step"]) not in training.steps:
            training.steps.append(int(row["step"]))
    return rows[0], sizes, {system: [by_seed[seed] for seed in sorted(by_seed)] for system, by_seed in found.items()}


def read_all(folder: Path = RESULTS) -> Mapping[Regime, Trainings]:
    """Read all regimes of a folder, by skew and passes."""
    found = dict(map(read_results, folder.glob("*.csv")))
    return dict(sorted(found.items(), key=lambda item: (item[0].skew, item[0].passes)))
