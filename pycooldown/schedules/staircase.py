"""Schedules with one mixture after another: constant, staircase, Order Matters."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from pycooldown.mixture import Mixture
from pycooldown.schedules.protocol import Schedule, check_step


def constant(mixture: Mixture) -> Schedule:
    """Return a schedule with the same mixture at every step."""
    return Staircase((0,), (mixture,), f"constant({mixture.describe()})")


def staircase(stages: Sequence[tuple[int, Mixture]]) -> Schedule:
    """Return a schedule with one mixture after another.

    Args:
        stages: (start_step, mixture) pairs with increasing start steps, the first one 0.

    Raises:
        ValueError: If there is no stage, the start steps do not increase from 0, or domains or sizes differ.
    """
    if not stages:
        raise ValueError("stages is empty; expected at least one (start_step, mixture) pair")
    starts, mixtures = zip(*stages, strict=True)
    if starts[0] != 0 or any(a >= b for a, b in pairwise(starts)):
        raise ValueError(f"stages start at steps {list(starts)}; expected 0 and then increasing steps")
    for start, mixture in stages[1:]:
        _check_same_domains(mixtures[0], mixture, f"the stage at step {start}")
    return Staircase(starts, mixtures, f"staircase({', '.join(f'{s}: {m.describe()}' for s, m in stages)})")


def order_matters(
    sizes: Mapping[str, int], *, high_resource: Sequence[str] | None = None, switch_step: int, tau: float = 5.0
) -> Schedule:
    """Return a schedule of two phases: high-resource domains alone, in proportion to size, then all domains.

    Source: Choi et al., "Order Matters in the Presence of Dataset Imbalance for Multilingual Learning", NeurIPS
    2023. They also reset the optimizer and the learning rate at the switch, which is left to the trainer.

    Args:
        sizes: Number of samples of each domain.
        high_resource: Names of the domains of the first phase; by default those with at least the median size, which
            is not from the paper.
        switch_step: First step with all domains, > 0.
        tau: Temperature of the second phase, > 0; the paper sweeps over mixtures.

    Raises:
        ValueError: If a name in ``high_resource`` is unknown, it is empty, or a number is not positive.
    """
    joint = Mixture.temperature_sampling(sizes, tau)
    if high_resource is None:
        high_resource = [d for d, n in zip(joint.domains, joint.sizes, strict=True) if n >= np.median(joint.sizes)]
    if unknown := sorted(set(high_resource) - set(joint.domains)):
        raise ValueError(f"high_resource names {unknown}, which sizes lacks; expected some of {list(joint.domains)}")
    if not high_resource:
        raise ValueError("high_resource is empty; expected a domain, or None for those of median size and up")
    if switch_step <= 0:
        raise ValueError(f"switch_step = {switch_step}; expected a step > 0")
    first = np.where(np.isin(joint.domains, list(high_resource)), joint.sizes, 0) / joint.sizes.sum()
    first = first / first.sum()
    phases = joint.reweighted(first), joint
    names = ",".join(d for d in joint.domains if d in set(high_resource))
    text = f"order_matters(high_resource={names}, switch_step={switch_step}, tau={float(tau)})"
    return Staircase((0, switch_step), phases, text)


@dataclass(frozen=True)
class Staircase:
    """A schedule with one mixture after another; see `Schedule` for its methods.

    Attributes:
        starts: First steps of the mixtures, increasing from 0.
        mixtures: The mixtures.
        description: The text that `describe` returns.
    """

    starts: tuple[int, ...]
    mixtures: tuple[Mixture, ...]
    description: str

    def mixture(self, step: int) -> Mixture:
        """Return the mixture of a step."""
        return self.mixtures[bisect_right(self.starts, check_step(step)) - 1]

    def next_change(self, step: int) -> int | None:
        """Return the first step after ``step`` with another mixture."""
        following = bisect_right(self.starts, step)
        return self.starts[following] if following < len(self.starts) else None

    def describe(self) -> str:
        """Return the description."""
        return self.description


def _check_same_domains(first: Mixture, other: Mixture, where: str) -> None:
    if first.domains != other.domains:
        difference = sorted(set(first.domains) ^ set(other.domains)) or "their order"
        raise ValueError(f"{where} has other domains than the first: {difference}; give absent domains a target of 0")
    if (first.sizes != other.sizes).any():
        i = int((first.sizes != other.sizes).argmax())
        raise ValueError(
            f"{where} has {other.sizes[i]} samples of domain {first.domains[i]!r}, the first one {first.sizes[i]}; "
            "expected the same sizes throughout"
        )
