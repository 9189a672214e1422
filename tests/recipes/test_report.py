"""A comparison of runs with known losses has the right tables, sentences, figures and page."""

import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest

pytest.importorskip("transformers")
pytest.importorskip("matplotlib")

from pycooldown import domain_log
from pycooldown.recipes import compare
from pycooldown.recipes.report_page import report_page

SIZES = {"a": 10, "b": 4000, "c": 100, "d": 900}


STEPS = (10, 20, 30)


def write_run(folder, method, losses, **changes):
    """Write a run that was logged at three steps, with the same share of samples in each domain."""
    folder.mkdir()
    data = {"max_length": 32, "eval_samples": 10}
    recipe = {"mixture": {"method": method}, "data": data, "fingerprint": "f", "sizes": SIZES, **changes}
    (folder / "recipe.json").write_text(json.dumps(recipe))
    lines = []
    for step in STEPS:
        values = {"epochs": 0.025 * step, "q": 0.25, "target": 0.25, "samples": step, "tokens": 7 * step}
        lines.append({"step": step, "loss": 1.0, **{f"{key}/{d}": x for key, x in values.items() for d in SIZES}})
        lines.append({"step": step, "eval_loss": 1.0, **{f"eval_loss/{d}": losses[d] for d in SIZES}})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    domains = {d: {"size": n, "draws": 5, "tokens": 35, "epochs": 5 / n, "loss": losses[d]} for d, n in SIZES.items()}
    (folder / "summary.json").write_text(json.dumps({"domains": domains, "eval_loss": 1.0, "seconds": 1, "steps": 10}))
    return folder


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """Return the report of three runs. No test changes it."""
    return report_page(compare(three_runs(tmp_path_factory.mktemp("runs"))))


@pytest.fixture
def three(tmp_path):
    return three_runs(tmp_path)


def three_runs(tmp_path):
    return [
        write_run(tmp_path / "flat", "temperature", {"a": 2.0, "b": 3.0, "c": 2.0, "d": 2.0}),
        write_run(tmp_path / "sized", "temperature", {"a": 6.0, "b": 1.0, "c": 2.0, "d": 1.0}),
        write_run(tmp_path / "cool", "cooldown", {"a": 4.0, "b": 1.5, "c": 2.0, "d": 1.502}),
    ]


def test_rows_and_groups(three):
    comparison = compare(three)
    assert [row.name for row in comparison.rows] == ["b", "d", "c", "a"]
    assert [(g.name, g.domains) for g in comparison.groups] == [
        ("high-resource", ("b", "d")),
        ("mid-resource", ("c",)),
        ("low-resource", ("a",)),
        ("all", ("b", "d", "c", "a")),
    ]
    assert [cell.loss for cell in comparison.groups[0].cells] == [2.5, 1.0, 1.501]
    assert comparison.rows[3].cells[0].epochs == 0.5
    assert [row.best for row in comparison.rows] == [1, 1, 0, 0]


def test_sentence_says_who_is_best_and_that_cooldown_is_not(three):
    sentence = compare(three).sentence
    assert "on high-resource domains (b, d) sized has the lowest loss, 1.000, 0.501 below cool" in sentence
    assert "on low-resource domains (a) flat has the lowest loss, 2.000, 2.000 below cool" in sentence
    assert "over all domains flat has the lowest loss, 2.250, as good as cool" in sentence
    assert "cool did not win, 0.001 behind flat" in sentence


def test_sentence_says_that_cooldown_won(tmp_path, three):
    best = write_run(tmp_path / "best", "cooldown", dict.fromkeys(SIZES, 0.5))
    assert "best won" in compare([*three[:2], best]).sentence


def test_the_table_of_a_notebook_has_every_row_and_run(three):
    comparison = compare(three)
    page = comparison._repr_html_()
    assert page.count("<tr>") == 1 + len(comparison.rows) + len(comparison.groups)
    for run in comparison.runs:
        assert run.name in page
    assert f"{comparison.rows[0].cells[1].loss:.3f} ({comparison.rows[0].cells[1].epochs:.1f})" in page


def test_one_run_is_reported_too(three):
    assert compare(three[:1]).sentence == "Mean validation loss over domains: 2.250 nats a token."


@pytest.mark.parametrize("changes", [{"fingerprint": "other"}, {"sizes": {**SIZES, "a": 11}}])
def test_runs_on_other_data_are_not_compared(tmp_path, three, changes):
    other = write_run(tmp_path / "other", "temperature", dict.fromkeys(SIZES, 1.0), **changes)
    with pytest.raises(ValueError, match="their losses cannot be compared"):
        compare([three[0], other])


def test_an_unfinished_run_is_refused(three):
    (three[1] / "summary.json").unlink()
    with pytest.raises(ValueError, match="is not finished; continue it with"):
        compare(three)
    with pytest.raises(ValueError, match="holds no run"):
        compare([three[0].parent])


def test_figures(three, tmp_path):
    paths = compare(three).save_figures(tmp_path / "figures")
    assert [path.stem for path in paths] == [
        *("loss_by_step", "loss_by_epoch", "q_over_time", "samples_over_time", "tokens_over_time")
    ]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in paths)


def test_pictures_without_logs_are_left_out(three):
    for run in three:
        (run / "metrics.jsonl").write_text("")
    assert compare(three).figures() == {}


def test_shares_of_a_run_of_many_domains_come_from_its_file_of_arrays(tmp_path):
    sizes = {f"d{i}": 100 - i for i in range(80)}
    run = write_run(tmp_path / "many", "temperature", dict.fromkeys(SIZES, 1.0))
    summary = {d: {"size": n, "draws": 5, "tokens": 9, "epochs": 5 / n, "loss": 2.0} for d, n in sizes.items()}
    (run / "summary.json").write_text(json.dumps({"domains": summary, "eval_loss": 2.0, "seconds": 1, "steps": 30}))
    recipe = json.loads((run / "recipe.json").read_text())
    (run / "recipe.json").write_text(json.dumps({**recipe, "sizes": sizes}))
    for step in STEPS:
        counts = np.arange(1, 81) * step
        values = {"samples": counts, "tokens": 3 * counts, "epochs": counts / 50, "q": counts / counts.sum()}
        domain_log.append(run / domain_log.TRAINING, step, {**values, "target": values["q"]})
        domain_log.append(run / domain_log.EVALUATION, step, {"eval_loss": 3 - counts / counts.sum()})
    comparison = compare([run])
    steps, samples = comparison.runs[0].series("samples")
    assert steps.tolist() == list(STEPS)
    assert samples["d79"].tolist() == [80.0 * step for step in STEPS]
    figures = comparison.figures()
    assert len(figures) == 5
    assert figures["samples_over_time"].axes[0].collections[-1].get_label() == "69 more"
    assert len(report_page(comparison).encode()) < 1_000_000


class Page(HTMLParser):
    """Parse what a page shows and what it would fetch."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.sources, self.rows, self.text, self.open = [], [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.tags.append((tag, attributes))
        self.sources += [value for name, value in attributes.items() if name in ("src", "href", "action", "data")]
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)
        if "td" in self.open:
            self.rows[-1].append((data, "b" in self.open))


def test_the_page_is_one_small_file_that_loads_nothing(page, three):
    text, page = page, Page(page)
    assert page.open == []  # every element is closed
    assert len(text.encode()) < 1_000_000
    assert len(page.sources) == 5
    assert all(source.startswith("data:image/") for source in page.sources)
    assert not [tag for tag, _ in page.tags if tag in ("script", "link", "iframe", "object")]
    assert re.findall(r"url\(|@import", text) == []
    assert all(attributes["alt"] for tag, attributes in page.tags if tag == "img")
    policies = [a["content"] for tag, a in page.tags if a.get("http-equiv") == "Content-Security-Policy"]
    assert policies == ["default-src 'none'; img-src data:; style-src 'unsafe-inline'"]
    assert report_page(compare(three)) == text  # the same runs give the same page


def test_the_page_has_losses_shares_and_recipes(page, three):
    page = Page(page)
    text = " ".join(page.text)
    for heading in ("Validation losses", "What was drawn", "Over time", "Configuration"):
        assert heading in text
    assert compare(three).sentence in text
    assert [("b", False), ("4,000", False), ("3.000", False), ("1.000", True), ("1.500", False)] in page.rows
    shares = [("25.00%", False)] * 3
    assert [("b", False), ("4,000", False), *[*shares, ("0.00", False)] * 3] in page.rows
    assert [("mixture.method", False), ("temperature", False), ("temperature", False), ("cooldown", False)] in page.rows
    assert "max_length: 32" in text


def test_names_of_runs_and_domains_are_text(tmp_path):
    run = write_run(tmp_path / "<img src=x>", "temperature", dict.fromkeys(SIZES, 1.0))
    page = Page(report_page(compare([run])))
    assert len([tag for tag, _ in page.tags if tag == "img"]) == 5
    assert "<img src=x>" in "".join(page.text)
