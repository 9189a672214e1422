"""Advice on a mixture, based on trainings at several exposures and skews. There is none outside their range."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from pycooldown.mixture import temperature

STORED = Path(__file__).with_name("advice.json")
# The largest distance between a setting and a trained regime, as factors of passes and of skew. The rarest domain's
# share at tau = 5 varies with the fifth root of the skew.
NEAR_PASSES, NEAR_SKEW = 2.0, 3.0
DEFAULT = "cooldown"  # the advice if no other system was clearly better


@dataclass(frozen=True)
class Finding:
    """The outcome in one regime.

    Attributes:
        passes: Passes over the rarest domain at tau = 5.
        skew: Size of the largest domain over that of the rarest.
        losses: Validation loss of each system: the mean over domains and seeds, in nats a token.
        advised: The system advised there: Cooldown, unless another was clearly better.
        outcome: The result there, in one sentence.
    """

    passes: float
    skew: float
    losses: Mapping[str, float]
    advised: str
    outcome: str

    @property
    def best(self) -> str:
        """The system with the lowest loss."""
        return min(self.losses, key=lambda system: self.losses[system])

    def distance(self, passes: float, skew: float) -> float:
        """Return the distance of a setting from the regime, in logarithms of passes and of the skew's fifth root."""
        return math.hypot(math.log(self.passes / passes), math.log(self.skew / skew) / 5)

    def is_near(self, passes: float, skew: float) -> bool:
        """Return whether a setting is near enough to the regime."""
        ratios = ((self.passes / passes, NEAR_PASSES), (self.skew / skew, NEAR_SKEW))
        return all(1 / factor <= ratio <= factor for ratio, factor in ratios)


def load(path: Path = STORED) -> list[Finding]:
    """Read findings, by default those of the package."""
    return [Finding(**row) for row in json.loads(path.read_text(encoding="utf-8"))]


def save(findings: Sequence[Finding], path: Path) -> None:
    """Write findings as JSON."""
    rows = json.dumps([asdict(finding) for finding in findings], indent=1, ensure_ascii=False)
    path.write_text(rows + "\n", encoding="utf-8")


def nearest(findings: Sequence[Finding], passes: float, skew: float) -> Finding:
    """Return the finding of the nearest regime, at any distance."""
    return min(findings, key=lambda finding: finding.distance(passes, skew))


def advise(sizes: Mapping[str, int], num_samples: int, findings: Sequence[Finding] | None = None) -> str:
    """Return the advice for domains like these, as text.

    Args:
        sizes: Training samples of each domain.
        num_samples: Samples that the run draws: its steps times its batch size.
        findings: By default those of the package.
    """
    findings = load() if findings is None else findings
    counts = np.array(list(sizes.values()), dtype=np.float64)
    i = int(counts.argmin())
    passes = float(temperature(counts, 5)[i] * num_samples / counts[i])
    skew = float(counts.max() / counts[i])
    found = (
        f"At tau = 5 the rarest domain, {list(sizes)[i]}, would be passed through {_short(passes)} times (sizes up to "
        f"{_short(skew)}:1). "
    )
    near = [finding for finding in findings if finding.is_near(passes, skew)]
    if not near:
        tried = ", ".join(f"{f.passes:.0f} passes at {f.skew:g}:1" for f in sorted(findings, key=lambda f: f.passes))
        return (
            f"{found}That is outside our evidence (docs/evidence.md: {tried}; small models, two languages): no advice. "
            "Try a few methods with `pycooldown sweep`."
        )
    finding = nearest(near, passes, skew)
    return (
        f"{found}The nearest of our trials (docs/evidence.md; small models, two languages) has {finding.passes:.0f} "
        f"passes at {finding.skew:g}:1: {finding.outcome} From it we advise {finding.advised}, "
        + ("as no other was clearly better." if finding.advised == DEFAULT else f"clearly better than {DEFAULT} there.")
    )


def _short(number: float) -> str:
    """Return a number with three digits, or all of them before the point: 0.02, 5.68, 2,702."""
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"
