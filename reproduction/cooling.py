"""When cooling helps: the evidence of the study, which `pycooldown plan` has in short form.

The rules were fixed before the study was run.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from pycooldown.recipes.advice import Finding
from reproduction.claim import Quantity

STATIC, COOLDOWN = "temperature 5", "cooldown"
EVIDENCE = Path(__file__).with_name("cooling.json")


@dataclass(frozen=True)
class Regime:
    """The trainings at one skew and one number of steps.

    Attributes:
        sizes: Training samples of each domain, the rarest last.
        steps: Steps of each training.
        losses: Validation loss of each domain, for each system and seed, in nats a token.
        epochs: Mean passes through each domain, for each system.
    """

    sizes: Mapping[str, int]
    steps: int
    losses: Mapping[str, Sequence[Mapping[str, float]]]
    epochs: Mapping[str, Mapping[str, float]]

    @property
    def rarest(self) -> str:
        """The domain of the smallest size."""
        return min(self.sizes, key=lambda domain: self.sizes[domain])

    @property
    def exposure(self) -> float:
        """Epochs of the rarest domain at tau = 5."""
        return self.epochs[STATIC][self.rarest]

    @property
    def skew(self) -> float:
        """Size of the largest domain over that of the rarest."""
        return max(self.sizes.values()) / min(self.sizes.values())

    def gain(self, system: str, over: str = STATIC, *, part: str = "mean") -> Quantity:
        """Return the loss of ``over`` minus the loss of ``system``, paired by seed.

        Args:
            system: Name of the system.
            over: Name of the system that it is compared with.
            part: "rarest" domain, "others" (mean over the other domains) or "mean" (over all domains).
        """

        def loss(found: Mapping[str, float]) -> float:
            chosen = {
                "rarest": [self.rarest],
                "others": [d for d in self.sizes if d != self.rarest],
                "mean": list(self.sizes),
            }[part]
            return float(np.mean([found[d] for d in chosen]))

        pairs = zip(self.losses[over], self.losses[system], strict=True)
        return Quantity.of([loss(a) - loss(b) for a, b in pairs])

    @property
    def best_static(self) -> str:
        """The static temperature with the lowest mean over domains."""
        static = [system for system in self.losses if system.removeprefix("temperature ").isdigit()]
        return max(static, key=lambda system: self.gain(system).mean)

    @property
    def best(self) -> str:
        """The system with the lowest mean over domains, or static tau = 5 if it is within two standard errors."""
        best = max(self.losses, key=lambda system: self.gain(system).mean)
        return best if self.gain(best).is_positive else STATIC


@dataclass(frozen=True)
class Evidence:
    """What the study found, regime by regime."""

    regimes: Sequence[Regime]

    def save(self, path: Path) -> None:
        """Write JSON."""
        content = {"cells": [asdict(regime) for regime in self.regimes]}
        path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: Path = EVIDENCE) -> Evidence:
        """Read what `save` wrote; by default the study beside this file."""
        return cls([Regime(**found) for found in json.loads(path.read_text(encoding="utf-8"))["cells"]])

    def findings(self) -> list[Finding]:
        """Return the outcome of each regime, which `pycooldown plan` reads."""
        return [Finding(regime.exposure, regime.skew, describe(regime)) for regime in self.regimes]


def describe(regime: Regime) -> str:
    """Describe the outcome of a regime in a sentence."""
    verbs = {"better": "improved", "worse": "worsened", "no clear difference": "made no clear difference to"}
    parts = []
    for part, name in (("rarest", "the rarest domain"), ("others", "the others")):
        gain = regime.gain(COOLDOWN, part=part)
        parts.append(f"{verbs[outcome(gain)]} {name} ({-gain.mean:+.3f} ± {gain.standard_error:.3f} nats)")
    text = f"against static tau = 5, Cooldown {' and '.join(parts)}; "
    if regime.best == STATIC:
        return text + "no other system had a lower mean over domains by two standard errors."
    gain = regime.gain(regime.best)
    return text + f"the lowest mean over domains had {regime.best} ({-gain.mean:+.3f} ± {gain.standard_error:.3f})."


def outcome(gain: Quantity) -> Literal["better", "worse", "no clear difference"]:
    """Judge a gain by two standard errors over the paired seeds."""
    if gain.is_positive:
        return "better"
    return "worse" if Quantity(-gain.mean, gain.sd, gain.count).is_positive else "no clear difference"
