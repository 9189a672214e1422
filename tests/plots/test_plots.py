"""A method has one colour in all pictures, and no two labels of an axis overlap."""

import itertools

import numpy as np
import pytest

pytest.importorskip("matplotlib")

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex

from pycooldown import plots
from pycooldown.plots import Curve, line_style, style
from pycooldown.recipes.methods import method_names

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
        METHODS, {g: [(4.1, 0.2)] * 5 for g in ("high-resource", "mid-resource", "low-resource", "all")}, "loss"
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
                continue  # rotated texts do not overlap, although their bounding boxes do
            boxes = [label.get_window_extent(canvas.get_renderer()) for label in labels]
            assert not [a for a, b in itertools.pairwise(boxes) if a.overlaps(b)], (axes.get_title(loc="left"), axis)


def rings(figure):
    return [[line for line in axes.get_lines() if line.get_markersize() == 10] for axes in figure.axes]


def test_the_best_has_a_ring_only_where_it_is_named():
    values = {g: [(4.0, 0.2), (4.1, 0.2)] for g in ("rare", "all")}
    figure = plots.recipes_with_spread(["cooldown", "unimax"], values, "loss", {"all": 0})
    assert [len(found) for found in rings(figure)] == [0, 1]
    assert rings(figure)[1][0].get_xydata().tolist() == [[4.0, 0.0]]
    assert "ring" in figure.get_supxlabel()
    assert "none is best" in plots.recipes_with_spread(["cooldown", "unimax"], values, "loss").get_supxlabel()
    alone = plots.recipes_with_spread(["cooldown"], {"all": [(4.0, None)]}, "loss")
    assert "the spread is unknown" in alone.get_supxlabel()


def test_the_error_of_a_curve_is_a_band():
    x = np.arange(1.0, 5.0)
    for log_x in (False, True):
        runs = {"cooldown": {"a": Curve(x, x, x / 10)}, "unimax": {"a": Curve(x, x)}}
        panel = plots.loss_curves(runs, x_label="x", log_x=log_x).axes[0]
        (band,) = panel.collections
        heights = band.get_paths()[0].vertices
        assert heights[:, 1].min() == pytest.approx(0.9)
        assert heights[:, 1].max() == pytest.approx(4.4)


@pytest.mark.parametrize("name", FIGURES)
def test_figures_are_no_wider_than_a_readme_shows_legibly(name):
    assert FIGURES[name]().get_size_inches()[0] <= style.WIDTH


def test_small_domains_are_drawn_as_one_and_shares_still_sum_to_one():
    x = np.arange(0.0, 2_000.0)
    runs = {"cooldown": {f"d{i}": Curve(x, np.full(2_000, 0.02)) for i in range(50)}}
    panel = plots.sampling_over_time(runs).axes[0]
    bands = panel.collections
    assert len(bands) == 12
    assert bands[-1].get_label() == "39 more"
    tops = bands[-1].get_paths()[0].vertices[:, 1]
    assert tops.max() == pytest.approx(1.0)
    assert len(tops) < 2_000


def test_a_method_has_one_style():
    assert line_style("cooldown") == line_style("Cooldown") == line_style("translation_cooldown")
    assert line_style("temperature 5") == line_style("temperature5") == line_style("translation_pair_temperature5")
    assert line_style("temperature 5")["color"] == line_style("scalarization 5")["color"]
    assert line_style("my own") is None
    styles = [tuple(found) for found in style.METHODS.values()]
    same = {
        ("temperature", "temperature5"),
        ("temperature5", "temperaturesampling"),
        ("scalarization", "scalarization5"),
        ("linear", "anneal"),
    }
    assert len(set(styles)) == len(styles) - len(same)


@pytest.mark.parametrize("name", method_names())
def test_every_method_of_a_recipe_has_a_style(name):
    assert line_style(name) is not None


def test_corpora_have_no_colour_of_a_method():
    figure = plots.inflation({f"alpha = {a}": curve(1, 100) for a in (0.5, 1, 2)})
    colours = {to_hex(line.get_color()).upper() for line in figure.axes[0].get_lines()}
    assert len(colours) == 3
    assert not colours & {colour for colour, _ in style.METHODS.values()}


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
