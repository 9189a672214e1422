"""R8 (table 4 and figure 6): four monolingual languages of very unlike sizes, in packed blocks of tokens.

The rules below were fixed before any training that they judge; tests and verdicts are those of `reproduction.rules`.

**Data.** English, Italian, Chinese and Swahili at 2733 : 162 : 39 : 1, the billions of tokens of the paper's subset of
mC4, in blocks of 32 tokens. The first two are descriptions of Debian's packages, the others Chromium's interface. The
number of passes over Swahili at tau = 5 is the paper's, about 5: nothing can overfit, so a high temperature costs no
repetition, and the question is only what each language gets of a short training.

**Claims.** R8, R8b and R8c: table 4, Cooldown against tau = 5, 1 and 100, on every language apart. R8d: figure 6, one
step down against a linear and an exponential one, on English (the only number that the paper prints) and on the mean.
Holm's method is over these four. DoReMi's row is left out: its proxies would take longer than all else.

**Runs.** 200 steps of 16 blocks, 8 seeds; the model and its learning rate are those of the other regimes. Nothing was
tried out before. Steps and length of a block are what the corpus has enough English for: 200 steps need 5.2 M tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from pycooldown import temperature
from pycooldown.data import TokenDataset
from reproduction.claim import ClaimPart
from reproduction.model import Pair
from reproduction.regimes import Place, read_trainings
from reproduction.rules import (
    COOLDOWN,
    EXPONENTIAL,
    LINEAR,
    TAU_1,
    TAU_5,
    TAU_100,
    Regime,
    TextClaim,
    Trainings,
    gain,
)
from reproduction.texts import VALIDATION, Sizes, Texts, spread
from reproduction.translation import Setting, TrainingJob

RESULTS = Path(__file__).with_name("results") / "blocks"
PROPORTIONS = (("en", 2733), ("it", 162), ("zh", 39), ("sw", 1))
PASSES, STEPS, BATCH_SIZE, LENGTH = 5, 200, 16, 32
MARGIN = 0.1  # nats per token that Cooldown may lose on the largest language against tau = 1; 0.08 in the paper
SYSTEMS = (TAU_1, TAU_5, TAU_100, COOLDOWN, LINEAR, EXPONENTIAL)


@dataclass(frozen=True)
class BlockRegime(Regime):
    """Languages of packed blocks.

    Attributes:
        proportions: Languages and their sizes, in any unit, the largest first.
    """

    proportions: tuple[tuple[str, int], ...] = PROPORTIONS

    @property
    def batch_size(self) -> int:
        """Blocks in a batch."""
        return BATCH_SIZE

    @property
    def sizes(self) -> Sizes:
        """Training blocks of each language, for ``passes`` over the rarest one at tau = 5."""
        counts = [count for _, count in self.proportions]
        rarest = min(counts)
        blocks = round(temperature(counts, 5)[counts.index(rarest)] * self.draws / self.passes)
        return {domain: round(blocks * count / rarest) for domain, count in self.proportions}


def block_regime(proportions: Mapping[str, int] | None = None, passes: int = PASSES, steps: int = STEPS) -> BlockRegime:
    """Return a regime, by default the one of the rules.

    Raises:
        ValueError: If there are fewer than two languages, or a number is not positive.
    """
    chosen = dict(proportions or PROPORTIONS)
    if len(chosen) < 2 or min(*chosen.values(), passes, steps) < 1:
        raise ValueError(
            f"sizes = {chosen}, passes = {passes}, steps = {steps}; expected two or more languages and positive numbers"
        )
    ordered = tuple(sorted(chosen.items(), key=lambda item: -item[1]))
    return BlockRegime(round(ordered[0][1] / ordered[-1][1]), passes, steps, SYSTEMS, ordered)


def job_of(data: Path, place: Place) -> TrainingJob:
    """Return a training, from a folder of `pycooldown tokenize`."""
    regime, seed, system = place
    setting = Setting(steps=regime.steps, batch_size=BATCH_SIZE, evaluations=math.gcd(regime.steps, 4))
    return TrainingJob(choose_blocks(data, regime.sizes, seed), system, seed, setting)


def choose_blocks(folder: Path, sizes: Sizes, seed: int) -> Texts:
    """Choose training blocks at random by ``seed``; the validation blocks are the same for all seeds.

    Raises:
        ValueError: If the data in ``folder`` have fewer blocks, or lack a language.
    """
    rng = np.random.default_rng(seed)
    train: list[Pair] = []
    for domain, size in sizes.items():
        blocks = _open(folder, domain, "train")
        if len(blocks) < size:
            raise ValueError(
                f"{folder} has {len(blocks):,} training blocks of {LENGTH} tokens of {domain!r}; {size:,} are needed: "
                "expected a lower skew, more passes, or fewer steps"
            )
        chosen = rng.permutation(len(blocks))[:size]
        train += [(tokens, 0) for tokens in blocks.__getitems__(chosen)["input_ids"]]
    validation = {}
    for domain in sizes:
        blocks = _open(folder, domain, "validation")
        validation[domain] = spread(
            [(tokens, 0) for tokens in blocks.__getitems__(range(len(blocks)))["input_ids"]], VALIDATION
        )
    return Texts(train, dict(sizes), validation, _open(folder, next(iter(sizes)), "train").vocabulary_size or 0)


@cache
def _open(folder: Path, domain: str, split: str) -> TokenDataset:
    return TokenDataset(folder, LENGTH, split=split, domains=[domain], columns=("input_ids",), remainder="drop")


def read_results(folder: Path = RESULTS) -> Mapping[BlockRegime, Trainings]:
    """Read all regimes of a folder."""
    found = {}
    for path in sorted(folder.glob("*.csv")):
        first, sizes, trainings = read_trainings(path)
        unit = math.gcd(*sizes.values())
        proportions = tuple((domain, size // unit) for domain, size in sizes.items())
        numbers = (int(first["skew"]), int(first["passes"]), int(first["steps"]))
        found[BlockRegime(*numbers, tuple(trainings), proportions)] = trainings
    return found


def _on_each(over: str, largest: float = 0.0) -> Callable[[Trainings], list[ClaimPart]]:
    """Return the claim parts of Cooldown over a system: its gain on each language, and the largest one's bound."""

    def parts(found: Trainings) -> list[ClaimPart]:
        domains = list(found[COOLDOWN][0].losses)
        return [gain(found, COOLDOWN, over, domain, 0.0 if i else largest) for i, domain in enumerate(domains)]

    return parts


def _sparse(found: Trainings) -> list[ClaimPart]:
    largest = next(iter(found[COOLDOWN][0].losses))
    return [gain(found, COOLDOWN, dense, domain) for dense in (LINEAR, EXPONENTIAL) for domain in (largest, None)]


CLAIMS = (
    TextClaim("R8", "Table 4", "Against tau = 5 Cooldown gains on every language", (TAU_5, COOLDOWN), _on_each(TAU_5)),
    TextClaim(
        "R8b",
        "Table 4",
        "Against tau = 1 Cooldown gains on the smaller languages and pays little on the largest",
        (TAU_1, COOLDOWN),
        _on_each(TAU_1, -MARGIN),
    ),
    TextClaim(
        "R8c", "Table 4", "Against tau = 100 Cooldown gains on every language", (TAU_100, COOLDOWN), _on_each(TAU_100)
    ),
    TextClaim(
        "R8d",
        "Fig. 6",
        "One step down beats dense schedules (linear, exponential), on the largest language and on the mean",
        (COOLDOWN, LINEAR, EXPONENTIAL),
        _sparse,
    ),
)
