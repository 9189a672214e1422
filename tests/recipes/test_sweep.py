"""A sweep trains recipes over seeds once, and its tables have the right numbers."""

import csv
import dataclasses
import json
from concurrent.futures import ThreadPoolExecutor

import pytest

pytest.importorskip("matplotlib")

from scipy import stats

from pycooldown.recipes.grid import GridPoint, expand_grid, split_values
from pycooldown.recipes.history import Run
from pycooldown.recipes.methods.static import TemperatureOptions
from pycooldown.recipes.paired import clear_best, paired_difference, t_quantile
from pycooldown.recipes.schema import Data, Recipe, Training
from pycooldown.recipes.sweep import run_sweep

SIZES = {"a": 10, "b": 4000, "c": 100}
RECIPES = {
    name: GridPoint(Recipe(Data("packed"), Training(steps=10, batch_size=4), TemperatureOptions(tau)))
    for name, tau in (("flat", 5.0), ("sized", 1.0))
}


class Trainings:
    """Write runs whose losses are tau + seed / 10 + the domain's position, and raise KeyboardInterrupt if asked."""

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


def test_an_interrupted_sweep_goes_on_and_gives_the_table(tmp_path):
    first = Trainings(break_off_at=3)
    with pytest.raises(KeyboardInterrupt):
        run_sweep(RECIPES, [0, 2], tmp_path, first)
    second = Trainings()
    sweep = run_sweep(RECIPES, [0, 2], tmp_path, second)
    assert first.trained == [(0, "flat"), (0, "sized"), (2, "flat")]
    assert second.trained == [(2, "sized")]
    rows = {name: cells for name, _, cells in sweep.tables["loss"]}
    assert list(rows)[:3] == ["b", "c", "a"]
    assert rows["b"][0].mean == pytest.approx(6.1)
    assert rows["b"][0].sd == pytest.approx(0.2 / 2**0.5)
    assert rows["b"][0].epochs == 5 / 4000
    assert rows["all"][1].mean == pytest.approx(2.1)
    assert "| b | 4,000 | 6.100 ± 0.141 (0.0) | 2.100 ± 0.141 (0.0) |" in (tmp_path / "sweep.md").read_text()
    assert json.loads((tmp_path / "sweep.json").read_text())["seeds"] == [0, 2]
    assert (tmp_path / "sweep-loss.png").stat().st_size > 5000
    one = run_sweep(RECIPES, [0], tmp_path, second)
    assert one.tables["loss"][0][2][0].sd is None


def test_translations_have_a_table_and_a_picture_for_each_measure(tmp_path):
    sweep = run_sweep(RECIPES, [0, 2], tmp_path, Trainings(scores=True))
    assert list(sweep.tables) == ["loss", "bleu", "chrf"]
    rows = {name: cells for name, _, cells in sweep.tables["chrf"]}
    assert rows["all"][0].mean == pytest.approx(102)
    assert rows["all"][0].sd == pytest.approx(4 / 2**0.5)
    assert "| all | 4,110 | 51.000 ± 1.414" in (tmp_path / "sweep.md").read_text()
    assert {path.name for path in tmp_path.glob("*.png")} == {f"sweep-{measure}.png" for measure in sweep.tables}


@pytest.mark.parametrize(("recipes", "seeds"), [({}, [0]), (RECIPES, []), (RECIPES, [1, 1])])
def test_nothing_to_compare_is_an_error(tmp_path, recipes, seeds):
    with pytest.raises(ValueError, match="expected recipes and seeds"):
        run_sweep(recipes, seeds, tmp_path, Trainings())


def test_other_data_are_an_error(tmp_path):
    other = GridPoint(dataclasses.replace(RECIPES["flat"].recipe, data=Data("packed", max_length=7)))
    trainings = Trainings()
    with pytest.raises(ValueError, match=r"other and flat differ in data\.max_length"):
        run_sweep({**RECIPES, "other": other}, [0], tmp_path, trainings)
    assert not trainings.trained


def test_a_run_that_fails_stops_no_other_and_is_named(tmp_path):
    train = Trainings()

    def failing(recipe, folder):
        if folder.name == "flat" and recipe.training.seed == 0:
            raise FloatingPointError("the training loss is nan")
        return train(recipe, folder)

    with pytest.raises(RuntimeError, match=r"1 of 4 runs failed.*\n  .*seed-0/flat: FloatingPointError: the"):
        run_sweep(RECIPES, [0, 2], tmp_path, failing)
    assert train.trained == [(0, "sized"), (2, "flat"), (2, "sized")]
    run_sweep(RECIPES, [0, 2], tmp_path, train)
    assert train.trained[3:] == [(0, "flat")]


def test_differences_are_paired_by_seed_and_rows_are_tidy(tmp_path):
    points = {
        f"t-tau={tau}": dataclasses.replace(point, settings={"mixture.tau": tau})
        for tau, point in zip("51", RECIPES.values(), strict=True)
    }

    def train(recipe, folder):
        run = Trainings()(recipe, folder)
        entry = run.summary["domains"]["c"]
        entry["loss"] += recipe.training.seed * (recipe.mixture.tau == 1)  # makes the difference vary with the seed
        (folder / "summary.json").write_text(json.dumps(run.summary))

    sweep = run_sweep(points, [0, 1, 2], tmp_path, train)
    rows = {name: cells for name, _, cells in sweep.differences["loss"]}
    assert (rows["a"][0].mean, rows["a"][0].low, rows["a"][0].high) == pytest.approx((-4, -4, -4))
    expected = stats.ttest_rel([3.0, 4.1, 5.2], [7.0, 7.1, 7.2]).confidence_interval(0.95)
    assert (rows["c"][0].low, rows["c"][0].high) == pytest.approx(tuple(expected))
    assert "| c | 100 | -3.000 [" in (tmp_path / "sweep.md").read_text()
    with open(tmp_path / "sweep.csv", newline="") as file:
        table = list(csv.DictReader(file))
    columns = ["recipe", "mixture.tau", "seed", "domain", "size", "epochs", "measure", "value"]
    assert list(table[0]) == columns
    assert len(table) == 2 * 3 * 3
    chosen = [row for row in table if (row["mixture.tau"], row["seed"], row["domain"]) == ("1", "2", "c")]
    assert [float(row["value"]) for row in chosen] == pytest.approx([5.2])


@pytest.mark.parametrize("degrees", [1, 2, 3, 7, 30, 200])
def test_t_quantiles_are_scipys(degrees):
    assert t_quantile(degrees) == pytest.approx(stats.t.ppf(0.975, degrees), rel=1e-8)
    assert t_quantile(degrees, 0.5) == pytest.approx(stats.t.ppf(0.75, degrees), rel=1e-8)


def test_one_seed_has_a_difference_without_an_interval():
    assert str(paired_difference([1.0], [1.5])) == "-0.500"


@pytest.mark.parametrize(
    ("values", "lowest", "best"),
    [
        ([[1.0, 1.1, 1.2], [2.0, 2.1, 2.2], [3.0, 3.2, 3.1]], True, 0),
        ([[1.0, 1.1, 1.2], [2.0, 2.1, 2.2], [3.0, 3.2, 3.1]], False, 2),
        ([[1.0, 1.5, 1.2], [1.1, 1.3, 1.25], [3.0, 3.2, 3.1]], True, None),  # two are equally good
        ([[5.0, 1.0, 3.0], [5.1, 1.1, 3.1]], True, 0),  # the difference is the same for each seed
        ([[1.0], [2.0]], True, None),  # one seed has no interval
        ([[1.0, 1.1]], True, None),  # nothing to compare with
        ([[1.0, float("nan")], [2.0, 2.1]], True, None),
    ],
)
def test_the_best_is_named_only_beyond_the_interval(values, lowest, best):
    assert clear_best(values, lowest=lowest) == best


def test_a_run_that_diverged_is_shown(tmp_path):
    def train(recipe, folder):
        run = Trainings()(recipe, folder)
        summary = json.loads((folder / "summary.json").read_text())
        if recipe.mixture.tau == 5 and recipe.training.seed == 2:
            summary["domains"]["a"]["loss"] = None
        (folder / "summary.json").write_text(json.dumps(summary))
        return run

    sweep = run_sweep(RECIPES, [0, 2], tmp_path, train)
    assert "nan" in sweep.markdown()
    assert "a" not in sweep.best["loss"]
    assert sweep.best["loss"]["b"] == "sized"
    assert json.loads((tmp_path / "sweep.json").read_text())["tables"]["loss"][2][2][0]["sd"] is None


def test_a_sweep_names_the_clearly_best_recipes(tmp_path):
    sweep = run_sweep(RECIPES, [0, 2], tmp_path / "two", Trainings(scores=True))
    assert sweep.best["loss"] == dict.fromkeys(
        [*SIZES, "high-resource", "mid-resource", "low-resource", "all"], "sized"
    )
    assert sweep.best["bleu"]["all"] == "flat"
    assert run_sweep(RECIPES, [0], tmp_path / "one", Trainings()).best == {"loss": {}}


def test_a_grid_has_every_combination(tmp_path):
    for name in ("cool", "warm"):
        text = "data: {path: p}\nmixture: {method: cooldown}\ntraining: {steps: 10, batch_size: 4}\n"
        (tmp_path / f"{name}.yaml").write_text(text)
    paths = [tmp_path / "cool.yaml", tmp_path / "warm.yaml"]
    overrides = ["mixture.tau=2,3", "mixture.switch_at=.3,.5,.7", "data.domains=[a, b]", "training.steps=20"]
    points = expand_grid(paths, overrides)
    assert len(points) == 2 * 2 * 3
    point = points["warm-tau=3-switch_at=.5"]
    assert point.settings == {"mixture.tau": "3", "mixture.switch_at": ".5"}
    assert (point.recipe.mixture.tau, point.recipe.mixture.switch_at) == (3, 0.5)
    assert (point.recipe.data.domains, point.recipe.training.steps) == (("a", "b"), 20)
    assert list(expand_grid(paths, [])) == ["cool", "warm"]
    domains = expand_grid(paths[:1], ["data.domains=[a, b],[c]"])
    assert list(domains) == ["cool-domains=_a_b_", "cool-domains=_c_"]
    assert split_values("'a,b',[c,d],{e: [f,g]},h") == ["'a,b'", "[c,d]", "{e: [f,g]}", "h"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["mixture.tau=2,high"], "mixture.tau is 'high'"),
        (["mixture.tau=2,2"], "have the name cool-tau=2"),
        (["mixture.tau=2", "mixture.tau=3"], "mixture.tau is given twice; expected its values in one list"),
        (["mixture.tau"], "expected section.key=value"),
        ([f"training.seed={','.join(map(str, range(20_000)))}"], "20,000 points"),
    ],
)
def test_impossible_grids_are_refused(tmp_path, overrides, message):
    path = tmp_path / "cool.yaml"
    path.write_text("data: {path: p}\nmixture: {method: cooldown}\ntraining: {steps: 10, batch_size: 4}\n")
    with pytest.raises(ValueError, match=message):
        expand_grid([path], overrides)


def test_an_executor_trains_the_runs(tmp_path):
    train, seen = Trainings(), []
    with ThreadPoolExecutor(2) as pool:
        sweep = run_sweep(RECIPES, [0, 1], tmp_path, train, executor=pool, on_run=seen.append)
    assert sorted(train.trained) == [(0, "flat"), (0, "sized"), (1, "flat"), (1, "sized")]
    assert len(seen) == 4
    alone = run_sweep(RECIPES, [0, 1], tmp_path / "alone", Trainings())
    assert sweep == alone
