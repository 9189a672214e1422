"""What a comparison says of runs whose losses are known."""

import json

import pytest

pytest.importorskip("transformers")
pytest.importorskip("matplotlib")

from pycooldown.recipes import compare

SIZES = {"a": 10, "b": 4000, "c": 100, "d": 900}


def write_run(folder, method, losses, **changes):
    folder.mkdir()
    data = {"max_length": 32, "eval_samples": 10}
    recipe = {"mixture": {"method": method}, "data": data, "fingerprint": "f", "sizes": SIZES, **changes}
    (folder / "recipe.json").write_text(json.dumps(recipe))
    step = {"step": 10, "loss": 1.0, **{f"{key}/{d}": 0.25 for key in ("epochs", "q") for d in SIZES}}
    evaluation = {"step": 10, "eval_loss": 1.0, **{f"eval_loss/{d}": losses[d] for d in SIZES}}
    (folder / "metrics.jsonl").write_text(f"{json.dumps(step)}\n{json.dumps(evaluation)}\n")
    domains = {d: {"size": n, "draws": 5, "epochs": 5 / n, "loss": losses[d]} for d, n in SIZES.items()}
    (folder / "summary.json").write_text(json.dumps({"domains": domains, "eval_loss": 1.0, "seconds": 1, "steps": 10}))
    return folder


@pytest.fixture
def three(tmp_path):
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
    with pytest.raises(ValueError, match="is not finished; go on with"):
        compare(three)
    with pytest.raises(ValueError, match="holds no run"):
        compare([three[0].parent])


def test_figures(three, tmp_path):
    paths = compare(three).save_figures(tmp_path / "figures")
    assert [path.name for path in paths] == ["loss_by_step.png", "loss_by_epoch.png", "q_over_time.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in paths)
