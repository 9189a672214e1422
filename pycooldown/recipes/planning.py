"""What a recipe will do, before anything is trained."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from pycooldown.data.manifest import load_manifest
from pycooldown.gradients.theory import variance_inflation
from pycooldown.mixture import Mixture
from pycooldown.recipes.learning_methods import Probing
from pycooldown.recipes.schema import Recipe
from pycooldown.sampling.batches import Exposure
from pycooldown.sampling.sampler import DomainBatchSampler
from pycooldown.schedules import AdaptiveSchedule, Schedule, constant

# A schedule that changes more often is shown at the quarters of the run.
_MAX_STAGES = 6


@dataclass(frozen=True)
class Stage:
    """A part of a run.

    Attributes:
        start: its first step.
        end: the step after its last.
        mixture: that of its first step.
        exposure: draws and epochs of each domain before ``end``, exactly those that the run's seed will give.
        variance_inflation: F = sum_i q_i v_i^2 of ``mixture``.
        learned: whether the method learns its mixture while it trains; what is told then holds if it stays as it
            starts.
    """

    start: int
    end: int
    mixture: Mixture
    exposure: Exposure
    variance_inflation: float
    learned: bool = False


def plan(recipe: Recipe) -> list[Stage]:
    """The stages of a recipe, with what each domain will be given in them.

    Raises:
        FileNotFoundError: if the recipe's data are not there.
        ValueError: if it names domains that the data do not have, or its mixture does not fit them.
    """
    schedule = build_schedule(recipe, training_sizes(recipe, domain_sizes(recipe)))
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
    starts, step = [0], schedule.next_change(0)
    while step is not None and step < training.steps and len(starts) <= _MAX_STAGES:
        starts.append(step)
        step = schedule.next_change(step)
    if len(starts) > _MAX_STAGES:
        starts = sorted({training.steps * quarter // 4 for quarter in range(4)})
    stages = []
    for start, end in zip(starts, [*starts[1:], training.steps], strict=True):
        mixture = schedule.mixture(start)
        stages.append(Stage(start, end, mixture, sampler.exposure(end), variance_inflation(mixture), learned))
    return stages


def domain_sizes(recipe: Recipe) -> dict[str, int]:
    """Training samples of the recipe's domains, in the order that its run lays them out."""
    sizes = load_manifest(Path(recipe.data.path)).sizes("train")
    for domain in recipe.data.domains or ():
        if domain not in sizes:
            raise ValueError(f"data.domains has {domain!r}; {recipe.data.path} has {', '.join(sizes)}")
    if recipe.data.domains is not None and len(set(recipe.data.domains)) != len(recipe.data.domains):
        raise ValueError(f"data.domains has a name twice: {', '.join(recipe.data.domains)}")
    names = sizes if recipe.data.domains is None else recipe.data.domains
    return {domain: sizes[domain] for domain in names}


def training_sizes(recipe: Recipe, sizes: Mapping[str, int]) -> dict[str, int]:
    """``sizes`` without the samples that the recipe's method keeps out of training.

    Raises:
        ValueError: if they are all of a domain.
    """
    method = recipe.mixture
    left = {d: n - method.held_out(n) if isinstance(method, Probing) else n for d, n in sizes.items()}
    if empty := [domain for domain, n in left.items() if n <= 0]:
        raise ValueError(f"domain {empty[0]!r} has {sizes[empty[0]]} samples, all kept out for probes; leave it out")
    return left


def build_schedule(recipe: Recipe, sizes: Mapping[str, int]) -> Schedule:
    """The recipe's mixture over its steps."""
    method = recipe.mixture
    if isinstance(method, Probing) and method.allocation is None:
        method = replace(method, allocation=recipe.training.allocation)
    try:
        return method.schedule(sizes, recipe.training.steps, recipe.training.batch_size)
    except ValueError as error:
        raise ValueError(f"mixture: {error}") from error
