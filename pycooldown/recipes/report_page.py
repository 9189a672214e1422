"""The report on finished runs as one self-contained HTML file, without scripts."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator, Mapping
from html import escape
from typing import TYPE_CHECKING, Any

import yaml

from pycooldown._html import Strong, page, table, wide
from pycooldown.recipes.history import Run
from pycooldown.recipes.report import Comparison, DomainRow

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MOST_ROWS = 500
_DOTS = 110  # dots per inch of a PNG; browsers show 96
_CAPTIONS = {
    "loss_by_step": "Validation loss by step.",
    "loss_by_epoch": "Validation loss by passes through the domain (logarithmic).",
    "q_over_time": "The mixture over time: the sampling probability of each domain, stacked.",
    "samples_over_time": "Realised shares of each domain in all samples drawn so far.",
    "tokens_over_time": "Realised shares of each domain in all tokens with a loss so far.",
}


def report_page(comparison: Comparison) -> str:
    """Return a page with the results of runs: losses, draws, figures over time, and the recipes.

    Raises:
        ImportError: If matplotlib is not installed.
    """
    names = ", ".join(run.name for run in comparison.runs)
    parts = [
        f"<h1>{escape(names)}</h1>",
        f"<p>{escape(comparison.sentence)}</p>",
        "<h2>Validation losses</h2>",
        wide(_losses(comparison), "Validation losses"),
        "<h2>What was drawn</h2>",
        wide(_drawn(comparison), "What was drawn"),
        "<h2>Over time</h2>",
        *(_picture(name, figure) for name, figure in comparison.figures().items()),
        "<h2>Configuration</h2>",
        *_configuration(comparison.runs),
    ]
    return page(f"pycooldown report: {names}", "\n".join(parts))


def _losses(comparison: Comparison) -> str:
    translated = comparison.groups[-1].cells[0].bleu is not None
    measures = ("loss", "BLEU", "chrF") if translated else ("loss",)
    columns = ["domain", "size", *(f"{run.name}: {measure}" for run in comparison.runs for measure in measures)]
    rows = []
    for row in (*comparison.groups, *comparison.rows):
        cells = []
        for i, cell in enumerate(row.cells):
            cells.append((Strong if i == row.best else str)(f"{cell.loss:.3f}"))
            cells += [f"{score:.1f}" for score in (cell.bleu, cell.chrf) if score is not None]
        rows.append((_name(row), f"{row.size:,}", *cells))
    caption = "Nats per token for groups of domains, then for each domain, largest first. The lowest loss is bold."
    return table(columns, rows, caption, most=_MOST_ROWS)


def _name(row: DomainRow) -> str:
    """Return a row's name; for a group of few domains, with their names."""
    return f"{row.name} ({', '.join(row.domains)})" if 0 < len(row.domains) <= 8 and row.name != "all" else row.name


def _drawn(comparison: Comparison) -> str:
    columns = ["domain", "size"]
    shares: list[dict[str, tuple[str, ...]]] = []
    for run in comparison.runs:
        columns += [f"{run.name}: {what}" for what in ("target", "samples", "tokens", "epochs")]
        domains = run.summary["domains"]
        _, targets = run.series("target")
        of = {key: _shares({d: entry.get(key) for d, entry in domains.items()}) for key in ("draws", "tokens")}
        of["target"] = {d: f"{values[-1]:.2%}" for d, values in targets.items()}
        shares.append(
            {
                d: (*(of[key].get(d, "") for key in ("target", "draws", "tokens")), f"{entry['epochs']:.2f}")
                for d, entry in domains.items()
            }
        )
    rows = [
        (row.name, f"{row.size:,}", *(text for share in shares for text in share[row.name])) for row in comparison.rows
    ]
    caption = (
        "Shares of the objective at the end (target), of all samples and of all tokens, and passes through the domain."
    )
    return table(columns, rows, caption, most=_MOST_ROWS)


def _shares(counts: Mapping[str, float | None]) -> dict[str, str]:
    """Return shares as text; an empty text if a run did not count."""
    known = {domain: count for domain, count in counts.items() if count is not None}
    total = sum(known.values())
    return {domain: f"{count / total:.2%}" for domain, count in known.items()} if total else {}


def _picture(name: str, figure: Figure) -> str:
    """Return a figure with its image embedded, as SVG, or as PNG if that is smaller."""
    svg = io.StringIO()
    # Without a date and with fixed ids in the SVG, the same runs give the same page.
    from matplotlib import rc_context

    with rc_context({"svg.hashsalt": name}):
        figure.savefig(svg, format="svg", metadata={"Date": None})
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=_DOTS)
    kind, content = min(
        ("svg+xml", svg.getvalue().encode()), ("png", png.getvalue()), key=lambda candidate: len(candidate[1])
    )
    source = f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
    width, height = (round(96 * inches) for inches in figure.get_size_inches())
    caption = escape(_CAPTIONS[name])
    return (
        f'<figure><figcaption>{caption}</figcaption><img src="{source}" alt="{caption}" width="{width}" '
        f'height="{height}"></figure>'
    )


def _configuration(runs: tuple[Run, ...]) -> Iterator[str]:
    flat = [dict(_flat(run.recipe)) for run in runs]
    keys = dict.fromkeys(key for values in flat for key in values)
    differing = [key for key in keys if len({json.dumps(values.get(key)) for values in flat}) > 1]
    if len(runs) > 1:
        rows = [(key, *(_text(values.get(key)) for values in flat)) for key in differing]
        differences = table(("key", *(run.name for run in runs)), rows, "Keys in which the recipes differ.", most=200)
        yield wide(differences, "Keys in which the recipes differ") if rows else "<p>The recipes are equal.</p>"
    for run in runs:
        facts = {key: run.summary[key] for key in ("steps", "seconds", "parameters", "eval_loss") if key in run.summary}
        text = yaml.safe_dump({"outcome": facts, "recipe": run.recipe}, sort_keys=False, allow_unicode=True, width=100)
        title = f"{run.name}: the whole recipe, and figures of the run"
        yield f'<details><summary>{escape(title)}</summary><pre tabindex="0">{escape(text)}</pre></details>'


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the keys of nested sections as ``section.key``, with their values."""
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _text(value: Any) -> str:
    return "" if value is None else value if isinstance(value, str) else json.dumps(value)
