"""Table 3 has scores by group of size from a sweep's rows, and its claims are judged by them."""

import csv
from pathlib import Path

import numpy as np
import pytest

from pycooldown.recipes.loading import load_recipe
from reproduction import evidence, groups

LANGUAGES = {"es": 1000, "de": 1000, "cs": 1000, "fr": 500, "nl": 500, "pt": 500, "ro": 100, "gl": 100, "da": 100}
RECIPES = ("temperature1", "temperature5", "unimax", "order_matters", "cooldown")


def write_sweep(path, gains, seeds=8):
    """Write rows as a sweep does. All recipes have the same scores, but Cooldown gains ``gains`` by group."""
    rng = np.random.default_rng(0)
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["recipe", "seed", "domain", "size", "epochs", "measure", "value"])
        for recipe in RECIPES:
            for seed in range(seeds):
                for i, (domain, size) in enumerate(LANGUAGES.items()):
                    gain = gains[i // 3] if recipe == "cooldown" else 0.0
                    for measure, level in (("loss", 5.0), ("bleu", 10.0), ("chrf", 30.0)):
                        value = level + i % 3 + seed + gain + 0.01 * rng.normal()
                        writer.writerow([recipe, seed, domain, size, 1.0, measure, value])


def test_scores_are_means_over_the_languages_of_a_group(tmp_path):
    write_sweep(tmp_path / "sweep.csv", (0, 0, 0))
    scores = groups.read_scores(tmp_path / "sweep.csv")
    assert set(scores) == {"loss", "bleu", "chrf"}
    assert scores["bleu"]["unimax"]["smallest"] == pytest.approx(11 + np.arange(8), abs=0.05)


@pytest.mark.parametrize(
    ("gains", "expected"),
    [
        (
            (1.5, 1.0, 0.0),
            ["reproduced", "inconclusive", "reproduced", "reproduced"],
        ),  # T3b: the smallest languages gain nothing
        ((1.5, 1.0, 3.0), ["reproduced"] * 4),
        ((1.5, 1.0, -3.0), ["not reproduced"] * 4),
        ((-3.0, 1.0, 3.0), ["not reproduced"] * 4),
    ],
)
def test_claims_are_judged_in_every_group(tmp_path, gains, expected):
    write_sweep(tmp_path / "sweep.csv", gains)
    judged = groups.judge(groups.read_scores(tmp_path / "sweep.csv"))
    assert [j.name for j in judged] == ["T3", "T3b", "T3c", "T3d"] * 2  # for BLEU, then for chrF
    assert [j.verdict for j in judged] == expected * 2


def test_what_is_little_is_a_share_of_the_score_under_tau_5(tmp_path):
    """BLEU is 14.5 on average, chrF 34.5: a loss of one point is more than 5 % of the first, less of the second."""
    write_sweep(tmp_path / "sweep.csv", (1.5, 1.0, -1.0))
    judged = groups.judge(groups.read_scores(tmp_path / "sweep.csv"))
    assert [j.verdict for j in judged if j.name == "T3"] == ["not reproduced", "reproduced"]
    assert judged[0].parts[2].bound == pytest.approx(-0.05 * 14.5, rel=0.01)


def test_few_seeds_have_no_verdict_and_a_sweep_without_translations_is_refused(tmp_path):
    write_sweep(tmp_path / "sweep.csv", (1.5, 1.0, 3.0), seeds=2)
    assert groups.judge(groups.read_scores(tmp_path / "sweep.csv")) == []
    assert groups.read_scores(tmp_path / "none.csv") == {}
    text = (tmp_path / "sweep.csv").read_text().replace("bleu", "other")
    (tmp_path / "sweep.csv").write_text(text)
    with pytest.raises(ValueError, match="no BLEU and chrF of three or more languages"):
        groups.copy_scores(tmp_path, tmp_path / "copy.csv")
    assert not (tmp_path / "copy.csv").exists()


def test_the_page_has_the_section(tmp_path):
    write_sweep(tmp_path / "sweep.csv", (1.5, 1.0, 3.0))
    groups.copy_scores(tmp_path, tmp_path / "groups" / "table3.csv")
    text = evidence.page(evidence.Evidence({}, {}, {}, groups.read_scores(tmp_path / "groups" / "table3.csv")), {})
    assert "## Nine languages by groups of size (table 3)" in text
    assert "| T3 | Cooldown gains on the largest languages against tau = 5" in text


def test_recipes_differ_in_their_mixture_alone():
    found = {p.stem: load_recipe(p).to_dict() for p in (Path(__file__).parents[2] / "recipes" / "table3").iterdir()}
    assert set(found) == {*RECIPES, "temperature100"}
    first = found["cooldown"]
    for recipe in found.values():
        assert {**recipe, "mixture": None} == {**first, "mixture": None}
    assert list(first["data"]["domains"]) == list(LANGUAGES)
