"""Compare finished runs: a table, a summary sentence and figures."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import partial
from html import escape
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

import numpy as np

from pycooldown import plots
from pycooldown._html import table
from pycooldown.recipes.history import Run

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Smaller differences, in nats per token, count as ties: seeds alone differ by about as much.
_TIE = 0.005


@dataclass(frozen=True)
class DomainResult:
    """A run's validation loss (nats per token) and passes through a domain; for a group, their means over its domains.

    ``bleu`` and ``chrf`` (0 to 100) are set if the run translated validation pairs.
    """

    loss: float
    epochs: float
    bleu: float | None = None
    chrf: float | None = None


@dataclass(frozen=True)
class DomainRow:
    """A domain, or a group of domains.

    Attributes:
        name: The domain, or "high-resource", "mid-resource", "low-resource" or "all".
        size: Training samples.
        cells: One result for each run.
        domains: The domains of a group; empty for a domain.
    """

    name: str
    size: int
    cells: tuple[DomainResult, ...]
    domains: tuple[str, ...] = ()

    @property
    def best(self) -> int:
        """Return the position of the run with the lowest loss; a loss that is not finite counts as the highest."""
        return min(range(len(self.cells)), key=lambda i: _rank(self.cells[i].loss))


@dataclass(frozen=True)
class Comparison:
    """The result of `compare`.

    Attributes:
        runs: The runs in the order given.
        rows: The domains, largest first.
        groups: High-, mid- and low-resource thirds of the domains (fewer groups below 3 domains), then all.
        sentence: The result in words.
    """

    runs: tuple[Run, ...]
    rows: tuple[DomainRow, ...]
    groups: tuple[DomainRow, ...]
    sentence: str

    def _repr_html_(self) -> str:
        rows = [
            (row.name, f"{row.size:,}", *(f"{cell.loss:.3f} ({cell.epochs:.1f})" for cell in row.cells))
            for row in (*self.rows, *self.groups)
        ]
        columns = ("domain", "size", *(run.name for run in self.runs))
        return table(columns, rows, "validation loss, nats a token (epochs of the domain)") + (
            f"<p>{escape(self.sentence)}</p>"
        )

    def figures(self) -> dict[str, Figure]:
        """Return the figures for which there are logs: losses by step and by epoch, and shares over time.

        Shares are the planned ones (q), and the realised ones of samples and of tokens.

        Raises:
            ImportError: If matplotlib is not installed.
        """
        domains = [row.name for row in self.rows]
        wanted: dict[str, tuple[Callable[..., Figure], Callable[[Run], dict[str, plots.Curve]], dict[str, Any]]] = {
            "loss_by_step": (plots.loss_curves, _losses, {"x_label": "step"}),
            "loss_by_epoch": (plots.loss_curves, _losses_by_epoch, {"x_label": "epochs of the domain", "log_x": True}),
            "q_over_time": (plots.sampling_over_time, _sampling, {}),
            "samples_over_time": (
                plots.sampling_over_time,
                partial(_drawn, name="samples"),
                {"y_label": "share of samples so far"},
            ),
            "tokens_over_time": (
                plots.sampling_over_time,
                partial(_drawn, name="tokens"),
                {"y_label": "share of tokens so far"},
            ),
        }
        return {
            name: draw(curves, **options)
            for name, (draw, read, options) in wanted.items()
            if (curves := _by_run(self.runs, domains, read))
        }

    def save_figures(self, folder: str | Path) -> list[Path]:
        """Write the `figures` as ``loss_by_step.png``, ``q_over_time.png``, ...

        Raises:
            ImportError: If matplotlib is not installed.
        """
        figures = self.figures()
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        paths = [folder / f"{name}.png" for name in figures]
        for path, figure in zip(paths, figures.values(), strict=True):
            figure.savefig(path)
        return paths


_EXTENT = (
    "max_length",
    "length",
    "mode",
    "intra_document_attention",
)  # keys that decide which tokens are in a loss


def compare(folders: Sequence[str | Path]) -> Comparison:
    """Compare finished runs on the same data.

    Raises:
        ValueError: If there is no run, one is not finished, or their losses cannot be compared because data, domains,
            sequence lengths or measures differ.
    """
    if not folders:
        raise ValueError("runs are missing; expected folders written by `pycooldown train`")
    runs = tuple(Run.read(folder) for folder in folders)
    first = runs[0]
    for run in runs[1:]:
        for what, mine, theirs in (
            ("data", first.recipe["fingerprint"], run.recipe["fingerprint"]),
            ("domains", first.sizes, run.sizes),
            *((f"data.{name}", first.recipe["data"].get(name), run.recipe["data"].get(name)) for name in _EXTENT),
            ("data.eval_samples", first.recipe["data"]["eval_samples"], run.recipe["data"]["eval_samples"]),
            ("model.family", _family(first), _family(run)),
            ("decoding", first.recipe.get("decoding"), run.recipe.get("decoding")),
        ):
            if mine != theirs:
                raise ValueError(
                    f"{run.path} and {first.path} differ in {what}, so their losses cannot be compared; leave one out"
                )
    if len({run.name for run in runs}) < len(runs):
        raise ValueError(f"several runs have the same name: {', '.join(run.name for run in runs)}; rename a folder")
    rows = tuple(
        DomainRow(domain, size, tuple(_cell(run, domain) for run in runs))
        for domain, size in sorted(first.sizes.items(), key=lambda item: (-item[1], item[0]))
    )
    groups = _groups([row for row in rows if "loss" in first.summary["domains"][row.name]])
    return Comparison(runs, rows, groups, _sentence(runs, groups))


def _rank(loss: float) -> float:
    return loss if math.isfinite(loss) else math.inf


def _cell(run: Run, domain: str) -> DomainResult:
    entry = run.summary["domains"][domain]
    return DomainResult(entry.get("loss", math.nan), entry["epochs"], entry.get("bleu"), entry.get("chrf"))


def _family(run: Run) -> Any:
    return run.recipe.get("model", {}).get("family", "llama")


def _groups(rows: Sequence[DomainRow]) -> tuple[DomainRow, ...]:
    names = ("high-resource", "mid-resource", "low-resource") if len(rows) >= 3 else ()
    thirds = np.array_split(np.arange(len(rows)), len(names)) if names else []
    parts = [(name, [rows[i] for i in third]) for name, third in zip(names, thirds, strict=True)]
    return tuple(_group(name, part) for name, part in [*parts, ("all", list(rows))])


def _group(name: str, rows: Sequence[DomainRow]) -> DomainRow:
    def mean(column: Sequence[DomainResult], name: str) -> Any:
        values = [getattr(cell, name) for cell in column]
        return None if None in values else fmean(values)

    cells = tuple(
        DomainResult(*(mean(column, field.name) for field in fields(DomainResult)))
        for column in zip(*(row.cells for row in rows), strict=True)
    )
    return DomainRow(name, sum(row.size for row in rows), cells, tuple(row.name for row in rows))


def _sentence(runs: Sequence[Run], groups: Sequence[DomainRow]) -> str:
    if len(runs) == 1:
        return f"Mean validation loss over domains: {groups[-1].cells[0].loss:.3f} nats a token."
    clauses = [_clause(runs, group) for group in groups if group.name in ("high-resource", "low-resource", "all")]
    for i, run in enumerate(runs):
        if run.recipe["mixture"]["method"] == "cooldown":
            overall = groups[-1]
            behind = overall.cells[i].loss - overall.cells[overall.best].loss
            verdict = f"did not win, {behind:.3f} behind {runs[overall.best].name}" if overall.best != i else "won"
            clauses.append(f"so over all domains {run.name} {verdict}" if len(groups) > 1 else f"{run.name} {verdict}")
    return "; ".join(clauses) + " (nats a token, means over domains, one seed)."


def _clause(runs: Sequence[Run], group: DomainRow) -> str:
    order = sorted(range(len(runs)), key=lambda i: _rank(group.cells[i].loss))
    best, second = order[0], order[1]
    gap = group.cells[second].loss - group.cells[best].loss
    lead = f"{gap:.3f} below {runs[second].name}" if gap >= _TIE else f"as good as {runs[second].name}"
    where = f"on {group.name} domains ({', '.join(group.domains)})" if group.name != "all" else "over all domains"
    epochs = f", after {group.cells[best].epochs:.1f} epochs of them" if group.name == "low-resource" else ""
    return f"{where} {runs[best].name} has the lowest loss, {group.cells[best].loss:.3f}, {lead}{epochs}"


def _by_run(
    runs: Sequence[Run], domains: Sequence[str], read: Callable[[Run], dict[str, plots.Curve]]
) -> dict[str, dict[str, plots.Curve]]:
    """Return curves by run and by domain, largest domain first, for the runs and domains that have any."""
    found = {run.name: read(run) for run in runs}
    found = {name: curves for name, curves in found.items() if curves}
    shown = [domain for domain in domains if all(domain in curves for curves in found.values())]
    return {name: {domain: curves[domain] for domain in shown} for name, curves in found.items()} if shown else {}


def _losses(run: Run) -> dict[str, plots.Curve]:
    """Return the validation loss over steps, by domain."""
    steps, losses = run.series("eval_loss")
    return {domain: plots.Curve(steps, y) for domain, y in losses.items()}


def _losses_by_epoch(run: Run) -> dict[str, plots.Curve]:
    """Return the validation loss over the domain's epochs, at the steps where both were logged."""
    at, epochs = run.series("epochs")
    steps, losses = run.series("eval_loss")
    both, of_epochs, of_losses = np.intersect1d(at, steps, return_indices=True)
    if not len(both):
        return {}
    return {d: plots.Curve(epochs[d][of_epochs], y[of_losses]) for d, y in losses.items() if d in epochs}


def _sampling(run: Run) -> dict[str, plots.Curve]:
    """Return the sampling probability over steps; a logged value holds for the steps before it."""
    steps, q = run.series("q")
    x = np.concatenate([[0.0], steps])
    return {domain: plots.Curve(x, np.append(y, y[-1])) for domain, y in q.items()}


def _drawn(run: Run, name: str) -> dict[str, plots.Curve]:
    """Return each domain's share of all samples, or tokens, so far."""
    steps, counts = run.series(name)
    total = np.sum(list(counts.values()), axis=0) if counts else np.zeros(0)
    if not (len(total) > 1 and total[0] > 0):
        return {}
    return {domain: plots.Curve(steps, y / total) for domain, y in counts.items()}
