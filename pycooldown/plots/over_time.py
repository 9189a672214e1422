"""Figures of runs: losses and shares of domains over their steps or epochs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from pycooldown.mixture import Vector
from pycooldown.plots.style import Curve, head, label_decades, label_few, new_figure, shade, styles

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MAX_PANELS = 12
_MAX_BANDS = 12
_MAX_POINTS = 400  # maximum points of a line; a panel has about as many pixels


def loss_curves(
    curves: Mapping[str, Mapping[str, Curve]],
    *,
    x_label: str,
    y_label: str = "validation loss (nats a token)",
    log_x: bool = False,
) -> Figure:
    """Draw one panel for each domain with a line for each run, and a band around it where the error is known.

    Args:
        curves: Curves by run and domain, with domains in the order of the first run, largest first. If there are more
            than 12 domains, 12 evenly spread ones are shown.
        x_label: Name of x.
        y_label: Name of y.
        log_x: Whether x is logarithmic; points at x <= 0 are left out then.
    """
    runs, domains = list(curves), list(next(iter(curves.values())))
    if len(domains) > _MAX_PANELS:
        domains = [domains[i] for i in np.linspace(0, len(domains) - 1, _MAX_PANELS).round().astype(int)]
    rows = -(-len(domains) // 4)
    columns = -(-len(domains) // rows)
    wide, high = (3.3, 2.5) if columns <= 2 else (2.25, 2.1)  # of a panel, in inches
    figure = new_figure(max(wide * columns, 4.5), high * rows + 0.8)
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for panel, domain in zip(panels, domains, strict=False):
        for run, style in styles(runs).items():
            curve = curves[run][domain]
            shown = curve.x > 0 if log_x else np.ones(curve.x.shape, dtype=bool)
            x, y = curve.x[shown], curve.y[shown]
            panel.plot(x, y, linewidth=1.6, label=run, **style)
            panel.plot(x[-1:], y[-1:], "o", color=style["color"], markersize=3.5)
            if curve.error is not None:
                error = curve.error[shown]
                panel.fill_between(x, y - error, y + error, color=style["color"], alpha=0.18, linewidth=0)
        head(panel, domain)
        if log_x:
            label_decades(panel)
        else:
            label_few(panel)
    for panel in panels[len(domains) :]:
        panel.set_visible(False)
    figure.supxlabel(x_label, fontsize=10)
    figure.supylabel(y_label, fontsize=10)
    handles, labels = panels[0].get_legend_handles_labels()
    in_a_row = min(len(runs), max(2, columns))
    figure.legend(handles, labels, loc="outside upper center", ncols=in_a_row, frameon=False, fontsize=10)
    return figure


def sampling_over_time(curves: Mapping[str, Mapping[str, Curve]], y_label: str = "sampling probability q") -> Figure:
    """Draw one panel for each run: the shares of its domains, stacked, by step.

    Args:
        curves: Shares over steps, by run and domain, largest domain first. They sum to 1 at each step, and a run's
            domains have the same steps. If there are more than 12 domains, the last ones are drawn as one.
        y_label: Name of the share.
    """
    columns = min(3, len(curves))
    rows = -(-len(curves) // columns)
    figure = new_figure(max(2.6 * columns + 1.3, 4.5), 2.5 * rows + 0.5)
    panels = figure.subplots(rows, columns, squeeze=False, sharey=True).ravel()
    for panel, (run, lines) in zip(panels, curves.items(), strict=False):
        steps, bands = _bands(lines)
        colours = [shade(i, len(bands)) for i in range(len(bands))]
        drawn = panel.stackplot(
            steps, *bands.values(), colors=colours, edgecolor="white", linewidth=0.4, step="post", labels=bands
        )
        head(panel, run)
        panel.set_xlim(steps[0], steps[-1])
        panel.set_ylim(0, 1)
        label_few(panel, 3)
    for panel in panels[len(curves) :]:
        panel.set_visible(False)
    figure.supxlabel("step", fontsize=10)
    figure.supylabel(y_label, fontsize=10)
    figure.legend(drawn[::-1], list(bands)[::-1], loc="outside right center", frameon=False, fontsize=9)
    return figure


def _bands(lines: Mapping[str, Curve]) -> tuple[Vector, dict[str, Vector]]:
    """Return the steps and the drawn shares, with the small domains as one."""
    names = list(lines)
    kept = names if len(names) <= _MAX_BANDS else names[: _MAX_BANDS - 1]
    steps = lines[names[0]].x
    chosen = np.unique(np.linspace(0, len(steps) - 1, min(len(steps), _MAX_POINTS)).round().astype(int))
    bands = {name: lines[name].y[chosen] for name in kept}
    if rest := names[len(kept) :]:
        bands[f"{len(rest)} more"] = np.sum([lines[name].y[chosen] for name in rest], axis=0)
    return steps[chosen], bands
