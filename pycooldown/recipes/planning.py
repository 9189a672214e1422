"""Compute what a recipe will do to each domain, before training."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice, pairwise
from typing import Any

import numpy as np

from pycooldown.gradients.theory import variance_inflation
from pycooldown.mixture import Mixture
from pycooldown.recipes.corpus import open_corpus
from pycooldown.recipes.schema import Recipe
from pycooldown.sampling.batches import Exposure
from pycooldown.sampling.changes import BatchSizes
from pycooldown.sampling.sampler import DomainBatchSampler
from pycooldown.schedules import AdaptiveSchedule, Schedule, constant

_MAX_STAGES = 6  # a schedule that changes more often is shown at the quarters of the run
MAX_COUNTED = 20_000_000  # up to this number, draws are counted one by one; beyond, their expectation is exact enough
_TRIED_STEPS = [1_000, 2_000]  # two run lengths, to test whether a mixture depends on the length
_MAX_MIXTURES = 2_000  # maximum number of mixtures for an expectation, and of points of a curve


@dataclass(frozen=True)
class StagePlan:
    """A part of a run.

    Attributes:
        start: Its first step.
        end: The step after its last.
        mixture: The mixture of its first step.
        exposure: Draws and epochs of each domain before ``end``.
        variance_inflation: F = sum_i q_i v_i^2 of ``mixture``.
        exact: Whether the draws are exactly those of the run's seed. For long runs they are expected values.
        learned: Whether the method learns its mixture during training. Then the plan assumes that the first mixture
            stays.
    """

    start: int
    end: int
    mixture: Mixture
    exposure: Exposure
    variance_inflation: float
    exact: bool = True
    learned: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        m, e = self.mixture, self.exposure
        columns = {
            "size": m.sizes,
            "sampling": m.sampling,
            "loss_weight": m.loss_weights,
            "draws": e.draws,
            "epochs": e.epochs,
        }
        rows = zip(*(values.tolist() for values in columns.values()), strict=True)
        return {
            "start": self.start,
            "end": self.end,
            "tau": m.tau if m.tau is None or np.isfinite(m.tau) else "inf",
            "variance_inflation": self.variance_inflation,
            "exact": self.exact,
            "learned": self.learned,
            "domains": {d: dict(zip(columns, row, strict=True)) for d, row in zip(m.domains, rows, strict=True)},
        }


def plan(recipe: Recipe, sizes: Mapping[str, int] | None = None) -> list[StagePlan]:
    """Return the stages of a recipe, with the draws and epochs of each domain in them.

    Args:
        recipe: From `load_recipe`.
        sizes: Training sequences of each domain; by default those of the recipe's data.

    Raises:
        FileNotFoundError: If sizes are not given and the recipe's data do not exist.
        ValueError: If the recipe names domains that the data do not have, or its mixture does not fit the data.
    """
    sizes = training_sizes(recipe, domain_sizes(recipe) if sizes is None else sizes)
    schedule = build_schedule(recipe, sizes)
    if learned := isinstance(schedule, AdaptiveSchedule):  # its later mixtures are not known
        schedule = constant(schedule.mixture(0))
    sampler = _sampler(recipe, schedule)
    num_steps, batch_sizes = len(sampler), BatchSizes(recipe.training.batch_sizes)
    exact = batch_sizes.samples_before(num_steps) <= MAX_COUNTED
    starts = [0, *islice(_changes(schedule, 0, num_steps), _MAX_STAGES)]
    if len(starts) > _MAX_STAGES:
        starts = sorted({num_steps * quarter // 4 for quarter in range(4)})
    stages, expected = [], np.zeros(len(sampler.domains))
    for start, end in pairwise([*starts, num_steps]):
        mixture = schedule.mixture(start)
        if exact:
            exposure = sampler.exposure(end)
        else:
            for first in [start, *(step for step, _ in batch_sizes.pairs if start < step < end)]:
                last = min(end, batch_sizes.end(first))
                expected = expected + batch_sizes.at(first) * _expected_samples(schedule, first, last)
            draws = np.rint(expected).astype(np.int64)
            exposure = Exposure(mixture.domains, draws, draws / mixture.sizes)
        stages.append(StagePlan(start, end, mixture, exposure, variance_inflation(mixture), exact, learned))
    return stages


def domain_sizes(recipe: Recipe) -> dict[str, int]:
    """Return the number of training sequences of each domain, in the order of the run.

    Raises:
        FileNotFoundError: If the recipe's data do not exist.
        ValueError: If the data lack a domain, or one is named twice.
    """
    return open_corpus(recipe.data).sizes


def training_sizes(recipe: Recipe, sizes: Mapping[str, int]) -> dict[str, int]:
    """Return ``sizes`` without the samples that the recipe's method keeps out of training.

    Raises:
        ValueError: If no sample of a domain is left.
    """
    left = {domain: size - recipe.mixture.held_out(size) for domain, size in sizes.items()}
    if empty := [domain for domain, size in left.items() if size <= 0]:
        raise ValueError(
            f"domain {empty[0]!r} has {sizes[empty[0]]} samples, and all of them are held out for probes; leave it out"
        )
    return left


def build_schedule(recipe: Recipe, sizes: Mapping[str, int]) -> Schedule:
    """Return the recipe's mixture over its steps.

    Raises:
        ValueError: If the mixture does not fit the sizes or the length of the run. Also if it depends on a number of
            steps or a batch size where the recipe has a rule or a ramp.
    """
    training = recipe.training
    method = recipe.mixture.with_allocation(training.allocation)
    steps = _TRIED_STEPS if isinstance(training.steps, str) else [training.steps]
    batches = [size for _, size in training.batch_sizes]
    try:
        schedule = method.schedule(sizes, steps[0], batches[0])
        others = {("steps", n, batches[0]) for n in steps[1:]} | {("batch_size", steps[0], n) for n in batches[1:]}
        for key, *counts in others:
            if method.schedule(sizes, *counts).describe() != schedule.describe():
                given = getattr(training, key)
                raise ValueError(
                    f"{recipe.mixture.name} depends on training.{key}, which is {given!r}; expected a number"
                )
        return schedule
    except ValueError as error:
        raise ValueError(f"mixture: {error}") from error


def _sampler(recipe: Recipe, schedule: Schedule) -> DomainBatchSampler:
    """Return the sampler of a single-process run."""
    training = recipe.training
    end: dict[str, Any] = {"stop" if isinstance(training.steps, str) else "num_steps": training.steps}
    return DomainBatchSampler(
        schedule, batch_size=training.batch_sizes, seed=training.seed, allocation=training.allocation, **end
    )


def _changes(schedule: Schedule, start: int, end: int) -> Iterator[int]:
    """Yield the steps between ``start`` and ``end`` at which the mixture changes."""
    step = schedule.next_change(start)
    while step is not None and step < end:
        yield step
        step = schedule.next_change(step)


def _expected_samples(schedule: Schedule, start: int, end: int) -> Any:
    """Return the sum of q over the steps from ``start`` to ``end``, (K,)."""
    edges = [start, *islice(_changes(schedule, start, end), _MAX_MIXTURES), end]
    if len(edges) <= _MAX_MIXTURES:
        return sum((b - a) * schedule.mixture(a).sampling for a, b in pairwise(edges))
    edges = np.linspace(start, end, _MAX_MIXTURES + 1).astype(np.int64).tolist()
    return sum((b - a) * schedule.mixture((a + b) // 2).sampling for a, b in pairwise(edges) if b > a)
