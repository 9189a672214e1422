"""Figures of the evidence: the map of regimes, and figures 1 to 9 of Li et al. (NAACL 2025)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pycooldown import Mixture, plots, theory
from pycooldown.mixture import Vector
from pycooldown.recipes.paired import t_quantile
from reproduction.blocks import BlockRegime
from reproduction.claims_analytic import GOLDEN, zipf
from reproduction.claims_variance import NORMS
from reproduction.reproduce import Result
from reproduction.rules import (
    COOLDOWN,
    EXPONENTIAL,
    INCREASE,
    LINEAR,
    MAP_SYSTEMS,
    PAPER,
    SCALARIZATION_5,
    SCALARIZATION_100,
    TAU_1,
    TAU_5,
    TAU_100,
    UNIMAX,
    Regime,
    Trainings,
    paired,
)
from reproduction.texts import FREQUENT, RARE
from reproduction.translation import ORDER_MATTERS, systems
from reproduction.verdicts import PARTS_OF_MAP, best_system

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MAP = "The best of five systems by regime"
# Which losses are drawn together: file, caption, systems.
_LOSSES = (
    ("temperatures", "Figure 1: temperatures and Cooldown", (TAU_1, TAU_5, TAU_100, COOLDOWN)),
    (
        "sampling_and_weighting",
        "Figures 4 and 8: temperature sampling and scalarization",
        (TAU_5, SCALARIZATION_5, TAU_100, SCALARIZATION_100),
    ),
    (
        "schedules",
        "Figures 6 and 7, and other orders of exposure",
        (COOLDOWN, LINEAR, EXPONENTIAL, INCREASE, UNIMAX, ORDER_MATTERS),
    ),
)
_STEP = "step (bands: intervals of 95 % over the seeds)"
FIGURE_9 = "Figure 9: what another temperature does to the frequent and to the rare language"
BLOCKS = "Figure 6 and table 4: four languages of very unlike sizes"
LOSSES = (*(caption for _, caption, _ in _LOSSES), FIGURE_9)
THEORY = (
    "Figure 2: variance inflation of scalarization",
    "Figure 3: norms of minibatch gradients after training",
    "Figure 5: temperature by step",
)


def draw(
    regimes: Mapping[Regime, Trainings],
    claims: Mapping[str, Result],
    folder: Path,
    blocks: Mapping[BlockRegime, Trainings] | None = None,
) -> dict[str, Path]:
    """Write PNGs and return their paths by caption.

    Args:
        regimes: The trainings of each regime.
        claims: The results of the claims that need no regime.
        folder: Folder for the pictures.
        blocks: The trainings of R8; those of the first regime are drawn.
    """
    folder.mkdir(parents=True, exist_ok=True)
    figures = {("regimes", MAP): regime_map(regimes)} if regimes else {}
    paper = next((trainings for regime, trainings in regimes.items() if regime.is_paper), {})
    for name, caption, wanted in _LOSSES:
        if shown := [system for system in wanted if system in paper]:
            figures[name, caption] = losses_by_step({system: paper[system] for system in shown})
    if all(system in paper for system in (TAU_1, TAU_5, TAU_100)):
        figures["temperature_effect", FIGURE_9] = temperature_effect(paper)
    if blocks:
        figures["four_languages", BLOCKS] = losses_by_step(next(iter(blocks.values())))
    figures["variance_inflation", THEORY[0]] = _inflation()
    if "R4" in claims:
        parts = [part for part in claims["R4"].parts if part.label.startswith(NORMS)]
        norms = {part.label.removeprefix(NORMS): part.values for part in parts}
        figures["gradient_norms", THEORY[1]] = plots.gradient_norms(norms)
    figures["temperature_by_step", THEORY[2]] = _temperatures()
    written = {}
    for (name, caption), figure in figures.items():
        written[caption] = folder / f"{name}.png"
        figure.savefig(written[caption])
    return written


def regime_map(regimes: Mapping[Regime, Trainings]) -> Figure:
    """Draw the best system by passes and skew: a panel each for the rare language, the frequent one and their mean.

    A filled dot marks a clear best system. A ring marks the lowest mean, if the tests cannot separate it from others.
    """
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    figure = Figure(figsize=(9, 4.1), dpi=150, layout="constrained")
    panels = figure.subplots(1, len(PARTS_OF_MAP), sharey=True)
    shown = {}
    for panel, (title, domain) in zip(panels, PARTS_OF_MAP.items(), strict=True):
        for regime, trainings in regimes.items():
            best = best_system(trainings, domain)
            colour = (plots.line_style(best.system) or {"color": "0.5"})["color"]
            shown[best.system] = colour
            face = colour if best.clear else "white"
            panel.plot(regime.passes, regime.skew, "o", color=colour, markerfacecolor=face, markersize=11, mew=2)
            # Put it above the dot if the label of a neighbour is below its own dot.
            crowded = any(r.skew == regime.skew and r.passes < regime.passes < 2 * r.passes for r in regimes)
            panel.annotate(
                f"{best.margin.split(' ')[0]}",
                (regime.passes, regime.skew),
                textcoords="offset points",
                xytext=(0, 11 if crowded else -17),
                ha="center",
                fontsize=9,
            )
        panel.set(xscale="log", yscale="log", xlim=(3, 500), ylim=(5, 900))
        panel.set_xticks([5, 20, 80, 300], labels=["5", "20", "80", "300"])
        panel.set_yticks([9, 25, 100, 500], labels=["9:1", "25:1", "100:1", "500:1"])
        panel.minorticks_off()
        panel.grid(alpha=0.25, linewidth=0.6)
        panel.set_title(title, fontsize=10, fontweight="bold", loc="left")
    figure.supxlabel("passes over the rare language at τ = 5 (beside each dot, nats to the next system)", fontsize=10)
    figure.supylabel("skew of the sizes", fontsize=10)
    handles = [
        Line2D([], [], marker="o", linestyle="", color=colour, markersize=8, label=name)
        for name, colour in sorted(shown.items(), key=lambda item: MAP_SYSTEMS.index(item[0]))
    ]
    handles.append(
        Line2D([], [], marker="o", linestyle="", color="0.4", markerfacecolor="white", mew=2, label="not clear")
    )
    figure.legend(handles=handles, loc="outside upper center", ncols=len(handles), frameon=False, fontsize=9)
    return figure


def losses_by_step(trainings: Trainings) -> Figure:
    """Draw the validation losses by step: means over the seeds, with intervals of 95 %."""
    curves = {}
    for system, found in trainings.items():
        steps = np.array(found[0].steps)
        losses = {domain: np.array([t.losses[domain] for t in found]) for domain in found[0].losses}
        curves[system] = {d: plots.Curve(steps, y.mean(axis=0), _half_interval(y)) for d, y in losses.items()}
    return plots.loss_curves(curves, x_label=_STEP)


def temperature_effect(trainings: Trainings) -> Figure:
    """Draw the losses of tau = 1, 5 and 100 by step, minus that of tau = 5: both languages on one scale.

    Bands are 95 % intervals over the paired seeds.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.4, 3.4), dpi=150, layout="constrained")
    panels = figure.subplots(1, 2, sharex=True, sharey=True)
    shared = paired(trainings, (TAU_1, TAU_5, TAU_100))
    for panel, (name, domain) in zip(panels, (("frequent", FREQUENT), ("rare", RARE)), strict=True):
        for system in (TAU_1, TAU_5, TAU_100):
            style = plots.line_style(system) or {"color": "0.5"}
            losses, baseline = (np.array([t.losses[domain] for t in shared[s]]) for s in (system, TAU_5))
            changes = losses - baseline
            half = _half_interval(changes)
            steps, means = shared[system][0].steps, changes.mean(axis=0)
            panel.plot(steps, means, label=system, linewidth=1.8, **style)
            if system != TAU_5 and half is not None:
                panel.fill_between(steps, means - half, means + half, color=style["color"], alpha=0.15, linewidth=0)
        panel.set_title(f"{name} ({domain})", fontsize=10, fontweight="bold", loc="left")
        panel.grid(alpha=0.25, linewidth=0.6)
    figure.supxlabel(_STEP, fontsize=10)
    panels[0].set_ylabel("loss, less that of temperature 5 (nats)")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=3, frameon=False, fontsize=9)
    return figure


def _half_interval(values: Vector) -> Vector | None:
    """Return half the length of the 95 % interval of the mean over seeds, (n,), of values (seeds, n), if known."""
    if len(values) < 2:
        return None
    half: Vector = t_quantile(len(values) - 1) * values.std(axis=0, ddof=1) / math.sqrt(len(values))
    return half


def _inflation() -> Figure:
    taus = np.geomspace(1, 100, 60)
    curves = {}
    for alpha in sorted(GOLDEN, reverse=True):
        f = [theory.variance_inflation(Mixture.scalarization(zipf(alpha), tau)) for tau in taus]
        curves[f"alpha = {alpha:g}"] = plots.Curve(taus, np.array(f))
    return plots.inflation(curves)


def _temperatures() -> Figure:
    steps = np.arange(PAPER.steps, dtype=np.float64)
    build = systems(PAPER.steps, 1, PAPER.steps)
    curves = {}
    for name in (COOLDOWN, LINEAR, EXPONENTIAL, INCREASE):
        schedule = build[name](PAPER.sizes)
        curves[name] = plots.Curve(steps, np.array([schedule.mixture(int(s)).tau or math.nan for s in steps]))
    return plots.curves(curves, x_label="step", y_label="temperature")
