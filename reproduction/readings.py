"""Numbers in the handwritten part of the page of evidence: fields in double brackets, filled from the results.

* ``[[100:130 temperature 5 - cooldown ro]]``: how far the first system's mean validation loss is from the second's on a
  language or on the ``mean``, at the end of the training or (``... ro at 70``) after so many steps; without its sign.
* ``[[100:130 p for O1]]``, ``[[100:130 p against R11]]``: the p-value of a claim in a regime, after Holm's method.
* ``[[regret always cooldown]]``: the mean regret of a rule of advice.
* ``[[R4 trace, scalarization / temperature sampling]]``: the mean of a part of a claim that needs no regime.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from reproduction.reproduce import Result
from reproduction.rules import Regime, Trainings, paired
from reproduction.verdicts import judge, p_text

if TYPE_CHECKING:
    from pycooldown.mixture import Vector

_FIELD = re.compile(r"\[\[(.+?)\]\]")
_DIFFERENCE = re.compile(r"(?P<over>.+) - (?P<system>.+) (?P<domain>de|ro|mean)(?: at (?P<step>\d+))?")
NO_RESULT = "(no result)"


def fill(
    text: str, regimes: Mapping[Regime, Trainings], claims: Mapping[str, Result], regrets: Mapping[str, Vector]
) -> str:
    """Return the text with its fields filled and its lines broken anew.

    Where a result is missing, a field becomes ``NO_RESULT``.

    Raises:
        ValueError: If a field is not understood.
    """
    by_name = {f"{regime.skew}:{regime.passes}": trainings for regime, trainings in regimes.items()}

    def value(match: re.Match[str]) -> str:
        first, _, rest = match[1].partition(" ")
        if first == "regret":
            return f"{regrets[rest].mean():.3f}" if rest in regrets else NO_RESULT
        if ":" not in first:
            return _part(claims[first], rest) if first in claims else NO_RESULT
        if first not in by_name:
            return NO_RESULT
        kind, _, claim = rest.rpartition(" ")
        return _p_value(by_name[first], kind, claim) if kind.startswith("p ") else _difference(by_name[first], rest)

    return _wrap(_FIELD.sub(value, text))


def _wrap(text: str) -> str:
    """Break the lines of headings, paragraphs and list items, which begin at ``- ``, at a width of 120."""
    parts = re.split(r"(\n\n|\n(?=- ))", text)  # parts and what stands between them
    return "".join(
        textwrap.fill(
            " ".join(part.split()),
            120,
            subsequent_indent="  " * part.startswith("- "),
            break_long_words=False,
            break_on_hyphens=False,
        )
        if part.strip()
        else part
        for part in parts
    )


def _part(result: Result, label: str) -> str:
    found = [part.mean for part in result.parts if part.label == label]
    if not found:
        raise ValueError(f"{result.claim} has no part {label!r}; expected one of {[p.label for p in result.parts]}")
    return f"{found[0]:.2g}"


def _p_value(trainings: Trainings, kind: str, name: str) -> str:
    for judged in judge(trainings):
        if judged.claim.name == name:
            return p_text(judged.p_for if kind == "p for" else judged.p_against)
    return NO_RESULT


def _difference(trainings: Trainings, field: str) -> str:
    match = _DIFFERENCE.fullmatch(field)
    if match is None:
        raise ValueError(f"[[... {field}]]; expected SYSTEM - SYSTEM de|ro|mean, and perhaps at STEP")
    names = (match["over"], match["system"])
    if not set(names) <= set(trainings):
        return NO_RESULT
    shared = paired(trainings, names)
    if match["step"] and int(match["step"]) not in shared[names[0]][0].steps:
        return NO_RESULT
    over, system = (_mean_loss(shared, name, match["domain"], match["step"]) for name in names)
    return f"{abs(over - system):.2f}"


def _mean_loss(trainings: Trainings, system: str, domain: str, step: str | None) -> float:
    found: Sequence[float] = [
        float(np.mean([losses[t.steps.index(int(step)) if step else -1] for losses in _losses(t.losses, domain)]))
        for t in trainings[system]
    ]
    return float(np.mean(found))


def _losses(losses: Mapping[str, list[float]], domain: str) -> list[list[float]]:
    return list(losses.values()) if domain == "mean" else [losses[domain]]
