"""Pictures of what a mixture did."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from pycooldown._extras import require

require("plots", "matplotlib")

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Vector = npt.NDArray[np.float64]

# The Okabe-Ito colours, which people with colour-blindness can tell apart, without yellow.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_MAX_PANELS = 12


class Curve(NamedTuple):
    """A quantity of one domain over a run; x and y of the same length, and so the half length of its bars, if any."""

    x: Vector
    y: Vector
    error: Vector | None = None


def loss_curves(
    curves: Mapping[str, Mapping[str, Curve]],
    *,
    x_label: str,
    y_label: str = "validation loss (nats a token)",
    log_x: bool = False,
) -> Figure:
    """One panel for each domain with a line for each run.

    Args:
        curves: by run and domain; domains in the order of the first run, largest first. Of more than 12, 12 are shown,
            evenly spread.
        x_label: what x is.
        y_label: what y is.
        log_x: logarithmic x; points at x <= 0 are left out.
    """
    from matplotlib.ticker import LogLocator, NullFormatter

    runs, domains = list(curves), list(next(iter(curves.values())))
    if len(domains) > _MAX_PANELS:
        domains = [domains[i] for i in np.linspace(0, len(domains) - 1, _MAX_PANELS).round().astype(int)]
    columns = min(5, len(domains))
    rows = -(-len(domains) // columns)
    figure = _figure(2.5 * columns, 2.25 * rows + 0.7)
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for panel, domain in zip(panels, domains, strict=False):
        for run, colour in zip(runs, _cycle(len(runs)), strict=True):
            x, y, _ = curves[run][domain]
            shown = x > 0 if log_x else np.ones(x.shape, dtype=bool)
            panel.plot(x[shown], y[shown], color=colour, linewidth=1.6, label=run)
            panel.plot(x[shown][-1:], y[shown][-1:], "o", color=colour, markersize=3.5)
        panel.set_title(domain, fontsize=10, fontweight="bold", loc="left")
        if log_x:
            panel.set_xscale("log")
            panel.xaxis.set_major_locator(LogLocator(subs=(1, 3)))  # a panel may span less than a decade
            panel.xaxis.set_major_formatter("{x:g}")
            panel.xaxis.set_minor_formatter(NullFormatter())
        panel.grid(alpha=0.25, linewidth=0.6)
    for panel in panels[len(domains) :]:
        panel.set_visible(False)
    figure.supxlabel(x_label, fontsize=10)
    figure.supylabel(y_label, fontsize=10)
    handles, labels = panels[0].get_legend_handles_labels()
    shown_in_a_row = min(len(runs), max(2, columns))
    figure.legend(handles, labels, loc="outside upper center", ncols=shown_in_a_row, frameon=False, fontsize=10)
    return figure


def sampling_over_time(curves: Mapping[str, Mapping[str, Curve]]) -> Figure:
    """One panel for each run: the share of samples that each domain is given, stacked, by step.

    Args:
        curves: sampling probabilities q over steps, by run and domain; the steps are shared by a run's domains.
    """
    runs, domains = list(curves), list(next(iter(curves.values())))
    figure = _figure(3.4 * len(runs) + 1.2, 3.6)
    panels = figure.subplots(1, len(runs), squeeze=False, sharey=True).ravel()
    colours = [_shade(i, len(domains)) for i in range(len(domains))]
    for panel, run in zip(panels, runs, strict=True):
        steps = curves[run][domains[0]].x
        bands = panel.stackplot(
            steps, *(curves[run][d].y for d in domains), colors=colours, edgecolor="white", linewidth=0.5, step="post"
        )
        panel.set_title(run, fontsize=10, fontweight="bold", loc="left")
        panel.set_xlim(steps[0], steps[-1])
        panel.set_ylim(0, 1)
        panel.set_xlabel("step")
    panels[0].set_ylabel("sampling probability q")
    figure.legend(bands[::-1], domains[::-1], loc="outside right center", frameon=False, fontsize=9)
    return figure


def recipes_with_spread(
    recipes: Sequence[str],
    values: Mapping[str, Sequence[tuple[float, float]]],
    label: str,
    best: Callable[[Sequence[float]], float] = min,
) -> Figure:
    """One panel for each group of domains: a dot for each recipe, with a bar of one standard deviation to each side.

    Args:
        recipes: their names, from the top down.
        values: (mean, standard deviation) of each recipe, by group.
        label: what is measured.
        best: min or max, which is marked.
    """
    figure = _figure(2.6 * len(values) + 1.4, 0.32 * len(recipes) + 1.2)
    panels = figure.subplots(1, len(values), squeeze=False, sharey=True).ravel()
    heights = np.arange(len(recipes))
    for panel, (group, pairs) in zip(panels, values.items(), strict=True):
        mean, deviation = np.array(pairs, dtype=np.float64).T
        panel.errorbar(mean, heights, xerr=deviation, fmt="o", color=_COLOURS[0], markersize=4, capsize=2)
        marked = mean.tolist().index(best(mean.tolist()))
        panel.plot(mean[marked], marked, "o", color=_COLOURS[1], markersize=6, zorder=3)
        panel.set_title(group, fontsize=10, fontweight="bold", loc="left")
        panel.grid(alpha=0.25, linewidth=0.6)
    panels[0].set_yticks(heights, labels=list(recipes))
    panels[0].invert_yaxis()
    figure.supxlabel(f"{label}; the best mean in red", fontsize=10)
    return figure


def gains(panels: Mapping[str, Mapping[str, Curve]], *, columns: int, x_label: str, y_label: str) -> Figure:
    """Differences from a baseline at 0 over a logarithmic x, with bars: a panel for each name, a line for each run."""
    rows = -(-len(panels) // columns)
    figure = _figure(3.4 * columns, 2.6 * rows + 0.8)
    axes = figure.subplots(rows, columns, squeeze=False, sharey="col").ravel()
    for panel, (title, lines) in zip(axes, panels.items(), strict=True):
        panel.axhline(0, color="0.5", linewidth=0.8)
        shifts = np.linspace(0.94, 1.06, len(lines))  # bars side by side
        for (name, curve), colour, shift in zip(lines.items(), _cycle(len(lines)), shifts, strict=True):
            panel.errorbar(
                curve.x * shift, curve.y, curve.error, color=colour, label=name, marker="o", markersize=3, linewidth=1.2
            )
        panel.set_title(title, fontsize=10, fontweight="bold", loc="left")
        panel.set_xscale("log")
        panel.set_xticks(curve.x, labels=[f"{x:.0f}" for x in curve.x])
        panel.minorticks_off()
        panel.grid(alpha=0.25, linewidth=0.6)
    figure.supxlabel(x_label, fontsize=10)
    figure.supylabel(y_label, fontsize=10)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=4, frameon=False, fontsize=9)
    return figure


def inflation(lines: Mapping[str, Curve]) -> Figure:
    """Variance inflation F of scalarization over tau, a line for each corpus (Li et al., NAACL 2025, figure 2)."""
    figure = curves(lines, x_label="temperature", y_label="variance inflation F")
    figure.axes[0].set_xscale("log")
    return figure


def curves(lines: Mapping[str, Curve], *, x_label: str, y_label: str) -> Figure:
    """One panel with a line for each name."""
    figure = _figure(4.5, 3.2)
    axes = figure.subplots()
    for (name, (x, y, _)), colour in zip(lines.items(), _cycle(len(lines)), strict=True):
        axes.plot(x, y, color=colour, label=name)
    axes.set(xlabel=x_label, ylabel=y_label)
    axes.legend(frameon=False, fontsize=9)
    return figure


def gradient_norms(norms: Mapping[str, Vector]) -> Figure:
    """Norms of minibatch gradients at the same parameters, a box for each mixture (figure 3 of the same paper)."""
    figure = _figure(1.3 + 1.1 * len(norms), 3.6)
    axes = figure.subplots()
    axes.boxplot(list(norms.values()), tick_labels=list(norms), widths=0.6, medianprops={"color": _COLOURS[1]})
    axes.tick_params(axis="x", labelsize=8, rotation=30)
    axes.set_ylabel("norm of the minibatch gradient")
    return figure


def _figure(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=150, layout="constrained")


def _cycle(n: int) -> Sequence[str]:
    return [_COLOURS[i % len(_COLOURS)] for i in range(n)]


def _shade(i: int, n: int) -> Any:
    from matplotlib import colormaps

    return colormaps["viridis"](i / max(n - 1, 1))
