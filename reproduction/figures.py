"""Pictures of what `reproduce` found, in the form of figures 1 to 8 of Li et al. (NAACL 2025).

Of figure 5 we know only that it shows the schedules. Figure 9 is not drawn; it says that tau has little impact on the
frequent language and much on the rare one.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pycooldown import Mixture, plots, theory
from reproduction.claims_analytic import GOLDEN, zipf
from reproduction.claims_translation import SETTING
from reproduction.claims_variance import SAMPLING, WEIGHTING, read_gradients
from reproduction.texts import HIGH, LOW, NUM_ROMANIAN
from reproduction.translation import kept_trainings, systems

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Which losses are drawn together: file, caption, systems.
_LOSSES = (
    ("temperatures", "Figure 1: losses by step", ("temperature 1", "temperature 5", "temperature 100", "cooldown")),
    (
        "sampling_and_weighting",
        "Figures 4 and 8: losses by step",
        ("temperature 5", "scalarization 5", "temperature 100", "scalarization 100"),
    ),
    ("schedules", "Figures 6 and 7: losses by step", ("cooldown", "linear", "increase", "unimax", "order matters")),
)


def draw_figures(runs: Path, folder: Path) -> dict[str, Path]:
    """Write PNGs and return their paths by caption; pictures of trainings are drawn only if there are any.

    Args:
        runs: Folder in which `reproduce` keeps its trainings.
        folder: Folder for the pictures.
    """
    folder.mkdir(parents=True, exist_ok=True)
    figures = {
        ("variance_inflation", "Figure 2: variance inflation of scalarization, sizes i^-alpha of 20 domains"): (
            _inflation()
        ),
        ("temperature_by_step", "Figure 5: temperature by step"): _temperatures(),
    }
    gradients = runs / "translation" / "gradients-after-training-0.json"
    if gradients.exists():
        batches = read_gradients(gradients).batches
        norms = {kind: np.array(batches[f"{kind}, multinomial"].norms) for kind in (SAMPLING, WEIGHTING)}
        figures["gradient_norms", "Figure 3: norms of 64 minibatch gradients after training, tau = 5"] = (
            plots.gradient_norms(norms)
        )
    curves = _loss_curves(runs)
    for name, caption, wanted in _LOSSES:
        if shown := {system: curves[system] for system in wanted if system in curves}:
            figures[name, caption] = plots.loss_curves(shown, x_label="step")
    written = {}
    for name, caption in sorted(figures, key=lambda key: key[1].split()[1]):
        written[caption] = folder / f"{name}.png"
        figures[name, caption].savefig(written[caption])
    return written


def _inflation() -> Figure:
    taus = np.geomspace(1, 100, 60)
    curves = {}
    for alpha in sorted(GOLDEN, reverse=True):
        f = [theory.variance_inflation(Mixture.scalarization(zipf(alpha), tau)) for tau in taus]
        curves[f"alpha = {alpha:g}"] = plots.Curve(taus, np.array(f))
    return plots.inflation(curves)


def _temperatures() -> Figure:
    steps = np.arange(SETTING.steps, dtype=np.float64)
    sizes = {HIGH: 10_000, LOW: NUM_ROMANIAN}
    build = systems(SETTING.steps, SETTING.batch_size)
    curves = {}
    for name in ("cooldown", "linear", "increase"):
        schedule = build[name](sizes)
        curves[name] = plots.Curve(steps, np.array([schedule.mixture(int(s)).tau or math.nan for s in steps]))
    return plots.curves(curves, x_label="step", y_label="temperature")


def _loss_curves(runs: Path) -> dict[str, dict[str, plots.Curve]]:
    """Return means over the seeds, by system and domain."""
    curves = {}
    for system in systems(1, 1):
        if found := kept_trainings(runs / "translation", system):
            curves[system] = {
                domain: plots.Curve(np.array(found[0].steps), np.mean([r.losses[domain] for r in found], axis=0))
                for domain in found[0].losses
            }
    return curves
