"""Pictures: a method has one colour in all of them, and no two labels of an axis overlap."""

import itertools

import numpy as np
import pytest

pytest.importorskip("matplotlib")

from matplotlib.backends.backend_agg import FigureCanvasAgg

from pycooldown import plots
from pycooldown.plots import Curve, line_style

METHODS = ["temperature 1", "temperature 5", "cooldown", "unimax", "my own"]


def curve(low, high, seed=0):
    x = np.geomspace(low, high, 12)
    return Curve(x, np.random.default_rng(seed).normal(size=12), np.ones(12))


def loss_curves(low=1.0, high=1e6, log_x=False, domains=5):
    found = {m: {f"domain {i}": curve(low, high) for i in range(domains)} for m in METHODS}
    return plots.loss_curves(found, x_label="x", log_x=log_x)


def gains(x=(5.0, 20.0, 76.0, 78.0, 306.0)):
    x = np.array(x)
    return plots.gains(
        {name: {m: Curve(x, x / 100, x / 500) for m in METHODS} for name in "abc"}, columns=2, x_label="x", y_label="y"
    )


FIGURES = {
    "losses": loss_curves,
    "losses of many steps": lambda: loss_curves(1.0, 123_456.0, domains=12),
    "losses, many decades": lambda: loss_curves(1e-4, 1e4, log_x=True),
    "losses, one decade": lambda: loss_curves(0.9, 9, log_x=True),
    "losses, less than a decade": lambda: loss_curves(30, 80, log_x=True),
    "sampling": lambda: plots.sampling_over_time(
        {m: {d: Curve(np.arange(0, 200_001.0, 1000), np.full(201, 0.5)) for d in "ab"} for m in METHODS}
    ),
    "spread": lambda: plots.recipes_with_spread(
        METHODS, {g: [(4.1, 0.2)] * 5 for g in ("all", "low-resource")}, "loss"
    ),
    "gains": gains,
    "gains at two near places": lambda: gains((5.0, 5.2)),
    "inflation": lambda: plots.inflation({"alpha = 1": curve(1, 100), "alpha = 2": curve(1, 100)}),
    "norms": lambda: plots.gradient_norms({"temperature sampling": np.arange(9.0), "scalarization": np.arange(9.0)}),
}


@pytest.mark.parametrize("name", FIGURES)
def test_labels_do_not_overlap(name):
    figure = FIGURES[name]()
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    for axes in figure.axes:
        if not axes.get_visible():
            continue
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            labels = [tick.label1 for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high]
            labels = [label for label in labels if label.get_visible() and label.get_text()]
            if any(label.get_rotation() for label in labels):
                continue  # lines of text at an angle do not meet, though their upright boxes do
            boxes = [label.get_window_extent(canvas.get_renderer()) for label in labels]
            assert not [a for a, b in itertools.pairwise(boxes) if a.overlaps(b)], (axes.get_title(loc="left"), axis)


def test_a_method_has_one_style():
    assert line_style("cooldown") == line_style("Cooldown") == line_style("translation_cooldown")
    assert line_style("temperature 5") == line_style("temperature5") == line_style("translation_pair_temperature5")
    assert line_style("temperature 5")["color"] == line_style("scalarization 5")["color"]
    assert line_style("my own") is None
    styles = [tuple(style) for style in plots._METHODS.values()]
    same = {("scalarization", "scalarization5"), ("linear", "anneal")}
    assert len(set(styles)) == len(styles) - len(same)


@pytest.mark.parametrize("others", [[], ["my own"], ["temperature 1", "increase", "my own"]])
def test_colours_do_not_depend_on_what_else_is_shown(others):
    lines = {name: Curve(np.arange(3.0), np.arange(3.0)) for name in [*others, "cooldown", "unimax"]}
    figure = plots.curves(lines, x_label="x", y_label="y")
    drawn = {line.get_label(): line.get_color() for line in figure.axes[0].get_lines()}
    assert drawn["cooldown"] == line_style("cooldown")["color"]
    assert drawn["unimax"] == line_style("unimax")["color"]
    assert len(set(drawn.values())) == len(drawn)


def test_all_names_of_a_figure_differ():
    names = [f"run {i}" for i in range(12)]
    figure = plots.curves({n: Curve(np.arange(3.0), np.arange(3.0)) for n in names}, x_label="x", y_label="y")
    drawn = {(line.get_color(), line.get_linestyle()) for line in figure.axes[0].get_lines()}
    assert len(drawn) == len(names)
