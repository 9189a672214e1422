"""When cooling helps: the evidence of the study, of which `pycooldown plan` has a summary.

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
STORED = Path(__file__).with_name("cooling.json")


@dataclass(frozen=True)
class Cell:
    """The trainings at one skew and one number of steps.

    Attributes:
        sizes: training samples of each domain, the rarest last.
        steps: of each training.
        losses: validation loss of each domain, of each system and seed, nats a token.
        epochs: mean passes through each domain, of each system.
    """

    sizes: Mapping[str, int]
    steps: int
    losses: Mapping[str, Sequence[Mapping[str, float]]]
    epochs: Mapping[str, Mapping[str, float]]

    @property
    def rarest(self) -> str:
        """The domain that the epochs are counted of."""
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
        """Loss of ``over`` minus loss of ``system``, paired by seed.

        Args:
            system: its name.
            over: the one it is compared with.
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
        """The static temperature of the lowest mean over domains."""
        static = [system for system in self.losses if system.removeprefix("temperature ").isdigit()]
        return max(static, key=lambda system: self.gain(system).mean)

    @property
    def best(self) -> str:
        """The system of the lowest mean over domains, or static tau = 5 if it is not better by two standard errors."""
        best = max(self.losses, key=lambda system: self.gain(system).mean)
        return best if self.gain(best).is_positive else STATIC


@dataclass(frozen=True)
class Evidence:
    """What the study found, cell by cell."""

    cells: Sequence[Cell]

    def save(self, path: Path) -> None:
        """Writes JSON."""
        path.write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: Path = STORED) -> Evidence:
        """Reads what `save` wrote; by default the study beside this file."""
        return cls([Cell(**cell) for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]])

    def findings(self) -> list[Finding]:
        """What `pycooldown plan` needs of it: the outcome of each cell."""
        return [Finding(cell.exposure, cell.skew, summary(cell)) for cell in self.cells]


def summary(cell: Cell) -> str:
    """The outcome of a cell in a sentence."""
    verbs = {"better": "improved", "worse": "worsened", "no clear difference": "made no clear difference to"}
    parts = []
    for part, name in (("rarest", "the rarest domain"), ("others", "the others")):
        gain = cell.gain(COOLDOWN, part=part)
        parts.append(f"{verbs[outcome(gain)]} {name} ({-gain.mean:+.3f} ± {gain.standard_error:.3f} nats)")
    text = f"against static tau = 5, Cooldown {' and '.join(parts)}; "
    if cell.best == STATIC:
        return text + "no other system had a lower mean over domains by two standard errors."
    gain = cell.gain(cell.best)
    return text + f"the lowest mean over domains had {cell.best} ({-gain.mean:+.3f} ± {gain.standard_error:.3f})."


def outcome(gain: Quantity) -> Literal["better", "worse", "no clear difference"]:
    """By two standard errors over the paired seeds."""
    if gain.is_positive:
        return "better"
    return "worse" if Quantity(-gain.mean, gain.sd, gain.count).is_positive else "no clear difference"
