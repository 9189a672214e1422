"""Pictures of what a mixture did."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from pycooldown._extras import require
from pycooldown.mixture import Vector

require("plots", "matplotlib")

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


# Colours of Okabe and Ito, without yellow, then of Tol's "muted" set: people with colour-blindness can tell them apart.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
# Colour and line of each method, the same in all figures. Weighting has the colour of sampling with the same target.
_METHODS = {
    "temperature1": ("#56B4E9", "-"),
    "temperature5": ("#0072B2", "-"),
    "temperature100": ("#000000", "-"),
    "temperature5systematic": ("#0072B2", ":"),
    "scalarization": ("#0072B2", "--"),
    "scalarization5": ("#0072B2", "--"),
    "scalarization100": ("#000000", "--"),
    "cooldown": ("#D55E00", "-"),
    "linear": ("#E69F00", "-"),
    "anneal": ("#E69F00", "-"),
    "increase": ("#CC79A7", "-"),
    "flattening": ("#CC79A7", "--"),
    "unimax": ("#009E73", "-"),
    "ordermatters": ("#882255", "-"),
    "doremi": ("#332288", "-"),
    "groupdro": ("#44AA99", "-"),
    "odm": ("#999933", "-"),
    "fgls": ("#AA4499", "-"),
    "fglsva": ("#AA4499", "--"),
    "erma": ("#661100", "-"),
    "ermava": ("#661100", "--"),
    "varianceaware": ("#DDAA33", "-"),
}
_MAX_PANELS = 12
_NEAREST_TICKS = 0.13  # decades between two labelled values of a logarithmic axis, at the width of a panel


class Curve(NamedTuple):
    """A quantity of one domain over a run: x and y (n,), and half the lengths of bars (n,), if there are any."""

    x: Vector
    y: Vector
    error: Vector | None = None


def line_style(name: str) -> dict[str, Any] | None:
    """Return colour and line style of a method, whatever its case and punctuation; ``None`` for other names."""
    plain = re.sub(r"[^a-z0-9]", "", name.lower())
    style = _METHODS.get(re.sub("^translation(pair)?", "", plain))
    return None if style is None else {"color": style[0], "linestyle": style[1]}


def loss_curves(
    curves: Mapping[str, Mapping[str, Curve]],
    *,
    x_label: str,
    y_label: str = "validation loss (nats a token)",
    log_x: bool = False,
) -> Figure:
    """Draw one panel for each domain with a line for each run.

    Args:
        curves: Curves by run and domain, with domains in the order of the first run, largest first. Of more than 12
            domains, 12 are shown, evenly spread.
        x_label: Name of x.
        y_label: Name of y.
        log_x: Whether x is logarithmic; points at x <= 0 are left out then.
    """
    runs, domains = list(curves), list(next(iter(curves.values())))
    if len(domains) > _MAX_PANELS:
        domains = [domains[i] for i in np.linspace(0, len(domains) - 1, _MAX_PANELS).round().astype(int)]
    columns = min(5, len(domains))
    rows = -(-len(domains) // columns)
    figure = _figure(2.5 * columns, 2.25 * rows + 0.7)
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for panel, domain in zip(panels, domains, strict=False):
        for run, style in _styles(runs).items():
            x, y, _ = curves[run][domain]
            shown = x > 0 if log_x else np.ones(x.shape, dtype=bool)
            panel.plot(x[shown], y[shown], linewidth=1.6, label=run, **style)
            panel.plot(x[shown][-1:], y[shown][-1:], "o", color=style["color"], markersize=3.5)
        panel.set_title(domain, fontsize=10, fontweight="bold", loc="left")
        if log_x:
            _label_decades(panel)
        else:
            _label_few(panel)
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
    """Draw one panel for each run: the share of samples of each domain, stacked, by step.

    Args:
        curves: Sampling probabilities q over steps, by run and domain; a run's domains share the steps.
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
        _label_few(panel)
    panels[0].set_ylabel("sampling probability q")
    figure.legend(bands[::-1], domains[::-1], loc="outside right center", frameon=False, fontsize=9)
    return figure


def recipes_with_spread(
    recipes: Sequence[str],
    values: Mapping[str, Sequence[tuple[float, float]]],
    label: str,
    best: Callable[[Sequence[float]], float] = min,
) -> Figure:
    """Draw one panel for each group of domains: a dot for each recipe, with one standard deviation to each side.

    Args:
        recipes: Names of the recipes, from the top down.
        values: (mean, standard deviation) of each recipe, by group.
        label: Name of what is measured.
        best: Whether the best mean, which is marked, is the ``min`` or the ``max``.
    """
    figure = _figure(2.6 * len(values) + 1.4, 0.32 * len(recipes) + 1.2)
    panels = figure.subplots(1, len(values), squeeze=False, sharey=True).ravel()
    heights = np.arange(len(recipes))
    for panel, (group, pairs) in zip(panels, values.items(), strict=True):
        mean, deviation = np.array(pairs, dtype=np.float64).T
        marked = mean.tolist().index(best(mean.tolist()))
        for height, style in zip(heights, _styles(recipes).values(), strict=True):
            panel.errorbar(
                mean[height], height, xerr=deviation[height], fmt="o", color=style["color"], markersize=4, capsize=2
            )
        panel.plot(mean[marked], marked, "o", color="none", markeredgecolor="0.2", markersize=9, zorder=3)
        panel.set_title(group, fontsize=10, fontweight="bold", loc="left")
        panel.grid(alpha=0.25, linewidth=0.6)
        _label_few(panel)
    panels[0].set_yticks(heights, labels=list(recipes))
    panels[0].invert_yaxis()
    figure.supxlabel(f"{label}; the best mean has a ring", fontsize=10)
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
    figure = _figure(3.4 * columns, 2.6 * rows + 0.8)
    axes = figure.subplots(rows, columns, squeeze=False, sharey="col").ravel()
    for panel, (title, lines) in zip(axes, panels.items(), strict=False):
        panel.axhline(0, color="0.5", linewidth=0.8)
        shifts = np.linspace(0.94, 1.06, len(lines))  # bars side by side
        for (name, curve), style, shift in zip(lines.items(), _styles(lines).values(), shifts, strict=True):
            panel.errorbar(
                curve.x * shift, curve.y, curve.error, label=name, marker="o", markersize=3, linewidth=1.2, **style
            )
        panel.set_title(title, fontsize=10, fontweight="bold", loc="left")
        panel.set_xscale("log")
        ticks = _apart(np.unique(np.concatenate([curve.x for curve in lines.values()])))
        panel.set_xticks(ticks, labels=[f"{x:.0f}" for x in ticks])
        panel.minorticks_off()
        panel.grid(alpha=0.25, linewidth=0.6)
    for panel in axes[len(panels) :]:
        panel.set_visible(False)
    figure.supxlabel(x_label, fontsize=10)
    figure.supylabel(y_label, fontsize=10)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=4, frameon=False, fontsize=9)
    return figure


def inflation(lines: Mapping[str, Curve]) -> Figure:
    """Draw the variance inflation F of scalarization over tau (Li et al., NAACL 2025, figure 2), a line a corpus."""
    figure = curves(lines, x_label="temperature", y_label="variance inflation F")
    _label_decades(figure.axes[0])
    return figure


def curves(lines: Mapping[str, Curve], *, x_label: str, y_label: str) -> Figure:
    """Draw one panel with a line for each name."""
    figure = _figure(4.5, 3.2)
    axes = figure.subplots()
    for name, style in _styles(lines).items():
        axes.plot(lines[name].x, lines[name].y, label=name, **style)
    axes.set(xlabel=x_label, ylabel=y_label)
    _label_few(axes)
    axes.legend(frameon=False, fontsize=9)
    return figure


def gradient_norms(norms: Mapping[str, Vector]) -> Figure:
    """Draw norms of minibatch gradients at equal parameters (Li et al., NAACL 2025, figure 3), a box a mixture."""
    figure = _figure(1.3 + 1.1 * len(norms), 3.6)
    axes = figure.subplots()
    axes.boxplot(list(norms.values()), tick_labels=list(norms), widths=0.6, medianprops={"color": _COLOURS[1]})
    for label in axes.get_xticklabels():  # at an angle, so that long names do not overlap
        label.set(fontsize=8, rotation=30, horizontalalignment="right", rotation_mode="anchor")
    axes.set_ylabel("norm of the minibatch gradient")
    return figure


def _figure(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=150, layout="constrained")


def _styles(names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Return colour and line style by name; names of no method get the colours that are left, in order."""
    known = {name: line_style(name) for name in names}
    used = {style["color"] for style in known.values() if style is not None}
    left = [colour for colour in _COLOURS if colour not in used] or list(_COLOURS)
    styles, others = {}, 0
    for name, style in known.items():
        if style is None:
            style = {"color": left[others % len(left)], "linestyle": ("-", "--", ":")[others // len(left) % 3]}
            others += 1
        styles[name] = style
    return styles


def _label_few(panel: Axes) -> None:
    """Label a linear x axis at few places, so that the numbers of a narrow panel do not overlap."""
    from matplotlib.ticker import MaxNLocator

    panel.xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 2.5, 5, 10]))


def _label_decades(panel: Axes) -> None:
    """Make x logarithmic and label it at powers of ten, and between them where a panel spans few decades."""
    from matplotlib.ticker import FixedLocator, NullFormatter

    panel.set_xscale("log")
    low, high = panel.get_xlim()
    span = np.log10(high / low)
    digits = (1, 2, 5) if span < 1.5 else (1, 3) if span < 3 else (1,)
    powers = 10.0 ** np.arange(np.floor(np.log10(low)), np.ceil(np.log10(high)) + 1)
    ticks = np.sort(np.outer(powers, digits).ravel())
    ticks = ticks[(ticks >= low) & (ticks <= high)]
    if len(ticks) > 6:
        ticks = ticks[:: -(-len(ticks) // 6)]
    panel.xaxis.set_major_locator(FixedLocator(ticks.tolist()))
    panel.xaxis.set_major_formatter("{x:g}")
    panel.xaxis.set_minor_formatter(NullFormatter())


def _apart(values: Vector) -> Vector:
    """Return the positions that can be labelled on a logarithmic axis without overlap, from the smallest on."""
    kept = [values[0]]
    for value in values[1:]:
        if np.log10(value / kept[-1]) >= _NEAREST_TICKS:
            kept.append(value)
    return np.array(kept)


def _shade(i: int, n: int) -> Any:
    from matplotlib import colormaps

    return colormaps["viridis"](i / max(n - 1, 1))
