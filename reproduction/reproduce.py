"""Measure the claims that need no regime: theorems, variance, DoReMi and noisy domains."""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from reproduction import claims_analytic, claims_noisy, claims_variance, kept
from reproduction.claim import Bench, Claim, ClaimPart

CLAIMS: dict[str, Claim] = {c.name: c for c in (*claims_analytic.CLAIMS, *claims_variance.CLAIMS, *claims_noisy.CLAIMS)}
RESULTS = Path(__file__).with_name("results") / "claims"
_COLUMNS = ("claim", "quantity", "bound", "seed", "value", "cpu")


@dataclass(frozen=True)
class Result:
    """The result of one claim.

    Attributes:
        claim: Name of the claim.
        parts: The measurements.
        cpu_seconds: CPU time of this process and of its workers.
    """

    claim: str
    parts: Sequence[ClaimPart]
    cpu_seconds: float


def reproduce(
    folder: Path,
    *,
    data: Path | None = None,
    claims: Sequence[str] = (),
    seeds: int = 8,
    workers: int = 1,
    results: Path | None = None,
    progress: Callable[[Result], None] | None = None,
) -> list[Result]:
    """Measure claims, and write a CSV of each.

    Args:
        folder: Folder for trainings.
        data: Packed data with German and Romanian, for R4 and R4b.
        claims: Names of claims; by default all whose data are given.
        seeds: Paired seeds of R3, R4, R4b and R12; R13 to R15 have their own numbers.
        workers: Processes that train in parallel.
        results: Folder of the CSV; ``folder / "results"`` by default.
        progress: Called with each result.

    Raises:
        ValueError: If a name is unknown, ``seeds`` is too small, or R4 or R4b is asked for without data.
    """
    if unknown := [name for name in claims if name not in CLAIMS]:
        raise ValueError(f"claims contains {unknown[0]!r}; expected some of {', '.join(CLAIMS)}")
    if seeds < 4:
        raise ValueError(f"seeds = {seeds}; expected at least 4, for differences to have a spread")
    if needing := [name for name in claims if CLAIMS[name].needs_text and data is None]:
        raise ValueError(f"{needing[0]} needs packed data with German and Romanian; pass --data FOLDER")
    found = []
    for claim in (CLAIMS[name] for name in (claims or CLAIMS)):
        if claim.needs_text and data is None:
            continue
        start = _processor_seconds()
        parts = claim.test(Bench(folder, data, seeds, workers))
        found.append(Result(claim.name, parts, round(_processor_seconds() - start, 1)))
        write_result(found[-1], (results or folder / "results") / f"{claim.name}.csv")
        if progress:
            progress(found[-1])
    return found


def _processor_seconds() -> float:
    """Return the CPU time of this process and of its workers that have ended."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def write_result(result: Result, path: Path) -> None:
    """Write a row for each value of each quantity."""
    lines = [",".join(_COLUMNS)]
    for part in result.parts:
        bound = "" if part.bound is None else f"{part.bound:.9g}"
        for seed, value in enumerate(part.values.tolist()):
            quantity = '"' + part.label.replace('"', '""') + '"'
            lines.append(f"{result.claim},{quantity},{bound},{seed},{value:.9g},{result.cpu_seconds:g}")
    kept.write_text(path, "\n".join(lines) + "\n")


def read_results(folder: Path = RESULTS) -> Mapping[str, Result]:
    """Read the files of `write_result`, in the order of the claims."""
    found = {}
    for name in CLAIMS:
        if (path := folder / f"{name}.csv").exists():
            with open(path, encoding="utf-8", newline="") as file:
                rows = list(csv.DictReader(file))
            values: dict[tuple[str, str], list[float]] = {}
            for row in rows:
                values.setdefault((row["quantity"], row["bound"]), []).append(float(row["value"]))
            parts = [
                ClaimPart(label, np.array(found_values), float(bound) if bound else None)
                for (label, bound), found_values in values.items()
            ]
            found[name] = Result(name, parts, float(rows[0]["cpu"]))
    return found
