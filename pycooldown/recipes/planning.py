"""What a recipe will do to each domain, before anything is trained."""

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
from pycooldown.sampling.sampler import DomainBatchSampler
from pycooldown.schedules import AdaptiveSchedule, Schedule, constant

_MAX_STAGES = 6  # a schedule that changes more often is shown at the quarters of the run
MAX_COUNTED = 20_000_000  # draws that are counted one by one; beyond, their expectation says as much
_MAX_MIXTURES = 2_000  # mixtures that an expectation is taken over; a curve is sampled at as many steps


@dataclass(frozen=True)
class StagePlan:
    """A part of a run.

    Attributes:
        start: Its first step.
        end: The step after its last.
        mixture: The mixture of its first step.
        exposure: Draws and epochs of each domain before ``end``.
        variance_inflation: F = sum_i q_i v_i^2 of ``mixture``.
        exact: Whether the draws are those that the run's seed will give, or, for long runs, their expectation.
        learned: Whether the method learns its mixture while it trains; the plan is then that of a mixture that stays as
            it starts.
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
    """Return the stages of a recipe, with what each domain will be given in them.

    Args:
        recipe: From `load_recipe`.
        sizes: Training sequences of each domain; by default those of the recipe's data.

    Raises:
        FileNotFoundError: If sizes are not given and the recipe's data are not there.
        ValueError: If the recipe names domains that the data do not have, or its mixture does not fit them.
    """
    schedule = build_schedule(recipe, training_sizes(recipe, domain_sizes(recipe) if sizes is None else sizes))
    if learned := isinstance(schedule, AdaptiveSchedule):  # what it will learn is not known
        schedule = constant(schedule.mixture(0))
    training = recipe.training
    sampler = DomainBatchSampler(
        schedule,
        batch_size=training.batch_size,
        seed=training.seed,
        num_steps=training.steps,
        allocation=training.allocation,
    )
    exact = training.steps * training.batch_size <= MAX_COUNTED
    starts = [0, *islice(_changes(schedule, 0, training.steps), _MAX_STAGES)]
    if len(starts) > _MAX_STAGES:
        starts = sorted({training.steps * quarter // 4 for quarter in range(4)})
    stages, expected = [], np.zeros(len(sampler.domains))
    for start, end in pairwise([*starts, training.steps]):
        mixture = schedule.mixture(start)
        if exact:
            exposure = sampler.exposure(end)
        else:
            expected = expected + training.batch_size * _expected_samples(schedule, start, end)
            draws = np.rint(expected).astype(np.int64)
            exposure = Exposure(mixture.domains, draws, draws / mixture.sizes)
        stages.append(StagePlan(start, end, mixture, exposure, variance_inflation(mixture), exact, learned))
    return stages


def domain_sizes(recipe: Recipe) -> dict[str, int]:
    """Return the training sequences of the recipe's domains, in the order that its run lays them out.

    Raises:
        FileNotFoundError: If the recipe's data are not there.
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
        raise ValueError(f"domain {empty[0]!r} has {sizes[empty[0]]} samples, all kept out for probes; leave it out")
    return left


def build_schedule(recipe: Recipe, sizes: Mapping[str, int]) -> Schedule:
    """Return the recipe's mixture over its steps.

    Raises:
        ValueError: If the mixture does not fit the sizes or the length of the run.
    """
    method = recipe.mixture.with_allocation(recipe.training.allocation)
    try:
        return method.schedule(sizes, recipe.training.steps, recipe.training.batch_size)
    except ValueError as error:
        raise ValueError(f"mixture: {error}") from error


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
