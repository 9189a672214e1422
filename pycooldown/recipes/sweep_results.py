"""The results of a sweep: tables with mean and spread, paired differences, tidy rows, figures."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

from pycooldown import plots
from pycooldown._files import write_atomically
from pycooldown.huggingface.checkpoints import valid_json
from pycooldown.recipes.paired import PairedDifference, clear_best, deviation, paired_difference
from pycooldown.recipes.report import Comparison


@dataclass(frozen=True)
class Spread:
    """A measure of one recipe over seeds, and the mean number of passes through the domain.

    ``sd`` is the sample standard deviation; ``None`` with a single seed.
    """

    mean: float
    sd: float | None
    epochs: float

    def __str__(self) -> str:
        deviation = "" if self.sd is None else f" ± {self.sd:.3f}"
        return f"{self.mean:.3f}{deviation} ({self.epochs:.1f})"


SpreadRows = tuple[tuple[str, int, tuple[Spread, ...]], ...]
DifferenceRows = tuple[tuple[str, int, tuple[PairedDifference, ...]], ...]
MEASURES = {"loss": "Validation loss in nats a token", "bleu": "BLEU", "chrf": "chrF"}


@dataclass(frozen=True)
class Sweep:
    """The results of `run_sweep`.

    Attributes:
        recipes: Their names; the first is the baseline of the differences.
        seeds: The seeds of the runs.
        tables: Tables for "loss" and, if pairs were translated, for "bleu" and "chrf". A row has name, size and a
            `Spread` for each recipe. Rows are the domains, largest first, then the groups.
        differences: In the same form, each recipe except the first, minus the first, over the same seeds.
        best: By measure and row, the recipe that is better than every other beyond the 95 % interval of their paired
            difference. Rows without such a recipe are left out; with a single seed there is none.
        rows: A mapping for each measure of each domain in each run: ``recipe``, the keys of the grid, ``seed``,
            ``domain``, ``size``, ``epochs``, ``measure`` and ``value``.
    """

    recipes: tuple[str, ...]
    seeds: tuple[int, ...]
    tables: Mapping[str, SpreadRows]
    differences: Mapping[str, DifferenceRows]
    best: Mapping[str, Mapping[str, str]]
    rows: tuple[Mapping[str, Any], ...] = field(repr=False)

    @classmethod
    def of(
        cls, comparisons: Sequence[Comparison], seeds: Sequence[int], settings: Mapping[str, Mapping[str, str]]
    ) -> Sweep:
        """Return the results in comparisons of the recipes.

        Args:
            comparisons: One comparison for each seed, of the same recipes in the same order.
            seeds: The seed of each comparison.
            settings: The keys of the grid and their values, by recipe.
        """
        translated = comparisons[0].groups[-1].cells[0].bleu is not None
        measures = tuple(MEASURES) if translated else ("loss",)
        return cls(
            tuple(settings),
            tuple(seeds),
            {measure: _spreads(comparisons, measure) for measure in measures},
            {measure: _differences(comparisons, measure) for measure in measures} if len(settings) > 1 else {},
            {measure: _clear_bests(comparisons, measure, tuple(settings)) for measure in measures},
            tuple(_tidy(comparisons, seeds, settings, measures)),
        )

    def title(self, measure: str) -> str:
        """Return the title of a table."""
        return f"{MEASURES[measure]}, mean ± sd over {len(self.seeds)} seed(s) (epochs of the domain)"

    def difference_title(self, measure: str) -> str:
        """Return the title of a table of differences."""
        interval = " [95 % interval]" if len(self.seeds) > 1 else ""
        return f"{MEASURES[measure]} less that of {self.recipes[0]}, paired over {len(self.seeds)} seed(s){interval}"

    def markdown(self) -> str:
        """Return the tables."""
        parts = [(self.title(m), self.recipes, rows) for m, rows in self.tables.items()]
        parts += [(self.difference_title(m), self.recipes[1:], rows) for m, rows in self.differences.items()]  # type: ignore[misc]
        lines = []
        for title, names, rows in parts:
            lines += [title, "", _line(["domain", "size", *names]), f"|{'---|' * (2 + len(names))}"]
            lines += [_line([name, f"{size:,}", *map(str, cells)]) for name, size, cells in rows]
            lines.append("")
        return "\n".join(lines)

    def save(self, folder: Path) -> list[Path]:
        """Write the tables, tidy rows and figures.

        Returns:
            The paths of ``sweep.md``, ``sweep.json`` (everything), ``sweep.csv`` (`rows`) and a figure for each table,
            ``sweep-loss.png``, ...
        """
        paths = [folder / f"sweep.{kind}" for kind in ("md", "json", "csv")]
        texts = (self.markdown(), valid_json(asdict(self), indent=1), self._csv())
        for path, text in zip(paths, texts, strict=True):
            write_atomically(path, text)
        for measure, rows in self.tables.items():
            groups = {name: cells for name, _, cells in rows if name.endswith("-resource") or name == "all"}
            figure = plots.recipes_with_spread(
                self.recipes,
                {name: [(cell.mean, cell.sd) for cell in cells] for name, cells in groups.items()},
                MEASURES[measure],
                {name: self.recipes.index(best) for name, best in self.best[measure].items() if name in groups},
            )
            paths.append(folder / f"sweep-{measure}.png")
            figure.savefig(paths[-1])
        return paths

    def _csv(self) -> str:
        writer = csv.DictWriter(text := io.StringIO(), list(self.rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows)
        return text.getvalue()


def _line(cells: Sequence[str]) -> str:
    """Return a line of a Markdown table; a "|" in a name is escaped."""
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def _values(
    comparisons: Sequence[Comparison], measure: str
) -> Iterator[tuple[str, int, list[list[float]], list[float]]]:
    """Yield each row's name, size, values by recipe and seed, and mean epochs by recipe."""
    for same in zip(*((*comparison.rows, *comparison.groups) for comparison in comparisons), strict=True):
        columns = list(zip(*(row.cells for row in same), strict=True))
        values = [[getattr(cell, measure) for cell in column] for column in columns]
        yield same[0].name, same[0].size, values, [fmean(cell.epochs for cell in column) for column in columns]


def _spreads(comparisons: Sequence[Comparison], measure: str) -> SpreadRows:
    rows = []
    for name, size, values, epochs in _values(comparisons, measure):
        deviations = [deviation(column) if len(column) > 1 else None for column in values]
        rows.append((name, size, tuple(map(Spread, map(fmean, values), deviations, epochs))))
    return tuple(rows)


def _differences(comparisons: Sequence[Comparison], measure: str) -> DifferenceRows:
    return tuple(
        (name, size, tuple(paired_difference(column, values[0]) for column in values[1:]))
        for name, size, values, _ in _values(comparisons, measure)
    )


def _clear_bests(comparisons: Sequence[Comparison], measure: str, recipes: Sequence[str]) -> dict[str, str]:
    found = {}
    for name, _, values, _ in _values(comparisons, measure):
        best = clear_best(values, lowest=measure == "loss")
        if best is not None:
            found[name] = recipes[best]
    return found


def _tidy(
    comparisons: Sequence[Comparison],
    seeds: Sequence[int],
    settings: Mapping[str, Mapping[str, str]],
    measures: Sequence[str],
) -> Iterator[dict[str, Any]]:
    for seed, comparison in zip(seeds, comparisons, strict=True):
        for i, (recipe, chosen) in enumerate(settings.items()):
            for row in comparison.rows:
                cell = row.cells[i]
                place = {"recipe": recipe, **chosen, "seed": seed, "domain": row.name, "size": row.size}
                for measure in measures:
                    yield {**place, "epochs": cell.epochs, "measure": measure, "value": getattr(cell, measure)}
