"""Advice on cooling from the outcomes of a study at several exposures and skews."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from pycooldown.mixture import temperature

STORED = Path(__file__).with_name("advice.json")


@dataclass(frozen=True)
class Finding:
    """The outcome of the study in one setting.

    Attributes:
        exposure: Epochs of the rarest domain at tau = 5.
        skew: Size of the largest domain over that of the rarest.
        outcome: What cooling did there, in a sentence.
    """

    exposure: float
    skew: float
    outcome: str


def load(path: Path = STORED) -> list[Finding]:
    """Read findings, by default those that come with the package."""
    return [Finding(**row) for row in json.loads(path.read_text(encoding="utf-8"))]


def save(findings: Sequence[Finding], path: Path) -> None:
    """Write findings as JSON."""
    rows = json.dumps([asdict(finding) for finding in findings], indent=1, ensure_ascii=False)
    path.write_text(rows + "\n", encoding="utf-8")


def nearest(findings: Sequence[Finding], exposure: float, skew: float) -> Finding | None:
    """Return the finding that stands for a setting, or ``None`` outside the study's range.

    The range of exposures ends with the study's. The rarest domain's share at tau = 5 goes with the fifth root of the
    skew, so a skew stands for others up to twice as far.
    """
    exposures, skews = [f.exposure for f in findings], [f.skew for f in findings]
    near = min(skews) / 2 <= skew <= 2 * max(skews)
    if not (near and round(min(exposures)) <= exposure <= round(max(exposures))):
        return None

    def distance(finding: Finding) -> float:
        return math.hypot(math.log(finding.exposure / exposure), math.log(finding.skew / skew) / 5)

    return min(findings, key=distance)


def advise(sizes: Mapping[str, int], num_samples: int, findings: Sequence[Finding] | None = None) -> str:
    """Say what the study found about cooling for domains like these.

    Args:
        sizes: Training samples of each domain.
        num_samples: Samples that the run draws: its steps times its batch size.
        findings: Those that come with the package by default.
    """
    findings = load() if findings is None else findings
    counts = np.array(list(sizes.values()), dtype=np.float64)
    i = int(counts.argmin())
    exposure = float(temperature(counts, 5)[i] * num_samples / counts[i])
    skew = float(counts.max() / counts[i])
    found = (
        f"At tau = 5 the rarest domain, {list(sizes)[i]}, would be passed through {exposure:.3g} times (sizes up to "
        f"{skew:.3g}:1). "
    )
    exposures, skews = [f.exposure for f in findings], [f.skew for f in findings]
    study = (
        f"our study (docs/cooldown.md: {min(exposures):.0f} to {max(exposures):.0f} epochs, skews "
        f"{min(skews):g} and {max(skews):g}, small models)"
    )
    finding = nearest(findings, exposure, skew)
    if finding is None:
        return f"{found}That is outside of {study}: no advice."
    return f"{found}Nearest in {study} is {finding.exposure:.0f} epochs at {finding.skew:g}:1: {finding.outcome}"
