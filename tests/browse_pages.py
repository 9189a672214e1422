"""The planner and a report work offline in Chromium, with a keyboard and on narrow screens (`nox -s browser`).

Accessibility is checked by the rules of axe, which Lighthouse uses too: contrast, labels, names, headings.
"""

import json
import shutil

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import sync_playwright
from recipes.test_report import compare, report_page, three_runs
from typer.testing import CliRunner

from pycooldown import cli

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
PLAN = [
    "plan",
    "--steps",
    "50000",
    "--batch-size",
    "512",
    "--method",
    "cooldown tau=5",
    "--method",
    "temperature tau=2",
]
PLAN += ["--method", "scalarization tau=3", "--method", "unimax max_epochs=8"]
PLAN += ["--size", "en=659179687", "--size", "it=39062500", "--size", "sw=244140"]
CONTROLS = "a[href], button, input, select, textarea, summary, [tabindex='0']"


def planned(*more):
    result = CliRunner().invoke(cli.app, [*PLAN, *map(str, more)])
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pages")
    planned("--html", folder / "planner.html")
    (folder / "report.html").write_text(report_page(compare(three_runs(folder))), encoding="utf-8")
    return {name: folder / f"{name}.html" for name in ("planner", "report")}


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(params=["light", "dark"])
def scheme(request):
    return request.param


@pytest.fixture(params=["planner", "report"])
def name(request):
    return request.param


@pytest.fixture
def opened(browser, files, name):
    """Return a function that opens the page offline and records its requests and errors in ``page.seen``."""
    contexts = []

    def open_page(width=1000, scheme="light"):
        context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme, offline=True)
        contexts.append(context)
        page = context.new_page()
        page.seen = {"requests": [], "errors": []}
        page.on("request", lambda request: page.seen["requests"].append(request.url))
        page.on("pageerror", lambda error: page.seen["errors"].append(str(error)))
        page.on("console", lambda message: page.seen["errors"].append(message.text))
        page.goto(files[name].as_uri())
        return page

    yield open_page
    for context in contexts:
        context.close()


def test_it_works_offline_from_one_small_file(opened, files, name):
    page = opened()
    assert page.seen["errors"] == []
    outside = [url for url in page.seen["requests"] if not url.startswith("data:") and url != files[name].as_uri()]
    assert outside == []
    assert files[name].stat().st_size < 1_000_000
    assert page.evaluate("[...document.images].filter((image) => !image.naturalWidth).length") == 0


def test_nothing_is_inaccessible(opened, scheme):
    page = opened(scheme=scheme)
    page.evaluate("document.querySelectorAll('details').forEach((details) => { details.open = true; })")
    found = Axe().run(page).response["violations"]
    assert {rule["id"]: [node["html"][:120] for node in rule["nodes"]] for rule in found} == {}


def test_it_fits_a_narrow_screen(opened):
    page = opened(width=400)
    page.evaluate("document.querySelectorAll('details').forEach((details) => { details.open = true; })")
    assert page.evaluate("document.documentElement.scrollWidth") <= 400


def test_every_control_is_reached_by_the_keyboard_and_shows_it(opened):
    page = opened()
    wanted = page.evaluate(
        "(css) => [...document.querySelectorAll(css)].filter((e) => e.checkVisibility())"
        ".map((e, i) => e.dataset.n = i)",
        CONTROLS,
    )
    reached, unseen = [], []
    for _ in wanted:
        page.keyboard.press("Tab")
        number, outline = page.evaluate(
            "[Number(document.activeElement.dataset.n), getComputedStyle(document.activeElement).outlineStyle]"
        )
        reached.append(number)
        unseen += [number] if outline == "none" else []
    assert reached == list(range(len(wanted)))  # in the order of the page
    assert unseen == []


@pytest.mark.parametrize("name", ["planner"], indirect=True)
def test_the_planner_has_the_numbers_of_plan(opened):
    page = opened()
    theirs = json.loads(page.text_content("#json"))
    ours = json.loads(planned("--json"))["plans"]
    assert len(theirs) == len(ours) == 4
    for stages, expected in zip(theirs.values(), ours.values(), strict=True):
        assert [(s["start"], s["end"]) for s in stages] == [(s["start"], s["end"]) for s in expected]
        for stage, wanted in zip(stages, expected, strict=True):
            assert stage["variance_inflation"] == pytest.approx(wanted["variance_inflation"], rel=1e-10)
            for domain, values in wanted["domains"].items():
                found = stage["domains"][domain]
                assert found["size"] == values["size"]
                assert found["sampling"] == pytest.approx(values["sampling"], rel=1e-9)
                assert found["loss_weight"] == pytest.approx(values["loss_weight"], rel=1e-9)
                assert abs(found["draws"] - values["draws"]) <= 1 + 1e-4 * values["draws"] * (not wanted["exact"])


@pytest.mark.parametrize("name", ["planner"], indirect=True)
def test_a_slider_moved_by_keys_changes_table_and_recipe(opened):
    page = opened()
    slider = page.get_by_label("cooldown tau", exact=True)
    before = page.text_content("#table")
    slider.focus()
    for _ in range(10):
        page.keyboard.press("ArrowRight")
    assert page.text_content("#table") != before
    value = page.locator("#methods input:not([type=range])").first.input_value()
    assert float(value) == pytest.approx(5 * 10**0.1, rel=0.01)
    assert f"tau: {value}" in page.text_content("#recipe")


@pytest.mark.parametrize("name", ["planner"], indirect=True)
def test_a_mistake_is_announced(opened):
    page = opened()
    page.get_by_label("Sizes of the domains, one in a line").fill("en: none")
    assert "expected a domain and a size" in page.get_by_role("alert").first.text_content()
