"""The sections of the page of evidence, in Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from pycooldown.mixture import Vector
from pycooldown.recipes.advice import Finding, nearest
from pycooldown.recipes.paired import paired_difference
from reproduction import blocks, groups, rules
from reproduction.blocks import BlockRegime
from reproduction.claims_variance import NORMS
from reproduction.groups import Scores
from reproduction.markdown import row, rule
from reproduction.reproduce import CLAIMS, Result
from reproduction.rules import CLAIMS as TEXT_CLAIMS
from reproduction.rules import (
    COOLDOWN,
    MAP_SYSTEMS,
    REGIMES,
    SEEN_BEFORE_ADVICE,
    TAU_5,
    Regime,
    Trainings,
    final_losses,
    unimax_cap,
)
from reproduction.texts import FREQUENT, RARE
from reproduction.translation import TrainedSystem
from reproduction.verdicts import PARTS_OF_MAP, Best, JudgedClaim, best_system, decide, judge, p_text

_SIGNS = {"reproduced": "yes", "not reproduced": "**no**", "inconclusive": "?"}


def verdicts(judged: Mapping[Regime, Sequence[JudgedClaim]]) -> str:
    """Return the table of claims by regime."""
    found = {regime: {j.claim.name: j.verdict for j in claims} for regime, claims in judged.items()}
    lines = [
        "## The claims by regime",
        "",
        f'Skew and passes over the rare language at tau = 5; "yes" is *reproduced*, "{_SIGNS["not reproduced"]}" is '
        '*not reproduced*, "?" is *inconclusive*; empty where the systems were not trained. O1 and O2 are ours.',
        "",
        row("", "item", "claim", *(regime.name for regime in found)),
        rule(3 + len(found)),
    ]
    for claim in TEXT_CLAIMS:
        signs = [_SIGNS.get(by_claim.get(claim.name, ""), "") for by_claim in found.values()]
        lines.append(row(claim.name, claim.item, claim.statement, *signs))
    return "\n".join(lines)


def best_by_regime(regimes: Mapping[Regime, Trainings]) -> str:
    """Return the map as a table."""
    lines = [
        "## The map of regimes",
        "",
        "The system with the lowest validation loss of five (tau = 1, 5, 100, Cooldown, UniMax with a cap that binds), "
        "and how far the next one is above it, with an interval of 95 % over the paired seeds. Bold where it is below "
        "all others by the tests; else the systems that the tests do not tell from it are named. *Passes* are those "
        "over the frequent language at tau = 5.",
        "",
        row("regime", "passes", *PARTS_OF_MAP),
        rule(2 + len(PARTS_OF_MAP)),
    ]
    for regime, trainings in regimes.items():
        passes = np.mean([t.epochs[FREQUENT] for t in trainings[TAU_5]])
        cells = [_best(best_system(trainings, domain)) for domain in PARTS_OF_MAP.values()]
        lines.append(row(regime.name, f"{passes:.1f}", *cells))
    missing = [r.name for r in REGIMES if not any((r.skew, r.passes) == (f.skew, f.passes) for f in regimes)]
    if missing:
        lines += ["", f"In the rules but not trained yet: {'; '.join(missing)}."]
    return "\n".join(lines)


def regrets(findings: Sequence[Finding]) -> dict[str, Vector]:
    """Return how far each rule's choice is above the best system in each regime, which the rule did not see, in nats.

    Returns:
        One value for each finding, by rule; empty for fewer than two findings.
    """
    if len(findings) < 2:
        return {}
    others = [nearest([f for f in findings if f is not left], left.passes, left.skew) for left in findings]
    choices = {
        "the advisor": [finding.advised for finding in others],
        "its first rule, the lowest mean of the nearest regime": [finding.best for finding in others],
        **{f"always {system}": [system] * len(findings) for system in MAP_SYSTEMS},
    }
    return {
        name: np.array([f.losses[system] - f.losses[f.best] for f, system in zip(findings, systems, strict=True)])
        for name, systems in choices.items()
    }


def advice_and_regret(regimes: Mapping[Regime, Trainings], findings: Sequence[Finding]) -> str:
    """Return the advisor's rule, and its regret when each regime in turn is left out."""
    lines = ["## What `pycooldown plan` advises", ""]
    if len(findings) < 2:
        return "\n".join([*lines, "Too few regimes to say how good its advice is."])
    later = [(f.skew, f.passes) not in SEEN_BEFORE_ADVICE for f in findings]
    lines += [
        "It looks up the nearest regime of the map and names Cooldown, unless another system had the lowest mean loss "
        "there and was told from Cooldown by the tests; further than a factor of 2 in passes or 3 in skew from all "
        'regimes it says "outside our evidence". To see what such advice is worth, each regime is left out in turn and '
        "the nearest of the others decides, however far it is. Regret is how much higher the mean loss over both "
        "languages is than that of the best of the five systems, in nats.",
        "",
        "The first rule named the lowest mean of the nearest regime. It was changed after a look at seven regimes, "
        "where it did worse than a constant; that constant, Cooldown, is the default now. So the first column flatters "
        "the advisor. The last column has the regimes that were trained after the change "
        f"({sum(later)} of {len(later)}).",
        "",
        row("rule", "mean regret", "largest regret", "where", "mean regret, later regimes"),
        rule(5),
    ]
    for name, found in regrets(findings).items():
        worst = list(regimes)[int(np.argmax(found))].name
        apart = f"{found[later].mean():.3f}" if any(later) else ""
        lines.append(row(name, f"{found.mean():.3f}", f"{found.max():.3f}", worst, apart))
    return "\n".join(lines)


def describe(trainings: Trainings) -> str:
    """Return the outcome of a regime in a few sentences."""
    best = best_system(trainings, None)
    sentences = [f"there {best.system} had the lowest mean loss over both languages{_ties(best)}."]
    for name, domain in (("rare", RARE), ("frequent", FREQUENT)):
        best = best_system(trainings, domain)
        sentences.append(f"Lowest on the {name} one: {best.system}{_ties(best)}.")
    changes = [
        f"{_change(trainings, COOLDOWN, TAU_5, domain)} nats on the {name} one"
        for name, domain in (("rare", RARE), ("frequent", FREQUENT))
    ]
    return " ".join([*sentences, f"Cooldown less tau = 5: {', '.join(changes)}."])


def regime_section(regime: Regime, trainings: Trainings, claims: Sequence[JudgedClaim]) -> str:
    """Return the losses of a regime, and each claim with its parts."""
    sizes = ", ".join(f"{size:,} {domain}" for domain, size in regime.sizes.items())
    lines = [
        f"## {regime.name}{' (about the paper' + chr(39) + 's regime)' if regime.is_paper else ''}",
        "",
        f"{sizes}; {regime.steps} steps; UniMax's cap is {unimax_cap(regime):.3g} passes. Validation loss, mean ± "
        "standard deviation over the seeds (passes), and the difference from tau = 5 with its 95 % interval:",
        "",
        row("system", "seeds", FREQUENT, RARE, *(f"{name}, less tau = 5" for name in (FREQUENT, RARE, "mean"))),
        rule(7),
    ]
    for system in (name for name in rules.ALL_SYSTEMS if name in trainings):
        found = trainings[system]
        cells = [str(len(found)), *(_level(found, domain) for domain in (FREQUENT, RARE))]
        changes = [
            "" if system == TAU_5 else _change(trainings, system, TAU_5, domain) for domain in (FREQUENT, RARE, None)
        ]
        lines.append(row(system, *cells, *changes))
    return "\n".join([*lines, "", *_claim_parts(claims)])


def blocks_section(regimes: Mapping[BlockRegime, Trainings]) -> str:
    """Return R8: the losses of each language and the claims, with their rules."""
    if not regimes:
        return ""
    lines = ["## Many times more English than Swahili (table 4, figure 6)", ""]
    lines.append((blocks.__doc__ or "").split("\n\n", 1)[1].strip())
    for regime, trainings in regimes.items():
        sizes = ", ".join(f"{size:,} {domain}" for domain, size in regime.sizes.items())
        lines += ["", f"### {' : '.join(str(count) for _, count in regime.proportions)}, {regime.passes} passes", ""]
        lines += [f"{sizes}; {regime.steps} steps. Validation loss, mean ± standard deviation over the seeds (passes):"]
        lines += ["", row("system", "seeds", *regime.sizes), rule(2 + len(regime.sizes))]
        for system in (name for name in rules.ALL_SYSTEMS if name in trainings):
            found = trainings[system]
            lines.append(row(system, str(len(found)), *(_level(found, domain) for domain in regime.sizes)))
        judged = judge(trainings, blocks.CLAIMS)
        lines += [""] + [f"* {j.claim.name} ({j.claim.item}): {j.claim.statement}: **{j.verdict}**." for j in judged]
        lines += ["", *_claim_parts(judged)]
    return "\n".join(lines)


def groups_section(scores: Scores) -> str:
    """Return table 3: the scores by group and the claims, with their rules."""
    if not scores:
        return ""
    lines = ["## Nine languages by groups of size (table 3)", "", (groups.__doc__ or "").split("\n\n", 1)[1].strip()]
    for measure, label in groups.MEASURES.items():
        lines += [
            "",
            f"{label}, mean ± standard deviation over the seeds:",
            "",
            row("recipe", "seeds", *groups.GROUPS),
        ]
        lines.append(rule(2 + len(groups.GROUPS)))
        for recipe, by_group in scores[measure].items():
            cells = [f"{by_group[g].mean():.1f} ± {by_group[g].std(ddof=1):.1f}" for g in groups.GROUPS]
            lines.append(row(recipe, str(len(by_group[groups.GROUPS[0]])), *cells))
    lines += ["", row("", "claim", "part", "mean ± sd", "must exceed", "verdict"), rule(6)]
    for judged in groups.judge(scores):
        for i, part in enumerate(judged.parts):
            first = (judged.name, judged.statement) if i == 0 else ("", "")
            bound = "" if part.bound is None else f"{part.bound:.3g}"
            lines.append(row(*first, part.label, str(part), bound, judged.verdict if i == 0 else ""))
    return "\n".join(lines)


def _claim_parts(claims: Sequence[JudgedClaim]) -> list[str]:
    lines = [row("", "part of the claim", "mean ± sd", "must exceed", "verdict (p for, against)"), rule(5)]
    for claim, parts, verdict, p_for, p_against in claims:
        for i, part in enumerate(parts):
            judgement = f"{verdict} ({p_text(p_for)}, {p_text(p_against)})" if i == 0 else ""
            lines.append(row(claim.name if i == 0 else "", part.label, str(part), f"{part.bound:g}", judgement))
    return lines


def _level(trainings: Sequence[TrainedSystem], domain: str) -> str:
    losses, passes = final_losses(trainings, domain), np.mean([t.epochs[domain] for t in trainings])
    deviation = f" ± {losses.std(ddof=1):.3f}" if len(losses) > 1 else ""
    return f"{losses.mean():.3f}{deviation} ({passes:.3g})"


def other_claims(results: Mapping[str, Result]) -> str:
    """Return the claims that need no regime."""
    if not results:
        return ""
    lines = [
        "## Theorems, gradients, and the second paper",
        "",
        "R12 to R15 are small reconstructions on synthetic data or digits. Judged together, in the same way; a number "
        "without a bound decides nothing.",
        "",
        row("", "item", "claim", "verdict"),
        rule(4),
    ]
    judged = dict(zip(results, decide([result.parts for result in results.values()]), strict=True))
    for name, (verdict, *_) in judged.items():
        lines.append(row(name, CLAIMS[name].item, CLAIMS[name].statement, f"**{verdict}**"))
    for name, (verdict, p_for, p_against) in judged.items():
        claim = CLAIMS[name]
        lines += ["", f"### {name}: {claim.item}", "", f"{claim.statement}. *Rule:* {claim.rule}. *In the paper:* "]
        lines[-1] += f"{claim.paper_scale}. **{verdict}** (p for it: {p_text(p_for)}; against: {p_text(p_against)})."
        lines += ["", claim.note] if claim.note else []
        lines += ["", row("measured", "mean ± sd", "must exceed"), rule(3)]
        for part in (part for part in results[name].parts if not part.label.startswith(NORMS)):
            lines.append(row(part.label, str(part), "" if part.bound is None else f"{part.bound:.4g}"))
    return "\n".join(lines)


def _change(trainings: Trainings, system: str, over: str, domain: str | None) -> str:
    shared = rules.paired(trainings, (system, over))
    if len(shared[over]) < 2:
        return ""
    values, baseline = (final_losses(shared[name], domain).tolist() for name in (system, over))
    return str(paired_difference(values, baseline))


def _best(best: Best) -> str:
    text = f"**{best.system}**" if best.clear else best.system
    return f"{text} {best.margin}{_ties(best)}"


def _ties(best: Best) -> str:
    return "" if best.clear else f" (not told from {', '.join(best.ties)})"
