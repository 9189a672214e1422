"""Pictures of what `reproduce` found, in the form of figures 1 to 8 of Li et al. (NAACL 2025).

What their figure 9 shows is not known to us, and of figure 5 only that it has the schedules.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pycooldown import plots, theory
from pycooldown.mixture import Mixture
from reproduction.claims_analytic import GOLDEN, zipf
from reproduction.claims_translation import SETTING
from reproduction.claims_variance import SAMPLING, WEIGHTING, read_probe
from reproduction.translation import HIGH, LOW, NUM_ROMANIAN, systems

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


def save_figures(runs: Path, folder: Path) -> dict[str, Path]:
    """Writes PNGs, by caption; those of trainings only if there are any.

    Args:
        runs: where `reproduce` keeps its trainings.
        folder: for the pictures.
    """
    folder.mkdir(parents=True, exist_ok=True)
    figures = {
        ("variance_inflation", "Figure 2: variance inflation of scalarization, sizes i^-alpha of 20 domains"): (
            _inflation()
        ),
        ("temperature_by_step", "Figure 5: temperature by step"): _temperatures(),
    }
    probe = runs / "translation" / "probe-after-training-0.json"
    if probe.exists():
        batches = read_probe(probe).batches
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
    """Means over the seeds, by system and domain."""
    curves = {}
    for system in systems(1, 1):
        paths = sorted((runs / "translation").glob(f"{system.replace(' ', '-')}-multinomial-*.json"))
        found = [json.loads(path.read_text(encoding="utf-8"))["run"] for path in paths]
        if found:
            curves[system] = {
                domain: plots.Curve(np.array(found[0]["steps"]), np.mean([r["losses"][domain] for r in found], axis=0))
                for domain in found[0]["losses"]
            }
    return curves
