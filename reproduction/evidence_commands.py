"""The last sections of the page of evidence: the rules, the commands that make it, and what they take."""

from __future__ import annotations

from collections.abc import Mapping

from reproduction import groups, rules
from reproduction.blocks import BlockRegime
from reproduction.markdown import row, rule
from reproduction.reproduce import Result
from reproduction.rules import CLAIMS, Regime, Trainings


def method(
    regimes: Mapping[Regime, Trainings], of_blocks: Mapping[BlockRegime, Trainings], results: Mapping[str, Result]
) -> str:
    """Return the rules, the commands and their costs."""
    text = rules.__doc__ or ""
    lines = [
        "## The rules",
        "",
        "They stand in `reproduction/rules.py`, whose first commit precedes that of any result:",
        "",
        text.split("\n\n", 1)[1].strip(),
        "",
        f"LEVEL = {rules.LEVEL:g}; MARGIN = {rules.MARGIN:g} nats a token; MIN_SEEDS = {rules.MIN_SEEDS}. A validation "
        f"loss that ends {rules.RISE:g} nats above its best has overfitted (R6).",
        "",
        "## Run it",
        "",
        "Minutes are those of one processor (AMD EPYC, Zen 5, which was shared); two workers take half by the clock.",
        "",
        "```",
        "python -m reproduction corpus evidence/corpus --languages de,ro",
        "pycooldown pack evidence/corpus evidence/packed",
        "python -m reproduction regimes evidence/packed --folder evidence --results reproduction/results/regimes"
        f"   # {_minutes(*regimes.values()):.0f} minutes",
        "python -m reproduction packages four/documents",
        "pycooldown tokenize four/tokens four/documents --train-tokenizer bpe --vocabulary-size 4000 --validation 60",
        f"python -m reproduction blocks four/tokens --results reproduction/results/blocks   # R8, "
        f"{_minutes(*of_blocks.values()):.0f} minutes",
        "python -m reproduction corpus table3/corpus --languages es,de,cs,fr,nl,pt,ro,gl,da",
        "pycooldown pack table3/corpus table3/packed",
        "pycooldown sweep recipes/table3/*.yaml --seeds 0,1,2,3,4,5,6,7 --output table3/runs"
        f"   # {groups.MINUTES} minutes",
        "python -m reproduction groups table3/runs --results reproduction/results/groups/table3.csv",
        "python -m reproduction reproduce --data evidence/packed --results reproduction/results/claims"
        f"   # {sum(r.cpu_seconds for r in results.values()) / 60:.0f} minutes",
        "python -m reproduction page --advice pycooldown/recipes/advice.json   # this page, from reproduction/results",
        "```",
        "",
        "Regimes: " + "; ".join(f"{r.name}: {_minutes(t):.0f} minutes" for r, t in regimes.items()) + ".",
    ]
    paper = next((trainings for regime, trainings in regimes.items() if regime.is_paper), None)
    if paper:
        lines += ["", *_one_claim(paper)]
    return "\n".join(lines)


def _one_claim(trainings: Trainings) -> list[str]:
    """Return how to judge one claim elsewhere, and what its trainings took."""
    lines = [
        "## One claim in a regime of your own",
        "",
        "```",
        "python -m reproduction regimes evidence/packed --regime 50:100 --claim R7 --workers 2   # SKEW:PASSES[:STEPS]",
        "python -m reproduction blocks four/tokens --size en=100 --size it=10 --size sw=1 --passes 20 --workers 2",
        "pycooldown sweep recipes/table3/{temperature5,cooldown}.yaml mixture.tau=3 --seeds 0,1,2,3,4,5,6,7 "
        "--workers 2 --output own",
        "```",
        "",
        "The first trains only the systems that the claim needs, with 8 seeds, and judges it by the rules above:",
        "",
        row("claim", "systems", "minutes of a processor"),
        rule(3),
    ]
    for claim in CLAIMS:
        if set(claim.systems) <= set(trainings):
            needed = {system: trainings[system] for system in claim.systems}
            lines.append(row(claim.name, ", ".join(claim.systems), f"{_minutes(needed):.1f}"))
    return lines


def _minutes(*trainings: Trainings) -> float:
    return sum(t.cpu_seconds for by_system in trainings for found in by_system.values() for t in found) / 60
