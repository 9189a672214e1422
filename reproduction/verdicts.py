"""Judgement by the rules of `reproduction.rules`: t tests over paired seeds, Holm over claims, the best of a regime."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations
from typing import NamedTuple

import numpy as np

from pycooldown.mixture import Vector
from pycooldown.recipes.advice import DEFAULT
from pycooldown.recipes.paired import paired_difference
from reproduction.claim import ClaimPart, Verdict
from reproduction.rules import (
    CLAIMS,
    LEVEL,
    MAP_SYSTEMS,
    MIN_SEEDS,
    TextClaim,
    Trainings,
    final_losses,
    paired,
)
from reproduction.texts import FREQUENT, RARE

_NODES = np.polynomial.legendre.leggauss(100)


class JudgedClaim(NamedTuple):
    """A claim with its measurements in a regime.

    ``p_for`` and ``p_against`` are the adjusted p-values of "reproduced" and "not reproduced".
    """

    claim: TextClaim
    parts: list[ClaimPart]
    verdict: Verdict
    p_for: float
    p_against: float


def judge(trainings: Trainings, among: Sequence[TextClaim] = CLAIMS) -> list[JudgedClaim]:
    """Judge every claim whose systems were trained in a regime with at least ``MIN_SEEDS`` shared seeds."""
    found = {claim: paired(trainings, claim.systems) for claim in among}
    claims = [claim for claim in among if len(found[claim].get(claim.systems[0], ())) >= MIN_SEEDS]
    if not claims:
        return []
    parts = [claim.parts(found[claim]) for claim in claims]
    return [JudgedClaim(*judged) for judged in zip(claims, parts, *zip(*decide(parts), strict=True), strict=True)]


def decide(claims: Sequence[Sequence[ClaimPart]]) -> list[tuple[Verdict, float, float]]:
    """Return verdicts and adjusted p-values of "reproduced" and "not reproduced" for claims that are judged together.

    Args:
        claims: The parts of each; those without a bound decide nothing.
    """
    bounded = [[(part.values, part.bound) for part in parts if part.bound is not None] for parts in claims]
    above = [max(p_above(values, bound) for values, bound in parts) for parts in bounded]
    below = [min(1.0, len(parts) * min(p_above(-values, -bound) for values, bound in parts)) for parts in bounded]
    decided: list[tuple[Verdict, float, float]] = []
    for p_for, p_against in zip(holm(above), holm(below), strict=True):
        verdict: Verdict = "inconclusive"
        if p_for <= LEVEL / 2:
            verdict = "reproduced"
        elif p_against <= LEVEL / 2:
            verdict = "not reproduced"
        decided.append((verdict, p_for, p_against))
    return decided


class Best(NamedTuple):
    """The system with the lowest mean loss in a regime.

    Attributes:
        system: Its name.
        second: The system with the next higher loss.
        margin: How far the second is above it, with a 95 % interval over the paired seeds.
        clear: Whether it is below every other system by the tests.
        ties: The systems that the tests cannot separate from it.
    """

    system: str
    second: str
    margin: str
    clear: bool
    ties: tuple[str, ...]


def best_system(trainings: Trainings, domain: str | None) -> Best:
    """Return the best of `MAP_SYSTEMS` on a language, or (``None``) on the mean of both."""
    shared = paired(trainings, MAP_SYSTEMS)
    losses = {system: final_losses(shared[system], domain) for system in MAP_SYSTEMS}
    order = sorted(losses, key=lambda system: float(losses[system].mean()))
    pairs = list(combinations(MAP_SYSTEMS, 2))
    adjusted = holm([p_two_sided(losses[a] - losses[b]) for a, b in pairs])
    p = dict(zip(map(frozenset, pairs), adjusted, strict=True))
    ties = tuple(other for other in order[1:] if p[frozenset((order[0], other))] > LEVEL)
    margin = paired_difference(losses[order[1]].tolist(), losses[order[0]].tolist())
    return Best(order[0], order[1], str(margin), not ties, ties)


def advised(trainings: Trainings) -> str:
    """Return the advice of a regime: Cooldown, unless the tests separate the best mean over languages from it."""
    best = best_system(trainings, None)
    return DEFAULT if DEFAULT in best.ties else best.system


def mean_losses(trainings: Trainings) -> dict[str, float]:
    """Return each map system's loss: the mean over both languages and all seeds."""
    shared = paired(trainings, MAP_SYSTEMS)
    return {system: float(final_losses(shared[system], None).mean()) for system in MAP_SYSTEMS}


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values adjusted by Holm (1979): reject those at most alpha, and errors are as rare as alpha in all."""
    adjusted = [0.0] * len(p_values)
    largest = 0.0
    for rank, i in enumerate(np.argsort(p_values, kind="stable").tolist()):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = largest
    return adjusted


def p_above(values: Vector, bound: float = 0.0) -> float:
    """Return the one-sided p-value of a t test that the mean is above ``bound``; a single number is exact."""
    x = np.asarray(values, dtype=np.float64) - bound
    error = float(x.std(ddof=1)) / math.sqrt(x.size) if x.size > 1 else 0.0
    if error == 0:
        return 0.0 if x[0] > 0 else 1.0
    return _t_tail(float(x.mean()) / error, x.size - 1)


def p_two_sided(values: Vector) -> float:
    """Return the two-sided p-value of a t test that the mean is 0."""
    return min(1.0, 2 * min(p_above(values), p_above(-np.asarray(values))))


def p_text(p: float) -> str:
    """Return a p-value with two digits."""
    return f"{p:.2g}" if p >= 1e-4 else "< 1e-4"


def _t_tail(t: float, degrees: int) -> float:
    """Return P(T > t) of Student's t: with T = sqrt(degrees) tan(a), the density of a is as cos(a)^(degrees - 1)."""
    nodes, weights = _NODES

    def area(low: float, high: float) -> float:
        angles = (high - low) / 2 * nodes + (high + low) / 2
        return float((high - low) / 2 * (weights @ np.cos(angles) ** (degrees - 1)))

    return area(math.atan(t / math.sqrt(degrees)), math.pi / 2) / area(-math.pi / 2, math.pi / 2)


PARTS_OF_MAP = {"rare": RARE, "frequent": FREQUENT, "mean of both": None}
