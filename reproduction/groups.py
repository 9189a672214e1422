"""Table 3: BLEU and chrF of nine languages by groups of size, from a sweep over the recipes in recipes/table3.

The rules below were fixed before any training that they judge; tests and verdicts are those of `reproduction.rules`.

**Data.** English into nine languages at 1M : .5M : .1M, here 200, 100 and 20 pairs of interface texts. Each of the
smallest is passed through 131 times at tau = 5, as in the paper. All seeds train on the same pairs.

**Scale.** These rules first had five times as many pairs and steps, width 192 and beam search: about 19 hours of a
processor, and never run. The scale was cut to about 50 minutes before the first training that is judged: width 64,
650 steps of 48 pairs, greedy search on 150 pairs of each language. Such models hardly translate. Two trials of tau = 5
with a seed that is not judged had 2 to 7 BLEU and 6 to 14 chrF, where half a point, the first margin, is not little; so
the margin became a share of the score.

**Groups.** The paper's: at least 1M, 500K to 1M, and below; here the largest, middle and smallest three. A group's
score is the mean over its languages.

**Claims.** "Little" is at most 5 % of the group's mean score under tau = 5. T3: against tau = 5 the largest languages
gain and the smallest lose little (+1.5 and 0 in the paper). T3b: against tau = 1 the middle and the smallest gain and
the largest lose little (+.7, +3.1 and -.2). T3c and T3d: every group loses little against UniMax and against Order
Matters. Each is judged on BLEU and on chrF; Holm's method is over all eight.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pycooldown.mixture import Vector
from reproduction import kept
from reproduction.claim import ClaimPart, Verdict
from reproduction.rules import MIN_SEEDS
from reproduction.verdicts import decide

RESULTS = Path(__file__).with_name("results") / "groups" / "table3.csv"
COOLDOWN, TAU_1, TAU_5, UNIMAX, ORDER_MATTERS = "cooldown", "temperature1", "temperature5", "unimax", "order_matters"
GROUPS = ("largest", "middle", "smallest")
MARGIN = 0.05  # what is "little", as a share of the score under tau = 5
MINUTES = 50  # of a processor, which the sweep took; its rows do not say
MEASURES = {"bleu": "BLEU", "chrf": "chrF"}
# The bounds of Cooldown's gain over a system, by group, as shares of the score under tau = 5.
_CLAIMS = {
    "T3": (
        "gains on the largest languages against tau = 5, and the smallest lose nothing",
        TAU_5,
        (0.0, None, -MARGIN),
    ),
    "T3b": ("gains on the smaller ones against tau = 1, and the largest pay little", TAU_1, (-MARGIN, 0.0, 0.0)),
    "T3c": ("is at least as good as UniMax in every group", UNIMAX, (-MARGIN,) * 3),
    "T3d": ("is at least as good as Order Matters in every group", ORDER_MATTERS, (-MARGIN,) * 3),
}

Scores = Mapping[str, Mapping[str, Mapping[str, Vector]]]  # measure -> recipe -> group -> one value for each seed


@dataclass(frozen=True)
class JudgedGroups:
    """A claim with its measurements.

    Attributes:
        name: T3 to T3d.
        statement: The claim in words.
        parts: The differences by group.
        verdict: The verdict.
    """

    name: str
    statement: str
    parts: list[ClaimPart]
    verdict: Verdict


def read_scores(path: Path = RESULTS) -> Scores:
    """Read the mean scores by group from the ``sweep.csv`` of a sweep; empty if there is no file.

    Raises:
        ValueError: If there are fewer than three languages, or they were not translated.
    """
    if not path.exists():
        return {}
    with open(path, encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    sizes = {row["domain"]: int(row["size"]) for row in rows}
    if len(sizes) < len(GROUPS) or not {row["measure"] for row in rows} >= set(MEASURES):
        raise ValueError(
            f"{path} has no BLEU and chrF of three or more languages; expected a sweep over recipes/table3"
        )
    ordered = sorted(sizes, key=lambda domain: -sizes[domain])
    groups = {name: set(part) for name, part in zip(GROUPS, np.array_split(ordered, len(GROUPS)), strict=True)}
    found: dict[str, dict[str, dict[str, dict[int, list[float]]]]] = {}
    for row in rows:
        group = next(name for name, members in groups.items() if row["domain"] in members)
        by_seed = found.setdefault(row["measure"], {}).setdefault(row["recipe"], {}).setdefault(group, {})
        by_seed.setdefault(int(row["seed"]), []).append(float(row["value"]))
    return {
        measure: {
            recipe: {group: np.array([np.mean(by_seed[s]) for s in sorted(by_seed)]) for group, by_seed in some.items()}
            for recipe, some in by_recipe.items()
        }
        for measure, by_recipe in found.items()
    }


def judge(scores: Scores) -> list[JudgedGroups]:
    """Judge the claims whose recipes were trained with enough seeds, on both measures."""
    claims = []
    for measure, label in MEASURES.items():
        by_recipe = scores.get(measure, {})
        for name, (statement, over, bounds) in _CLAIMS.items():
            if not {COOLDOWN, TAU_5, over} <= set(by_recipe):
                continue
            gains = {group: by_recipe[COOLDOWN][group] - by_recipe[over][group] for group in GROUPS}
            if len(gains[GROUPS[0]]) >= MIN_SEEDS:
                parts = []
                for group, share in zip(GROUPS, bounds, strict=True):
                    bound = None if share is None else share * float(by_recipe[TAU_5][group].mean())
                    parts.append(ClaimPart(f"{label} of cooldown - {over}, {group}", gains[group], bound))
                claims.append((name, f"Cooldown {statement} ({label})", parts))
    if not claims:
        return []
    decided = decide([parts for *_, parts in claims])
    return [JudgedGroups(*claim, verdict) for claim, (verdict, *_) in zip(claims, decided, strict=True)]


def copy_scores(sweep: Path, out: Path = RESULTS) -> None:
    """Copy the tidy rows of a sweep to where the page reads them.

    Raises:
        ValueError: If `read_scores` cannot read them.
        FileNotFoundError: If the folder has no ``sweep.csv``.
    """
    text = (sweep / "sweep.csv").read_text(encoding="utf-8")
    read_scores(sweep / "sweep.csv")
    kept.write_text(out, text)
