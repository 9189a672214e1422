"""Recipes side by side over seeds: what is trained, what is not trained again, and the numbers of the table."""

import dataclasses
import json

import pytest

pytest.importorskip("matplotlib")

from pycooldown.recipes.history import Run
from pycooldown.recipes.methods import Temperature
from pycooldown.recipes.schema import Data, Recipe, Training
from pycooldown.recipes.sweep import run_study

SIZES = {"a": 10, "b": 4000, "c": 100}
RECIPES = {
    name: Recipe(Data("packed"), Training(steps=10, batch_size=4), Temperature(tau))
    for name, tau in (("flat", 5.0), ("sized", 1.0))
}


class Trainings:
    """Writes runs whose losses are tau + seed / 10 + the domain's position, and can break off."""

    def __init__(self, break_off_at=None, scores=False):
        self.trained, self.break_off_at, self.scores = [], break_off_at, scores

    def __call__(self, recipe, folder):
        if not (folder / "summary.json").exists():
            if len(self.trained) == self.break_off_at:
                raise KeyboardInterrupt
            self.trained.append((recipe.training.seed, folder.name))
            folder.mkdir(parents=True)
            (folder / "recipe.json").write_text(json.dumps({**recipe.to_dict(), "fingerprint": "f", "sizes": SIZES}))
            (folder / "metrics.jsonl").write_text("")
            loss = recipe.mixture.tau + recipe.training.seed / 10
            domains = {
                d: {"size": n, "draws": 5, "epochs": 5 / n, "loss": loss + i} for i, (d, n) in enumerate(SIZES.items())
            }
            if self.scores:
                for entry in domains.values():
                    entry |= {"bleu": 10 * loss, "chrf": 20 * loss}
            (folder / "summary.json").write_text(json.dumps({"domains": domains, "eval_loss": loss, "steps": 10}))
        return Run.read(folder)


def test_an_interrupted_study_goes_on_and_gives_the_table(tmp_path):
    first = Trainings(break_off_at=3)
    with pytest.raises(KeyboardInterrupt):
        run_study(RECIPES, [0, 2], tmp_path, first)
    second = Trainings()
    study = run_study(RECIPES, [0, 2], tmp_path, second)
    assert first.trained == [(0, "flat"), (0, "sized"), (2, "flat")]
    assert second.trained == [(2, "sized")]
    rows = {name: cells for name, _, cells in study.tables["loss"]}
    assert list(rows)[:3] == ["b", "c", "a"]
    assert rows["b"][0].mean == pytest.approx(6.1)
    assert rows["b"][0].sd == pytest.approx(0.2 / 2**0.5)
    assert rows["b"][0].epochs == 5 / 4000
    assert rows["all"][1].mean == pytest.approx(2.1)
    assert "| b | 4,000 | 6.100 ± 0.141 (0.0) | 2.100 ± 0.141 (0.0) |" in (tmp_path / "comparison.md").read_text()
    assert json.loads((tmp_path / "comparison.json").read_text())["seeds"] == [0, 2]
    assert (tmp_path / "comparison-loss.png").stat().st_size > 5000
    one = run_study(RECIPES, [0], tmp_path, second)
    assert one.tables["loss"][0][2][0].sd is None


def test_translations_have_a_table_and_a_picture_for_each_measure(tmp_path):
    study = run_study(RECIPES, [0, 2], tmp_path, Trainings(scores=True))
    assert list(study.tables) == ["loss", "bleu", "chrf"]
    rows = {name: cells for name, _, cells in study.tables["chrf"]}
    assert rows["all"][0].mean == pytest.approx(102)
    assert rows["all"][0].sd == pytest.approx(4 / 2**0.5)
    assert "| all | 4,110 | 51.000 ± 1.414" in (tmp_path / "comparison.md").read_text()
    assert {path.name for path in tmp_path.glob("*.png")} == {f"comparison-{measure}.png" for measure in study.tables}


@pytest.mark.parametrize(("recipes", "seeds"), [({}, [0]), (RECIPES, []), (RECIPES, [1, 1])])
def test_nothing_to_compare_is_an_error(tmp_path, recipes, seeds):
    with pytest.raises(ValueError, match="expected recipes and seeds"):
        run_study(recipes, seeds, tmp_path, Trainings())


def test_other_data_are_an_error(tmp_path):
    other = dataclasses.replace(RECIPES["flat"], data=Data("packed", max_length=7))
    trainings = Trainings()
    with pytest.raises(ValueError, match=r"other and flat differ in data\.max_length"):
        run_study({**RECIPES, "other": other}, [0], tmp_path, trainings)
    assert not trainings.trained
