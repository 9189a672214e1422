"""The page of evidence: the papers' claims, the regimes in which they hold, and our advice."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pycooldown.recipes import advice
from pycooldown.recipes.advice import Finding
from reproduction import (
    blocks,
    evidence_commands,
    evidence_figures,
    evidence_tables,
    groups,
    kept,
    readings,
    regimes,
    reproduce,
    rules,
)
from reproduction.blocks import BlockRegime
from reproduction.groups import Scores
from reproduction.reproduce import Result
from reproduction.rules import MIN_SEEDS, TAU_5, Regime, Trainings
from reproduction.verdicts import advised, judge, mean_losses

_TEXT = Path(__file__).with_name("evidence.md")  # the text before the first table; see `readings`


@dataclass(frozen=True)
class Evidence:
    """All results.

    Attributes:
        regimes: The trainings of each regime that has enough seeds of the map's systems.
        claims: The results of the claims that need no regime.
        blocks: The trainings of R8.
        groups: BLEU and chrF by groups of languages, of table 3.
    """

    regimes: Mapping[Regime, Trainings]
    claims: Mapping[str, Result]
    blocks: Mapping[BlockRegime, Trainings] = field(default_factory=dict)
    groups: Scores = field(default_factory=dict)

    def findings(self) -> list[Finding]:
        """Return the outcome of each regime, which `pycooldown plan` reads."""
        return [
            Finding(
                regime.passes,
                regime.skew,
                {system: round(loss, 4) for system, loss in mean_losses(trainings).items()},
                advised(trainings),
                evidence_tables.describe(trainings),
            )
            for regime, trainings in self.regimes.items()
        ]


def read_evidence(folder: Path | None = None) -> Evidence:
    """Read results from a folder with regimes/, blocks/, groups/ and claims/ of CSV, by default the one beside this."""
    found = regimes.read_all(folder / "regimes" if folder else regimes.RESULTS)
    complete = {
        regime: trainings
        for regime, trainings in found.items()
        if len(rules.paired(trainings, rules.MAP_SYSTEMS)[TAU_5]) >= MIN_SEEDS
    }
    return Evidence(
        complete,
        reproduce.read_results(folder / "claims" if folder else reproduce.RESULTS),
        blocks.read_results(folder / "blocks" if folder else blocks.RESULTS),
        groups.read_scores(folder / "groups" / "table3.csv" if folder else groups.RESULTS),
    )


def save_page(evidence: Evidence, out: Path, advice_path: Path | None = None) -> list[Path]:
    """Write evidence.md, its figures and, if a path is given, the advice; return the paths of written files."""
    pictures = evidence_figures.draw(evidence.regimes, evidence.claims, out / "figures", evidence.blocks)
    relative = {caption: f"figures/{path.name}" for caption, path in pictures.items()}
    kept.write_text(out / "evidence.md", page(evidence, relative))
    if advice_path is not None:
        advice.save(evidence.findings(), advice_path)
    return [out / "evidence.md", *pictures.values(), *([advice_path] if advice_path else [])]


def page(evidence: Evidence, pictures: Mapping[str, str]) -> str:
    """Write the page in Markdown.

    Args:
        evidence: All results.
        pictures: Paths of images, relative to the page, by caption.
    """
    judged = {regime: judge(trainings) for regime, trainings in evidence.regimes.items()}
    findings = evidence.findings()
    text = _TEXT.read_text(encoding="utf-8").rstrip()
    parts = [
        readings.fill(text, evidence.regimes, evidence.claims, evidence_tables.regrets(findings)),
        evidence_tables.verdicts(judged),
        evidence_tables.best_by_regime(evidence.regimes),
        _images(pictures, evidence_figures.MAP),
        evidence_tables.advice_and_regret(evidence.regimes, findings),
    ]
    for regime, claims in sorted(judged.items(), key=lambda item: -len(item[0].systems)):
        parts.append(evidence_tables.regime_section(regime, evidence.regimes[regime], claims))
        if regime.is_paper:
            parts.append(_images(pictures, *evidence_figures.LOSSES))
    parts.append(evidence_tables.blocks_section(evidence.blocks))
    parts.append(_images(pictures, evidence_figures.BLOCKS))
    parts.append(evidence_tables.groups_section(evidence.groups))
    parts.append(evidence_tables.other_claims(evidence.claims))
    parts.append(_images(pictures, *evidence_figures.THEORY))
    parts.append(evidence_commands.method(evidence.regimes, evidence.blocks, evidence.claims))
    return "\n\n".join(part for part in parts if part) + "\n"


def _images(pictures: Mapping[str, str], *captions: str) -> str:
    return "\n\n".join(f"{c}:\n\n![{c}]({pictures[c]})" for c in captions if c in pictures)
