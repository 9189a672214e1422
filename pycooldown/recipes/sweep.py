"""Recipes side by side over seeds: one table with means and standard deviations, and a picture."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev

from pycooldown import plots
from pycooldown._files import write_atomically
from pycooldown.recipes.history import Run
from pycooldown.recipes.report import Comparison, compare
from pycooldown.recipes.schema import Recipe


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


Rows = tuple[tuple[str, int, tuple[Spread, ...]], ...]
MEASURES = {"loss": "Validation loss in nats a token", "bleu": "BLEU", "chrf": "chrF"}


@dataclass(frozen=True)
class Study:
    """What `run_study` finds.

    Attributes:
        recipes: their names.
        seeds: those of the runs.
        tables: for "loss" and, if pairs were translated, "bleu" and "chrf": name, size and a `Spread` for each recipe,
            of each domain from the largest on, then of the groups.
    """

    recipes: tuple[str, ...]
    seeds: tuple[int, ...]
    tables: Mapping[str, Rows]

    def title(self, measure: str) -> str:
        """What a table shows."""
        return f"{MEASURES[measure]}, mean ± sd over {len(self.seeds)} seed(s) (epochs of the domain)"

    def markdown(self) -> str:
        """The tables."""
        header = ["domain", "size", *self.recipes]
        lines = []
        for measure, rows in self.tables.items():
            lines += [self.title(measure), "", f"| {' | '.join(header)} |", f"|{'---|' * len(header)}"]
            lines += [f"| {name} | {size:,} | {' | '.join(map(str, cells))} |" for name, size, cells in rows]
            lines.append("")
        return "\n".join(lines)

    def save(self, folder: Path) -> list[Path]:
        """Writes ``comparison.md``, ``comparison.json`` and a picture of each table, ``comparison-loss.png``, ..."""
        paths = [folder / f"comparison.{kind}" for kind in ("md", "json")]
        write_atomically(paths[0], self.markdown())
        write_atomically(paths[1], json.dumps(dataclasses.asdict(self), indent=1, ensure_ascii=False))
        for measure, rows in self.tables.items():
            groups = {name: cells for name, _, cells in rows if name.endswith("-resource") or name == "all"}
            figure = plots.recipes_with_spread(
                self.recipes,
                {name: [(cell.mean, cell.sd or 0.0) for cell in cells] for name, cells in groups.items()},
                MEASURES[measure],
                best=min if measure == "loss" else max,
            )
            paths.append(folder / f"comparison-{measure}.png")
            figure.savefig(paths[-1])
        return paths


def run_study(
    recipes: Mapping[str, Recipe],
    seeds: Sequence[int],
    folder: str | Path,
    train: Callable[[Recipe, Path], Run],
) -> Study:
    """Trains every recipe with every seed in ``folder/seed-<seed>/<name>`` and compares them.

    Runs that are finished are not trained again, so a study that was interrupted goes on where it stopped, and one to
    which recipes or seeds are added trains those alone.

    Args:
        recipes: by name, on the same data.
        seeds: of the models and the order of samples, the same for all recipes.
        folder: for runs and outcome.
        train: trains a recipe in a folder, going on with what is there.

    Raises:
        ValueError: if there is no recipe or seed, a seed repeats, or the recipes' data differ.
    """
    if not recipes or not seeds or len(set(seeds)) < len(seeds):
        raise ValueError(f"{len(recipes)} recipes, seeds {list(seeds)}; expected recipes and seeds, each seed once")
    _check_comparable(recipes)
    folder, comparisons = Path(folder), []
    for seed in seeds:
        runs = {name: folder / f"seed-{seed}" / name for name in recipes}
        for name, recipe in recipes.items():
            seeded = dataclasses.replace(recipe, training=dataclasses.replace(recipe.training, seed=seed))
            train(seeded, runs[name])
        comparisons.append(compare(list(runs.values())))
    translated = comparisons[0].groups[-1].cells[0].bleu is not None
    measures = MEASURES if translated else ("loss",)
    study = Study(tuple(recipes), tuple(seeds), {measure: _table(comparisons, measure) for measure in measures})
    study.save(folder)
    return study


def _check_comparable(recipes: Mapping[str, Recipe]) -> None:
    """Raises what `compare` would after hours of training."""
    first = next(iter(recipes))
    for name, recipe in recipes.items():
        pairs = {f"data.{f.name}": f.name for f in dataclasses.fields(recipe.data)}
        differ = [key for key, f in pairs.items() if getattr(recipe.data, f) != getattr(recipes[first].data, f)]
        differ += ["model.family"] if recipe.model.family != recipes[first].model.family else []
        differ += ["decoding"] if recipe.decoding != recipes[first].decoding else []
        if differ:
            raise ValueError(f"{name} and {first} differ in {differ[0]}: their losses cannot be compared")


def _table(comparisons: Sequence[Comparison], measure: str) -> Rows:
    rows = []
    for same in zip(*((*comparison.rows, *comparison.groups) for comparison in comparisons), strict=True):
        cells = []
        for column in zip(*(row.cells for row in same), strict=True):
            values = [getattr(cell, measure) for cell in column]
            deviation = stdev(values) if len(values) > 1 else None
            cells.append(Spread(fmean(values), deviation, fmean(cell.epochs for cell in column)))
        rows.append((same[0].name, same[0].size, tuple(cells)))
    return tuple(rows)
