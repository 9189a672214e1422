"""The rules of evidence for the claims on real text, fixed before any training that they judge.

A regime is a skew of the sizes and a number of passes over the rare language; a claim is judged in each regime apart.

**Data.** English to German (frequent) and Romanian (rare). Each seed draws its own training pairs, its own start of the
model and its own order of samples, and shares them with all systems: systems are compared in pairs of one seed. The
validation pairs are the same throughout.

**Claims.** A claim is a list of parts. A part is a difference, one value for each seed, and a bound that it must
exceed: 0 where the paper says "better", ``-MARGIN`` where it says that nothing, or little, is lost. Claims about a
trade-off have a part for each side of it.

**Verdicts.** Each part has two one-sided t tests over the paired seeds, above and below its bound.

* *reproduced*: all parts are above their bounds. The claim's p-value is the largest of its parts.
* *not reproduced*: some part is below its bound. The p-value is the smallest of the parts, times their number.
* *inconclusive*: neither.

Holm's method over all claims that are judged in a regime, at ``LEVEL / 2`` for either direction, keeps the probability
of one or more wrong verdicts in that regime at most ``LEVEL``.

**The map.** In each regime the five systems of ``MAP_SYSTEMS`` are compared in all pairs by two-sided t tests with
Holm at ``LEVEL``. A system is marked as best only where it is below every other one by these tests.

**Advice.** For a setting, the nearest regime of the map gives the system, if it is within the factors of
`pycooldown.recipes.advice`; with none so near there is no advice. The system is Cooldown, unless the one with the
lowest mean loss over the languages is told from Cooldown by the tests of the map. The regret of this rule is measured
by leaving out each regime in turn: the nearest of the others decides then, however far it is.

The rule of advice was changed after a look at seven regimes. It had been the lowest mean of the nearest regime, told
from the others or not, and its regret was three times that of always Cooldown. The new rule takes as its default the
constant that did best, so it is fitted to these seven by one choice among five. Its regret in the regimes that were
trained later is reported apart.

**Order of the runs.** Regimes as they stand in ``REGIMES``, from the first on; in each, the systems of the map seed by
seed, then the others. A claim whose systems share fewer than ``MIN_SEEDS`` seeds has no verdict, a regime with fewer of
the map's no best system. Nothing is tuned: model, learning rate and steps are those of the older study at all regimes.

Where sizes of 420 steps do not suit, a regime has other steps. At 300 passes and 100:1 or 500:1 the rare language would
have 13 or 10 pairs, and tau = 100 draws 16 into each batch, which the sampler refuses: there are more steps, so that it
has 16 or 17. This was changed, and the two cells at 25:1 were moved before those of 300 passes, when the first training
of tau = 100 there was refused; no loss of the five last regimes was known.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from pycooldown import temperature
from pycooldown.mixture import Vector
from reproduction.claim import ClaimPart
from reproduction.texts import FREQUENT, RARE
from reproduction.translation import ORDER_MATTERS, TrainedSystem

SEEDS = 8
MIN_SEEDS = 6
LEVEL = 0.05
MARGIN = 0.05  # nats a token
RISE = 0.1  # nats a token above its best: what "overfits" means for a validation loss
BATCH_SIZE = 32

TAU_1, TAU_5, TAU_100 = "temperature 1", "temperature 5", "temperature 100"
COOLDOWN, INCREASE, LINEAR, EXPONENTIAL = "cooldown", "increase", "linear", "exponential"
AVERAGED = "averaged"  # the mean mixture of Cooldown at all steps: its passes, without its order
UNIMAX, FRONT_LOADED = "unimax", "unimax front-loaded"
SCALARIZATION_5, SCALARIZATION_100 = "scalarization 5", "scalarization 100"

MAP_SYSTEMS = (TAU_1, TAU_5, TAU_100, COOLDOWN, UNIMAX)
ALL_SYSTEMS = (
    *MAP_SYSTEMS,
    INCREASE,
    LINEAR,
    EXPONENTIAL,
    AVERAGED,
    FRONT_LOADED,
    ORDER_MATTERS,
    SCALARIZATION_5,
    SCALARIZATION_100,
)


@dataclass(frozen=True)
class Regime:
    """Where claims are judged.

    Attributes:
        skew: Size of the frequent language over that of the rare one.
        passes: Passes over the rare language at tau = 5.
        steps: Optimizer steps of a training.
        systems: What is trained.
    """

    skew: int
    passes: int
    steps: int = 420
    systems: tuple[str, ...] = MAP_SYSTEMS

    @property
    def name(self) -> str:
        """Skew and passes, such as "100:1, 130 passes"."""
        return f"{self.skew}:1, {self.passes} passes"

    @property
    def is_paper(self) -> bool:
        """Whether skew and passes are about those of the paper."""
        return (self.skew, self.passes) == (100, 130)

    @property
    def batch_size(self) -> int:
        """Samples in a batch."""
        return BATCH_SIZE

    @property
    def draws(self) -> int:
        """Samples that a training draws."""
        return self.steps * self.batch_size

    @property
    def sizes(self) -> dict[str, int]:
        """Training pairs of each language, for ``passes`` over the rare one at tau = 5."""
        rare = round(temperature([self.skew, 1], 5)[1] * self.draws / self.passes)
        return {FREQUENT: self.skew * rare, RARE: rare}


# The paper has about 131 passes over its rarest language (OPUS-100) and 118 (Czech and Romanian), at 93:1 there. The
# corpus has 13,700 German pairs: so few passes at so high a skew as the paper's need more, and are missing here.
PAPER = Regime(100, 130, systems=ALL_SYSTEMS)
REGIMES = (
    PAPER,
    Regime(100, 20, steps=288),
    Regime(9, 20),
    Regime(9, 80),
    Regime(500, 130),
    Regime(100, 80),
    Regime(9, 5),
    Regime(25, 80),
    Regime(25, 20),
    Regime(100, 300, steps=540),
    Regime(500, 300, steps=720),
    Regime(9, 300),
)
# Those that were trained, by skew and passes, when the rule of advice was chosen.
SEEN_BEFORE_ADVICE = ((9, 5), (9, 20), (9, 80), (100, 20), (100, 80), (100, 130), (500, 130))


def unimax_cap(regime: Regime) -> float:
    """Return UniMax's cap on passes, which binds in every regime.

    It is 20 passes, which scarce data in a mixture are reported to bear (arXiv 2605.12715), or half the passes of
    uniform sampling where these are fewer than 40, but always a quarter more than the mean passes over all data.
    """
    sizes = regime.sizes
    uniform = regime.draws / len(sizes) / min(sizes.values())
    return max(min(20.0, uniform / 2), 1.25 * regime.draws / sum(sizes.values()))


Trainings = Mapping[str, Sequence[TrainedSystem]]  # of each system, by seed


def paired(trainings: Trainings, systems: Sequence[str]) -> Trainings:
    """Return the trainings of the seeds that all of some systems have."""
    shared = set.intersection(*({training.seed for training in trainings.get(system, ())} for system in systems))
    return {system: [t for t in trainings.get(system, ()) if t.seed in shared] for system in systems}


@dataclass(frozen=True)
class TextClaim:
    """A claim on real text.

    Attributes:
        name: R5 to R11 for those of the paper, O1 and O2 for our own.
        item: Figure or table.
        statement: What is claimed.
        systems: What must have been trained.
        parts: Measure the claim's parts.
    """

    name: str
    item: str
    statement: str
    systems: tuple[str, ...]
    parts: Callable[[Trainings], list[ClaimPart]]


def final_losses(trainings: Sequence[TrainedSystem], domain: str | None) -> Vector:
    """Return the last validation loss for each seed, of a language or (``None``) the mean of all."""
    return np.array([np.mean([t.final(d) for d in ([domain] if domain else t.losses)]) for t in trainings])


def rises(trainings: Sequence[TrainedSystem]) -> Vector:
    """Return the rare language's last loss less its lowest one, for each seed."""
    return np.array([training.final(RARE) - min(training.losses[RARE]) for training in trainings])


def gain(found: Trainings, system: str, over: str, domain: str | None, bound: float = 0.0) -> ClaimPart:
    """Return what a system's last loss is below another's, on a language or (``None``) on the mean of all."""
    values = final_losses(found[over], domain) - final_losses(found[system], domain)
    mean = "mean of both" if len(found[system][0].losses) == 2 else "mean of all"
    return ClaimPart(f"loss of {over} - {system}, {domain or mean}", values, bound)


def _early_gap(found: Trainings, tau: int, domain: str) -> Vector:
    """Return what scalarization is behind at a quarter of the steps."""
    quarter = found[f"scalarization {tau}"][0].steps[-1] // 4
    at = [
        np.array([t.losses[domain][t.steps.index(quarter)] for t in found[f"{kind} {tau}"]])
        for kind in ("scalarization", "temperature")
    ]
    return np.asarray(at[0] - at[1])


def _faster(found: Trainings) -> list[ClaimPart]:
    label = "loss of scalarization - temperature sampling at a quarter of the steps, tau = 5"
    return [ClaimPart(f"{label}, {d}", _early_gap(found, 5, d)) for d in (FREQUENT, RARE)]


def _gap_grows(found: Trainings) -> list[ClaimPart]:
    label = "that gap at tau = 100 - the gap at tau = 5"
    return [ClaimPart(f"{label}, {d}", _early_gap(found, 100, d) - _early_gap(found, 5, d)) for d in (FREQUENT, RARE)]


def _neither(found: Trainings) -> list[ClaimPart]:
    high, cooled = rises(found[TAU_100]), rises(found[COOLDOWN])
    return [
        gain(found, COOLDOWN, TAU_1, RARE),
        ClaimPart(f"rise of tau = 100 from its best, {RARE}", high, RISE),
        ClaimPart(f"rise of tau = 100 - rise of cooldown, {RARE}", high - cooled),
        gain(found, COOLDOWN, TAU_100, RARE),
    ]


def _gains(system: str, over: str, **bounds: float) -> Callable[[Trainings], list[ClaimPart]]:
    """Return the parts of one system over another: the least gain by language, or of the mean of both."""
    return lambda found: [
        gain(found, system, over, None if domain == "mean" else domain, bound) for domain, bound in bounds.items()
    ]


def _sparse(found: Trainings) -> list[ClaimPart]:
    bounds = {"mean": 0.0, FREQUENT: -MARGIN, RARE: -MARGIN}
    return [part for dense in (LINEAR, EXPONENTIAL) for part in _gains(COOLDOWN, dense, **bounds)(found)]


def _no_worse(over: str) -> Callable[[Trainings], list[ClaimPart]]:
    return _gains(COOLDOWN, over, **{FREQUENT: -MARGIN, RARE: -MARGIN})


CLAIMS = (
    TextClaim(
        "R5",
        "Figs. 4 and 8",
        "Temperature sampling learns faster than scalarization of the same temperature",
        (TAU_5, SCALARIZATION_5),
        _faster,
    ),
    TextClaim(
        "R5b",
        "Figs. 4 and 8",
        "The higher the temperature, the further scalarization is behind",
        (TAU_5, TAU_100, SCALARIZATION_5, SCALARIZATION_100),
        _gap_grows,
    ),
    TextClaim(
        "R6",
        "Fig. 1",
        "On the rare language tau = 1 underfits, tau = 100 overfits, and Cooldown does neither",
        (TAU_1, TAU_100, COOLDOWN),
        _neither,
    ),
    TextClaim(
        "R7",
        "Table 3",
        "Against tau = 5 Cooldown gains on the frequent language and loses nothing on the rare one",
        (TAU_5, COOLDOWN),
        _gains(COOLDOWN, TAU_5, **{FREQUENT: 0.0, RARE: -MARGIN}),
    ),
    TextClaim(
        "R7b",
        "Table 3",
        "Against tau = 1 Cooldown gains on the rare language and pays little on the frequent one",
        (TAU_1, COOLDOWN),
        _gains(COOLDOWN, TAU_1, **{FREQUENT: -MARGIN, RARE: 0.0}),
    ),
    TextClaim(
        "R7c",
        "Table 4",
        "Against tau = 100 Cooldown gains on both languages",
        (TAU_100, COOLDOWN),
        _gains(COOLDOWN, TAU_100, **{FREQUENT: 0.0, RARE: 0.0}),
    ),
    TextClaim(
        "R9",
        "Figs. 5 and 6",
        "One step down beats dense schedules (linear, exponential), and neither language pays for it",
        (COOLDOWN, LINEAR, EXPONENTIAL),
        _sparse,
    ),
    TextClaim(
        "R10",
        "Fig. 7",
        "Decreasing tau beats increasing it, on the rare language",
        (COOLDOWN, INCREASE),
        _gains(COOLDOWN, INCREASE, **{RARE: 0.0}),
    ),
    TextClaim(
        "R10b",
        "Fig. 7",
        "Decreasing tau beats increasing it, on the mean of both languages",
        (COOLDOWN, INCREASE),
        _gains(COOLDOWN, INCREASE, mean=0.0),
    ),
    TextClaim(
        "R11",
        "Tables 3 and 4",
        "Cooldown is at least as good as UniMax with a cap that binds",
        (COOLDOWN, UNIMAX),
        _no_worse(UNIMAX),
    ),
    TextClaim(
        "R11b",
        "Tables 3 and 4",
        "Cooldown is at least as good as UniMax front-loaded, as the paper describes it",
        (COOLDOWN, FRONT_LOADED),
        _no_worse(FRONT_LOADED),
    ),
    TextClaim(
        "R11c",
        "Tables 3 and 4",
        "Cooldown is at least as good as Order Matters with its restart",
        (COOLDOWN, ORDER_MATTERS),
        _no_worse(ORDER_MATTERS),
    ),
    TextClaim(
        "O1",
        "ours",
        "Cooldown beats the constant mixture with the same passes, on the mean of both languages",
        (COOLDOWN, AVERAGED),
        _gains(COOLDOWN, AVERAGED, mean=0.0),
    ),
    TextClaim(
        "O2",
        "ours",
        "UniMax front-loaded beats UniMax with the same passes, on the mean of both languages",
        (UNIMAX, FRONT_LOADED),
        _gains(FRONT_LOADED, UNIMAX, mean=0.0),
    ),
)


def parse_regime(text: str, claims: Sequence[str] = ()) -> Regime:
    """Return the regime of a text such as "100:130" or "50:100:300" (skew, passes, steps).

    Args:
        text: The regime. Where it is one of ``REGIMES``, its steps and systems are those.
        claims: Names of claims; only their systems are trained. By default, those of the map.

    Raises:
        ValueError: If the text or a claim's name is not understood.
    """
    fields = text.split(":")
    if len(fields) not in (2, 3) or not all(field.isdecimal() and int(field) > 0 for field in fields):
        raise ValueError(f"regime = {text!r}; expected SKEW:PASSES or SKEW:PASSES:STEPS, such as 100:130")
    skew, passes, *steps = map(int, fields)
    known = {(regime.skew, regime.passes): regime for regime in REGIMES}
    regime = known.get((skew, passes), Regime(skew, passes))
    by_name = {claim.name: claim for claim in CLAIMS}
    if unknown := [name for name in claims if name not in by_name]:
        raise ValueError(f"claim = {unknown[0]!r}; expected some of {', '.join(by_name)}")
    needed = {system for name in claims for system in by_name[name].systems}
    systems = tuple(system for system in ALL_SYSTEMS if system in needed) if claims else regime.systems
    return Regime(skew, passes, steps[0] if steps else regime.steps, systems)
