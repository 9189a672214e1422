"""Recipes side by side over seeds: one table with means and standard deviations, and a picture."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev

from pycooldown import plots
from pycooldown.training.checkpoints import write_atomically
from pycooldown.training.history import Run
from pycooldown.training.recipe import Recipe
from pycooldown.training.report import compare


@dataclass(frozen=True)
class Spread:
    """Validation loss (nats a token) of one recipe over seeds, and the mean number of passes through the domain.

    ``sd`` is the sample standard deviation; ``None`` with a single seed.
    """

    mean: float
    sd: float | None
    epochs: float

    def __str__(self) -> str:
        deviation = "" if self.sd is None else f" ± {self.sd:.3f}"
        return f"{self.mean:.3f}{deviation} ({self.epochs:.1f})"


@dataclass(frozen=True)
class Study:
    """What `run_study` finds.

    Attributes:
        recipes: their names.
        seeds: those of the runs.
        rows: name, size and a `Spread` for each recipe, of each domain from the largest on, then of the groups.
    """

    recipes: tuple[str, ...]
    seeds: tuple[int, ...]
    rows: tuple[tuple[str, int, tuple[Spread, ...]], ...]

    def markdown(self) -> str:
        """The table."""
        header = ["domain", "size", *self.recipes]
        lines = [
            f"Validation loss in nats a token, mean ± sd over {len(self.seeds)} seed(s) (epochs of the domain)",
            "",
            f"| {' | '.join(header)} |",
            f"|{'---|' * len(header)}",
            *(f"| {name} | {size:,} | {' | '.join(map(str, cells))} |" for name, size, cells in self.rows),
        ]
        return "\n".join(lines) + "\n"

    def save(self, folder: Path) -> list[Path]:
        """Writes ``comparison.md``, ``comparison.json`` and ``comparison.png``."""
        paths = [folder / f"comparison.{kind}" for kind in ("md", "json", "png")]
        write_atomically(paths[0], self.markdown())
        write_atomically(paths[1], json.dumps(dataclasses.asdict(self), indent=1, ensure_ascii=False))
        groups = {name: cells for name, _, cells in self.rows if name.endswith("-resource") or name == "all"}
        figure = plots.losses_with_spread(
            self.recipes, {name: [(cell.mean, cell.sd or 0.0) for cell in cells] for name, cells in groups.items()}
        )
        figure.savefig(paths[2])
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
    folder, comparisons = Path(folder), []
    for seed in seeds:
        runs = {name: folder / f"seed-{seed}" / name for name in recipes}
        for name, recipe in recipes.items():
            seeded = dataclasses.replace(recipe, training=dataclasses.replace(recipe.training, seed=seed))
            train(seeded, runs[name])
        comparisons.append(compare(list(runs.values())))
    rows = []
    for same in zip(*((*comparison.rows, *comparison.groups) for comparison in comparisons), strict=True):
        columns = zip(*(row.cells for row in same), strict=True)
        cells = tuple(
            Spread(
                fmean(cell.loss for cell in column),
                stdev(cell.loss for cell in column) if len(seeds) > 1 else None,
                fmean(cell.epochs for cell in column),
            )
            for column in columns
        )
        rows.append((same[0].name, same[0].size, cells))
    study = Study(tuple(recipes), tuple(seeds), tuple(rows))
    study.save(folder)
    return study
