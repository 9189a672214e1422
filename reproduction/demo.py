"""Figures of the demo: validation losses by step under five mixtures, for the rare and the frequent language."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pycooldown import plots
from pycooldown.recipes.history import SUMMARY, Run

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PASSES = 20  # about how often scarce data in a mixture may be repeated (arXiv 2605.12715); marked in the picture
_LABELS = {
    "temperature1": "τ = 1",
    "temperature5": "τ = 5",
    "temperature100": "τ = 100",
    "cooldown": "Cooldown, 5 to 1",
    "unimax": "UniMax, cap 20",
}
_LANGUAGES = {"de": "German", "ro": "Romanian"}


def save_pictures(runs: Path, out: Path) -> list[Path]:
    """Write demo_rare.png and demo_frequent.png.

    Args:
        runs: Folder written by `pycooldown sweep`: seed-*/<recipe>.
        out: Folder for the figures.

    Raises:
        ValueError: If there are no finished runs of two languages.
    """
    by_recipe: dict[str, list[Run]] = {}
    for path in sorted(runs.glob(f"seed-*/*/{SUMMARY}")):
        by_recipe.setdefault(path.parent.name, []).append(Run.read(path.parent))
    if not by_recipe:
        raise ValueError(f"{runs} has no finished runs; expected a folder written by `pycooldown sweep`")
    ordered = {name: by_recipe[name] for name in (*_LABELS, *by_recipe) if name in by_recipe}
    sizes = next(iter(ordered.values()))[0].sizes
    rare, frequent = min(sizes, key=lambda d: sizes[d]), max(sizes, key=lambda d: sizes[d])
    out.mkdir(parents=True, exist_ok=True)
    written = []
    for name, domain in (("rare", rare), ("frequent", frequent)):
        title = f"{_LANGUAGES.get(domain, domain)}, {sizes[domain]:,} training pairs"
        written.append(out / f"demo_{name}.png")
        picture(ordered, domain, title, mark=PASSES if name == "rare" else None).savefig(written[-1])
    return written


def picture(runs: Mapping[str, Sequence[Run]], domain: str, title: str, *, mark: float | None) -> Figure:
    """Draw the validation loss of a language by step: a line for the mean over seeds, a band for their range.

    Args:
        runs: Runs by recipe, one for each seed.
        domain: The language.
        title: Title of the picture.
        mark: Passes through the language whose step is marked on each line; ``None`` for no marks.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 3.9), dpi=150, layout="constrained")
    axes = figure.subplots()
    for recipe, seeds in runs.items():
        steps = [entry["step"] for entry in seeds[0].evaluations]
        by_seed = np.array([[entry[f"eval_loss/{domain}"] for entry in run.evaluations] for run in seeds])
        losses = by_seed.mean(axis=0)
        style = plots.line_style(recipe) or {}
        dashed = (
            {"linestyle": "--", "zorder": 3} if recipe == "temperature5" else {}
        )  # Cooldown's line covers it at first
        axes.plot(steps, losses, label=_LABELS.get(recipe, recipe), linewidth=1.8, **{**style, **dashed})
        axes.fill_between(
            steps, by_seed.min(axis=0), by_seed.max(axis=0), color=style.get("color"), alpha=0.18, linewidth=0
        )
        passes = [entry[f"epochs/{domain}"] for entry in seeds[0].train]
        if mark is not None and passes[-1] >= mark:
            at = float(np.interp(mark, [0, *passes], [0, *(entry["step"] for entry in seeds[0].train)]))
            axes.plot(at, np.interp(at, steps, losses), "o", color=style.get("color"), markersize=6, zorder=4)
    if mark is not None:
        axes.plot([], [], "o", color="0.4", markersize=6, label=f"{mark:g} passes")
    axes.set(xlabel=f"step (bands: range of {len(seeds)} seeds)", ylabel="validation loss (nats a token)")
    axes.set_title(title, fontsize=10, fontweight="bold", loc="left")
    axes.grid(alpha=0.25, linewidth=0.6)
    figure.legend(loc="outside right center", frameon=False, fontsize=9)
    return figure
