"""In a headless browser the planner shows the library's numbers. `nox -s browser` fails without Chromium."""

import html
import json
import re
import shutil
import subprocess

import numpy as np
import pytest

from pycooldown.recipes import load_recipe, plan
from pycooldown.recipes.loading import recipe_of
from pycooldown.recipes.planner_page import PAGE_METHODS, planner_page

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"]
FLAGS += ["--disable-background-networking", "--disable-component-update", "--enable-logging=stderr", "--v=0"]
SIZES = {"en": 659_179_687, "zh-Hans": 9_521_484, "it": 39_062_500, "</script>": 9_521_484, "sw": 244_141}
METHODS = [
    {"method": "temperature", "tau": "inf"},
    {"method": "temperature", "tau": 3.3},
    {"method": "scalarization", "tau": 5},
    {"method": "cooldown", "tau": 5, "final_tau": 2, "switch_at": 0.37},
    {"method": "anneal", "shape": "linear"},
    {"method": "anneal", "tau": 2, "final_tau": 9, "shape": "cosine"},
    {"method": "anneal", "shape": "exponential"},
    {"method": "unimax", "max_epochs": 1.5},
    {"method": "unimax", "max_epochs": 4, "mode": "frontload"},
    {"method": "order_matters"},
    {"method": "order_matters", "high_resource": ["it", "sw"], "tau": 3},
]
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")


def recipe(mixture, steps=50_001, batch_size=1_024):
    run = {"data": {"path": "some/where"}, "training": {"steps": steps, "batch_size": batch_size}}
    return recipe_of({**run, "mixture": mixture}, "a test")


def shown(tmp_path, page):
    """Run the page's scripts and return the texts of its elements by id. Errors in the console fail the test."""
    file = tmp_path / "page.html"
    file.write_text(page, encoding="utf-8")
    command = [CHROMIUM, *FLAGS, f"--user-data-dir={tmp_path}/profile", "--virtual-time-budget=2000", "--dump-dom"]
    done = subprocess.run([*command, file.as_uri()], capture_output=True, text=True, timeout=120, check=True)
    assert "CONSOLE" not in done.stderr, done.stderr
    found = re.findall(r'<(?:pre|p)[^>]* id="(\w+)"[^>]*>(.*?)</', done.stdout, flags=re.DOTALL)
    return {name: html.unescape(text) for name, text in found}


@needs_browser
@pytest.mark.parametrize("steps", [50_001, 30])  # the second run is shorter than the number of points of a stage
def test_numbers_are_the_librarys(tmp_path, steps):
    recipes = {str(mixture): recipe(mixture, steps, 1_024 if steps > 30 else 1_000_000) for mixture in METHODS}
    sizes = SIZES if steps > 30 else {name: 100 * size for name, size in SIZES.items()}
    page = shown(tmp_path, planner_page(recipes, sizes))
    assert not any(text for name, text in page.items() if name.startswith("error"))
    theirs = list(json.loads(page["json"]).values())
    assert len(theirs) == len(METHODS)
    for recipe_, stages in zip(recipes.values(), theirs, strict=True):
        ours = [stage.to_dict() for stage in plan(recipe_, sizes)]
        assert [(s["start"], s["end"], s["exact"]) for s in stages] == [
            (s["start"], s["end"], s["exact"]) for s in ours
        ]
        for ours_, theirs_ in zip(ours, stages, strict=True):
            assert list(theirs_["domains"]) == list(sizes)
            tau = ours_["tau"]
            assert theirs_["tau"] == (pytest.approx(tau, rel=1e-12) if isinstance(tau, float) else tau)
            assert theirs_["variance_inflation"] == pytest.approx(ours_["variance_inflation"], rel=1e-10)
            for name in sizes:
                a, b = ours_["domains"][name], theirs_["domains"][name]
                assert b["size"] == a["size"]
                np.testing.assert_allclose(b["sampling"], a["sampling"], rtol=1e-9, atol=1e-15)
                assert b["loss_weight"] == pytest.approx(a["loss_weight"], rel=1e-9)
                assert abs(b["draws"] - a["draws"]) <= 1  # sums in another order may round differently
                assert b["epochs"] == pytest.approx(b["draws"] / a["size"], rel=1e-12)


@needs_browser
def test_pasted_sizes_are_read_and_the_recipe_is_exported(tmp_path):
    page = planner_page({"one": recipe({"method": "cooldown", "tau": 4}, 5_000, 64)}, SIZES)
    act = """
      $("sizes").value = "domain,tokens\\nen,2.7e9\\nsw,1e6"; $("unit").value = "tokens"; $("length").value = 1000;
      $("steps").value = 777_000; $("batch").value = 32;
      const range = document.querySelector('[aria-label="cooldown tau"]');
      range.value = 1; range.dispatchEvent(new Event("input"));
    """
    text = shown(
        tmp_path, page.replace("showMethods(); update();\n</script>", f"showMethods(); update();{act}</script>")
    )
    file = tmp_path / "recipe.yaml"
    file.write_text(text["recipe"])
    exported = load_recipe(file)
    assert exported == recipe({"method": "cooldown", "tau": 10}, 777_000, 32)
    (theirs,) = json.loads(text["json"]).values()
    ours = plan(exported, {"en": 2_700_000, "sw": 1_000})
    assert theirs[-1]["domains"]["sw"]["draws"] == pytest.approx(ours[-1].exposure.draws[1], abs=1)


@needs_browser
def test_the_page_shows_the_error_of_a_method_that_does_not_fit(tmp_path):
    methods = [{"method": "unimax"}, {"method": "temperature", "tau": 1}]
    page = shown(tmp_path, planner_page({str(m): recipe(m, 100, 40) for m in methods}, {"en": 900, "sw": 3}))
    assert "expected max_epochs >= 4.4" in page["error0"]
    assert len(json.loads(page["json"])) == 1


def test_one_small_file_without_links():
    assert {mixture["method"] for mixture in METHODS} == set(PAGE_METHODS)
    page = planner_page({str(mixture): recipe(mixture) for mixture in METHODS}, SIZES)
    assert len(page.encode()) < 1_000_000
    links = set(re.findall(r"(?:https?:)?//[\w.]+\.\w+/[\w/]*", page))
    assert links == {"http://www.w3.org/2000/svg"}  # a namespace, which no browser fetches
    assert page.count("</script>") == 2  # the page's own two; the name of a domain has not closed one


def test_methods_have_the_colours_of_the_pictures():
    style = pytest.importorskip("pycooldown.plots.style")
    page = planner_page({"one": recipe({"method": "cooldown"})}, SIZES)
    colours = dict(re.findall(r"(\w+): \"(#\w{6})\"", re.search(r"METHOD_COLOURS = \{(.*?)\}", page).group(1)))
    assert colours.keys() == set(PAGE_METHODS)
    for name in ("cooldown", "anneal", "unimax"):
        assert colours[name] == style.line_style(name)["color"]
    assert colours["temperature"] == style.line_style("temperature 5")["color"]
    assert len(set(colours.values())) == len(colours)


def test_what_the_page_cannot_compute_is_refused():
    with pytest.raises(ValueError, match="the page cannot compute method 'odm'; expected one of temperature"):
        planner_page({"one": recipe({"method": "odm"})}, SIZES)
    with pytest.raises(ValueError, match=r"two has training.steps = 7, but the first recipe has 50001"):
        planner_page({"one": recipe({"method": "cooldown"}), "two": recipe({"method": "cooldown"}, steps=7)}, SIZES)
    with pytest.raises(ValueError, match="recipes is empty"):
        planner_page({}, SIZES)
