"""Plans have exact or expected draws, take sizes from files, and need neither torch nor data."""

import json
import subprocess
import sys

import numpy as np
import pytest

pytest.importorskip("pydantic")

from pycooldown.recipes import load_recipe, plan
from pycooldown.recipes import planning as planning_module
from pycooldown.recipes.sizes import parse_size, read_sizes, to_sequences

SIZES = {"en": 2_000, "sw": 300}


def recipe(tmp_path, mixture, steps=100, batch_size=64):
    path = tmp_path / "recipe.yaml"
    path.write_text(
        f"data: {{path: nowhere}}\nmixture: {mixture}\ntraining: {{steps: {steps}, batch_size: {batch_size}}}\n"
    )
    return load_recipe(path)


def test_sizes_take_the_place_of_data(tmp_path):
    chosen = recipe(tmp_path, "{method: cooldown, switch_at: 0.25}")
    first, second = plan(chosen, SIZES)
    assert (first.start, first.end, second.start, second.end) == (0, 25, 25, 100)
    assert first.exact
    assert second.exposure.draws.sum() == 6_400
    assert json.loads(json.dumps(second.to_dict(), allow_nan=False))["domains"]["sw"]["size"] == 300
    with pytest.raises(FileNotFoundError):
        plan(chosen)


@pytest.mark.parametrize(
    "mixture",
    [
        "{method: temperature, tau: 3}",
        "{method: cooldown}",
        "{method: anneal}",
        "{method: unimax, mode: frontload, max_epochs: 8}",
    ],
)
def test_expected_draws_are_near_the_exact_ones(tmp_path, monkeypatch, mixture):
    chosen = recipe(tmp_path, mixture, steps=100)
    exact = plan(chosen, SIZES)
    monkeypatch.setattr(planning_module, "MAX_COUNTED", 0)
    expected = plan(chosen, SIZES)
    assert not expected[-1].exact
    for a, b in zip(exact, expected, strict=True):
        assert (a.start, a.end) == (b.start, b.end)
        assert abs(a.exposure.draws - b.exposure.draws).max() < 4 * np.sqrt(6_400 / 4)
        assert b.exposure.draws.sum() == pytest.approx(64 * b.end, abs=2)


def test_long_curves_are_sampled(tmp_path):
    stages = plan(recipe(tmp_path, "{method: anneal}", steps=10**6, batch_size=1024), {"en": 10**12, "sw": 10**8})
    assert stages[-1].end == 10**6
    assert stages[-1].exposure.draws.sum() == pytest.approx(1024 * 10**6, rel=1e-9)


def test_a_plan_needs_no_torch():
    code = (
        "import sys; sys.modules['torch'] = sys.modules['transformers'] = None\n"
        "from pycooldown.cli import app\n"
        "app(['plan', '--size', 'en=2.7e12', '--size', 'sw=1e9', '--unit', 'tokens', '--sequence-length', '1024',\n"
        "     '--steps', '1000', '--batch-size', '64', '--method', 'cooldown', '--method', 'odm', '--json'])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    content = json.loads(result.stdout)
    assert list(content["plans"]) == ["cooldown", "odm"]
    assert content["plans"]["odm"][0]["learned"]
    assert content["plans"]["cooldown"][0]["domains"]["en"]["size"] == int(2.7e12) // 1024


def test_sizes_from_files_and_texts(tmp_path):
    (tmp_path / "sizes.yaml").write_text("en: 2.7e12\nsw: 1_000\n")
    (tmp_path / "sizes.csv").write_text("domain,tokens\nen,2.7e12\nsw,1000\n")
    (tmp_path / "bare.csv").write_text("en,2.7e12\nsw,1000\n")
    expected = {"en": 2.7e12, "sw": 1000.0}
    assert all(read_sizes(tmp_path / name) == expected for name in ("sizes.yaml", "sizes.csv", "bare.csv"))
    assert parse_size("a=b=3") == ("a=b", 3.0)
    assert to_sequences(expected, "tokens", 512) == {"en": int(2.7e12) // 512, "sw": 1}


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("s.yaml", "en: many", "size of 'en' is 'many'; expected a number > 0"),
        ("s.yaml", "en: -3", "size of 'en' is -3"),
        ("s.yaml", "no: 3", "domain False is no text; put it in quotes"),
        ("s.yaml", "- 3", "holds a list; expected domains with their sizes"),
        ("s.yaml", "{}", "has no sizes"),
        ("s.yaml", "a: [", "is not YAML"),
        ("s.csv", "en,1,2", "row 1 has 3 columns; expected domain,size"),
        ("s.csv", "en,1\nen,2", "has 'en' twice"),
        ("s.csv", "en,1\nsw,x", "size of 'sw' is 'x'"),
        ("s.csv", "en,inf", "size of 'en' is 'inf'"),
    ],
)
def test_files_that_hold_no_sizes_are_refused(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        read_sizes(tmp_path / name)


def test_sizes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="expected domain=number"):
        parse_size("en")
    with pytest.raises(ValueError, match="pass --sequence-length"):
        to_sequences({"en": 1e9}, "tokens")
    with pytest.raises(ValueError, match="domain 'sw' has 100 tokens, less than one sequence of 512"):
        to_sequences({"sw": 100}, "tokens", 512)


def test_rules_say_how_many_steps_a_run_has(tmp_path):
    rule = "all_exhausted_without_replacement"
    (stage,) = plan(recipe(tmp_path, "{method: temperature, tau: 3}", steps=rule), SIZES)
    assert stage.exposure.draws.tolist() == list(SIZES.values())
    assert stage.end == 36  # 35 batches of 64 sequences and one of 60
    (stage,) = plan(recipe(tmp_path, "{method: temperature, tau: 3}", steps="all_exhausted"), SIZES)
    assert stage.exposure.epochs.min() >= 1 > (stage.exposure.draws[0] - 64) / SIZES["en"]
    with pytest.raises(ValueError, match=r"mixture: cooldown depends on training.steps, which is 'all_exhausted'"):
        plan(recipe(tmp_path, "{method: cooldown}", steps="all_exhausted"), SIZES)


@pytest.mark.parametrize("mixture", ["{method: cooldown}", "{method: anneal}"])
def test_plans_follow_ramps_of_the_batch_size(tmp_path, monkeypatch, mixture):
    chosen = recipe(tmp_path, mixture, batch_size=[[0, 16], [10, 32], [60, 64]])
    exact = plan(chosen, SIZES)[-1].exposure
    assert exact.draws.sum() == 10 * 16 + 50 * 32 + 40 * 64
    monkeypatch.setattr(planning_module, "MAX_COUNTED", 0)
    assert plan(chosen, SIZES)[-1].exposure.draws == pytest.approx(exact.draws, rel=0.1)
    with pytest.raises(ValueError, match=r"mixture: unimax depends on training.batch_size, which is \(\(0, 16\), "):
        plan(recipe(tmp_path, "{method: unimax, max_epochs: 2}", batch_size=[[0, 16], [10, 32]]), SIZES)
