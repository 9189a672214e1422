"""Figures that compare recipes and methods."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from pycooldown.mixture import Vector
from pycooldown.plots.style import Curve, apart, head, label_decades, label_few, new_figure, shade, styles

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def recipes_with_spread(
    recipes: Sequence[str],
    values: Mapping[str, Sequence[tuple[float, float | None]]],
    label: str,
    best: Mapping[str, int] | None = None,
) -> Figure:
    """Draw one panel for each group of domains: a dot for each recipe, with one standard deviation to each side.

    Args:
        recipes: Names of the recipes, from the top down.
        values: (mean, standard deviation) of each recipe, by group; the deviation is ``None`` if it is not known.
        label: Name of the measured quantity.
        best: Position of the recipe that gets a ring, by group. Include a group only if the recipe's lead over every
            other is beyond the interval of the difference.
    """
    best = best or {}
    figure = new_figure(2.1 * len(values) + 1.6, 0.28 * len(recipes) + 1.1)
    panels = figure.subplots(1, len(values), squeeze=False, sharey=True).ravel()
    heights = np.arange(len(recipes))
    for panel, (group, pairs) in zip(panels, values.items(), strict=True):
        for height, (mean, deviation), style in zip(heights, pairs, styles(recipes).values(), strict=True):
            panel.errorbar(
                mean, height, xerr=deviation, fmt="o", color=style["color"], markersize=5, elinewidth=1.6, capsize=2.5
            )
        if group in best:
            marked = best[group]
            panel.plot(pairs[marked][0], marked, "o", color="none", markeredgecolor="0.2", markersize=10, zorder=3)
        head(panel, group)
        panel.margins(x=0.08)
        label_few(panel, 3)
    panels[0].set_yticks(heights, labels=list(recipes))
    panels[0].invert_yaxis()
    figure.supxlabel(f"{label}; {_legend(values, best)}", fontsize=10)
    return figure


def gains(panels: Mapping[str, Mapping[str, Curve]], *, columns: int, x_label: str, y_label: str) -> Figure:
    """Draw differences from a baseline at 0 over a logarithmic x, with bars.

    Args:
        panels: Curves by panel and run.
        columns: Panels in a row.
        x_label: Name of x.
        y_label: Name of y.
    """
    rows = -(-len(panels) // columns)
    figure = new_figure(3.0 * columns, 2.4 * rows + 0.9)
    axes = figure.subplots(rows, columns, squeeze=False, sharey="col").ravel()
    for panel, (title, lines) in zip(axes, panels.items(), strict=False):
        panel.axhline(0, color="0.5", linewidth=0.8)
        shifts = np.linspace(0.92, 1.08, len(lines))  # bars side by side
        for (name, curve), style, shift in zip(lines.items(), styles(lines).values(), shifts, strict=True):
            panel.errorbar(
                curve.x * shift, curve.y, curve.error, label=name, marker="o", markersize=3, linewidth=1.2, **style
            )
        head(panel, title)
        panel.set_xscale("log")
        ticks = apart(np.unique(np.concatenate([curve.x for curve in lines.values()])))
        panel.set_xticks(ticks, labels=[f"{x:.0f}" for x in ticks])
        panel.minorticks_off()
    for panel in axes[len(panels) :]:
        panel.set_visible(False)
    figure.supxlabel(x_label, fontsize=10)
    figure.supylabel(y_label, fontsize=10)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=4, frameon=False, fontsize=10)
    return figure


def inflation(lines: Mapping[str, Curve]) -> Figure:
    """Draw the variance inflation F of scalarization over tau (Li et al., NAACL 2025, figure 2), a line per corpus.

    The lines are shades of one scale: a corpus has no colour of a method.
    """
    shades = {name: {"color": shade(i, len(lines) + 1), "linestyle": "-"} for i, name in enumerate(lines)}
    figure = _one_panel(lines, shades, x_label="temperature τ", y_label="variance inflation F")
    label_decades(figure.axes[0])
    return figure


def curves(lines: Mapping[str, Curve], *, x_label: str, y_label: str) -> Figure:
    """Draw one panel with a line for each name, and a band around it where the error is known."""
    return _one_panel(lines, styles(lines), x_label=x_label, y_label=y_label)


def gradient_norms(norms: Mapping[str, Vector]) -> Figure:
    """Draw norms of minibatch gradients at equal parameters (Li et al., NAACL 2025, figure 3), one box per mixture.

    A box holds the middle half of the norms, its line is the median, and circles lie beyond 1.5 lengths of the box.
    """
    figure = new_figure(5.5, 0.5 * len(norms) + 1.1)
    axes = figure.subplots()
    boxes = axes.boxplot(
        list(norms.values()), tick_labels=list(norms), widths=0.6, orientation="horizontal", patch_artist=True
    )
    for i, style in enumerate(styles(norms).values()):
        boxes["boxes"][i].set(facecolor="white", edgecolor=style["color"], linestyle=style["linestyle"], linewidth=1.6)
        boxes["medians"][i].set(color=style["color"], linewidth=2)
        boxes["fliers"][i].set(markersize=4, markeredgecolor=style["color"])
    axes.invert_yaxis()
    axes.grid(axis="x", alpha=0.25, linewidth=0.6)
    axes.set_xlabel("norm of the minibatch gradient")
    return figure


def _one_panel(
    lines: Mapping[str, Curve], looks: Mapping[str, dict[str, Any]], *, x_label: str, y_label: str
) -> Figure:
    """Draw lines with the given looks in one panel, their names beside it."""
    figure = new_figure(5.5, 3.4)
    axes = figure.subplots()
    for name, style in looks.items():
        x, y, error = lines[name]
        axes.plot(x, y, label=name, linewidth=1.8, **style)
        if error is not None:
            axes.fill_between(x, y - error, y + error, color=style["color"], alpha=0.18, linewidth=0)
    axes.set(xlabel=x_label, ylabel=y_label)
    axes.grid(alpha=0.25, linewidth=0.6)
    label_few(axes, 6)
    figure.legend(loc="outside right center", frameon=False, fontsize=10)
    return figure


def _legend(values: Mapping[str, Sequence[tuple[float, float | None]]], best: Mapping[str, int]) -> str:
    """Return the meaning of the marks in a figure of recipes."""
    if any(deviation is None for pairs in values.values() for _, deviation in pairs):
        return "one seed, so the spread is unknown"
    ring = "ring: best beyond the interval of the differences" if best else "none is best beyond the interval"
    return f"mean ± sd over seeds; {ring}"
