"""The common style of all figures: sizes, colours by method, and axis labels that do not overlap."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from pycooldown._extras import require
from pycooldown.mixture import Vector

require("plots", "matplotlib")

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH = 9.0  # inches; a README shows about 6 inches at this resolution, so text of 10 points stays legible
# Colours of Okabe and Ito, without yellow, then of Tol's "muted" set: colour-blind people can distinguish them.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
# Colour and line of each method in all figures. Weighting has the colour of sampling with the same target.
METHODS = {
    "temperature1": ("#56B4E9", "-"),
    "temperature": ("#0072B2", "-"),
    "temperature5": ("#0072B2", "-"),
    "temperature100": ("#000000", "-"),
    "temperature5systematic": ("#0072B2", ":"),
    "temperaturesampling": ("#0072B2", "-"),
    "scalarization": ("#0072B2", "--"),
    "scalarization5": ("#0072B2", "--"),
    "scalarization100": ("#000000", "--"),
    "cooldown": ("#D55E00", "-"),
    "cooldownbyexposure": ("#D55E00", "--"),
    "staircase": ("#D55E00", ":"),
    "weights": ("#777777", "-"),
    "averaged": ("#777777", "--"),
    "linear": ("#E69F00", "-"),
    "anneal": ("#E69F00", "-"),
    "exponential": ("#E69F00", "--"),
    "increase": ("#CC79A7", "-"),
    "flattening": ("#CC79A7", "--"),
    "unimax": ("#009E73", "-"),
    "unimaxfrontloaded": ("#009E73", "--"),
    "ordermatters": ("#882255", "-"),
    "doremi": ("#332288", "-"),
    "groupdro": ("#44AA99", "-"),
    "odm": ("#999933", "-"),
    "ado": ("#999933", "--"),
    "pike": ("#DDAA33", "--"),
    "fgls": ("#AA4499", "-"),
    "fglsva": ("#AA4499", "--"),
    "erma": ("#661100", "-"),
    "ermava": ("#661100", "--"),
    "varianceaware": ("#DDAA33", "-"),
}
_NEAREST_TICKS = 0.13  # decades between two labelled values of a logarithmic axis, at the width of a panel


class Curve(NamedTuple):
    """A quantity over a run.

    Attributes:
        x: Positions, (n,).
        y: Values, (n,).
        error: Half the length of the interval around each value, (n,), if it is known.
    """

    x: Vector
    y: Vector
    error: Vector | None = None


def line_style(name: str) -> dict[str, Any] | None:
    """Return colour and line style of a method, ignoring case and punctuation; ``None`` for other names."""
    plain = re.sub(r"[^a-z0-9]", "", name.lower().partition("\n")[0])
    style = METHODS.get(re.sub("^translation(pair)?", "", plain))
    return None if style is None else {"color": style[0], "linestyle": style[1]}


def styles(names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Return colour and line style by name; other names get the remaining colours, in order."""
    known = {name: line_style(name) for name in names}
    used = {style["color"] for style in known.values() if style is not None}
    left = [colour for colour in _COLOURS if colour not in used] or list(_COLOURS)
    found, others = {}, 0
    for name, style in known.items():
        if style is None:
            style = {"color": left[others % len(left)], "linestyle": ("-", "--", ":")[others // len(left) % 3]}
            others += 1
        found[name] = style
    return found


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure of a width in inches, at most `WIDTH`, and a height."""
    from matplotlib.figure import Figure

    return Figure(figsize=(min(width, WIDTH), height), dpi=150, layout="constrained")


def head(panel: Axes, title: str) -> None:
    """Put a title above a panel, and lines behind its content."""
    panel.set_title(title, fontsize=10, fontweight="bold", loc="left")
    panel.grid(alpha=0.25, linewidth=0.6)
    panel.set_axisbelow(True)


def label_few(panel: Axes, most: int = 4) -> None:
    """Label a linear x axis at few places, so that the numbers of a narrow panel do not overlap."""
    from matplotlib.ticker import MaxNLocator

    panel.xaxis.set_major_locator(MaxNLocator(most, steps=[1, 2, 2.5, 5, 10]))


def label_decades(panel: Axes, most: int = 5) -> None:
    """Make x logarithmic and label it at powers of ten, and between them if a panel spans few decades."""
    from matplotlib.ticker import FixedLocator, NullFormatter

    panel.set_xscale("log")
    low, high = panel.get_xlim()
    span = np.log10(high / low)
    digits = (1, 2, 5) if span < 1.5 else (1, 3) if span < 3 else (1,)
    powers = 10.0 ** np.arange(np.floor(np.log10(low)), np.ceil(np.log10(high)) + 1)
    ticks = np.sort(np.outer(powers, digits).ravel())
    ticks = ticks[(ticks >= low) & (ticks <= high)]
    if len(ticks) > most:
        ticks = ticks[:: -(-len(ticks) // most)]
    panel.xaxis.set_major_locator(FixedLocator(ticks.tolist()))
    panel.xaxis.set_major_formatter(_short)
    panel.xaxis.set_minor_formatter(NullFormatter())


def _short(x: float, _: object = None) -> str:
    """Return a number as 0.3 or 300, and very small and large ones as 1e-4."""
    return f"{x:g}" if 0.01 <= x < 10_000 else f"{x:.0e}".replace("e-0", "e-").replace("e+0", "e")


def apart(values: Vector) -> Vector:
    """Return the positions that can be labelled on a logarithmic axis without overlap, from the smallest on."""
    kept = [values[0]]
    for value in values[1:]:
        if np.log10(value / kept[-1]) >= _NEAREST_TICKS:
            kept.append(value)
    return np.array(kept)


def shade(i: int, n: int) -> Any:
    """Return the colour of the i-th of n domains, from the largest on."""
    from matplotlib import colormaps

    return colormaps["viridis"](i / max(n - 1, 1))
