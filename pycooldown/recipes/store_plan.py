"""Compute what a recipe will read from object stores, before anything is fetched."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from pycooldown.data.cache.blocks import Blocks
from pycooldown.data.cache.plan import PREFETCHED, BlockUses, StorePlan, forecast
from pycooldown.data.shards import TarDataset
from pycooldown.recipes.planning import build_schedule, training_sizes
from pycooldown.recipes.schema import Recipe
from pycooldown.sampling.block_shuffle import BLOCK, GROUP
from pycooldown.sampling.sampler import DomainBatchSampler
from pycooldown.schedules import AdaptiveSchedule, constant

__all__ = ["parse_bytes", "plan_store"]

SHARES = (0.1, 0.25, 0.5)  # default cache limits, as shares of the data
_UNITS = {"": 1, **{unit: 1000 ** (i + 1) for i, unit in enumerate("KMGT")}}
_UNITS |= {f"{unit}I": 1024 ** (i + 1) for i, unit in enumerate("KMGT")}


def plan_store(
    recipe: Recipe,
    dataset: TarDataset,
    *,
    limits: Sequence[int] = (),
    block: int = BLOCK,
    group: int = GROUP,
    depth: int | None = None,
    prefetched: int = PREFETCHED,
) -> StorePlan:
    """Return what a recipe reads from a data set's objects, with the block shuffle, if all ranks are on one node.

    Args:
        recipe: From `load_recipe`. If its mixture is learned, the first mixture is assumed to stay.
        dataset: The shards.
        limits: Bytes of the cache; by default a tenth, a quarter and half of the data.
        block: Samples in a block.
        group: Blocks whose samples are mixed.
        depth: Bytes to fetch ahead; by default a quarter of each limit, as in `KnownFutureCache`.
        prefetched: Batches that loaders request ahead, as in `KnownFutureCache`.

    Raises:
        ValueError: If the recipe's mixture does not fit the data, or its method keeps samples out of training.
    """
    if (kept := training_sizes(recipe, dataset.sizes)) != dataset.sizes:
        raise ValueError(
            "the recipe's method keeps samples out of training, which a plan of stores does not support; use another"
        )
    if isinstance(steps := recipe.training.steps, str):
        raise ValueError(f"training.steps = {steps!r}; a plan of stores needs a number of steps")
    schedule = build_schedule(recipe, kept)
    if isinstance(schedule, AdaptiveSchedule):
        schedule = constant(schedule.mixture(0))
    sampler = DomainBatchSampler(
        schedule,
        batch_size=recipe.training.batch_sizes,
        seed=recipe.training.seed,
        num_steps=steps,
        allocation=recipe.training.allocation,
        shuffle="blocks",
        shard_sizes=dataset.shard_sizes,
        block=block,
        group=group,
    )
    uses = BlockUses(sampler, dataset, Blocks.of(dataset, block))
    limits = list(limits) or [int(share * uses.blocks.sizes.sum()) for share in SHARES]
    depths = [limit // 4 if depth is None else depth for limit in limits]
    return forecast(uses, stop=steps, limits=limits, depths=depths, prefetched=prefetched)


def parse_bytes(text: str) -> int:
    """Return the bytes of a text such as ``200GB``, ``1.5 TiB`` or ``1000``.

    Raises:
        ValueError: If it has another form.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]I?)?B?\s*", text.upper())
    if match is None:
        raise ValueError(f"{text!r}; expected a number of bytes, as in 200GB or 180GiB")
    return int(float(match[1]) * _UNITS[match[2] or ""])


def to_dict(plan: StorePlan) -> dict[str, Any]:
    """Return a plan as JSON values."""
    forecasts = [vars(found) for found in plan.forecasts]
    return {**vars(plan), "forecasts": forecasts}
