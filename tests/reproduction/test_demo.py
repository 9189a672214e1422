"""The demo draws its pictures, and its recipes differ only in their mixture."""

import csv
import json
import re
from pathlib import Path
from statistics import fmean

import pytest

from pycooldown.recipes import load_recipe
from reproduction.demo import save_pictures

ROOT = Path(__file__).parents[2]
RECIPES = ROOT / "recipes" / "pair"
LABELS = {
    "temperature1": "(τ = 1)",
    "temperature5": "(τ = 5)",
    "temperature100": "(τ = 100)",
    "unimax": "(UniMax)",
    "cooldown": "(Cooldown)",
}


def write_run(folder, sizes, epochs):
    folder.mkdir(parents=True)
    (folder / "recipe.json").write_text(json.dumps({"sizes": sizes, "mixture": {}}))
    (folder / "summary.json").write_text(json.dumps({"domains": {d: {} for d in sizes}}))
    lines = []
    for step in (35, 70):
        seen = {f"epochs/{d}": epochs * step / 70 for d in sizes}
        lines += [
            {"step": step, "loss": 1.0, **seen},
            {"step": step, "eval_loss": 1.0, **{f"eval_loss/{d}": 2.0 for d in sizes}},
        ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_pictures_of_both_languages(tmp_path):
    for seed in (0, 1):
        for name, epochs in (("cooldown", 39.0), ("temperature1", 2.5)):
            write_run(tmp_path / f"seed-{seed}" / name, {"de": 5200, "ro": 52}, epochs)
    rare, frequent = save_pictures(tmp_path, tmp_path / "out")
    assert (rare.name, frequent.name) == ("demo_rare.png", "demo_frequent.png")
    assert rare.read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ValueError, match="has no finished runs"):
        save_pictures(tmp_path / "out", tmp_path)


def test_the_demos_recipes_differ_in_the_mixture_alone():
    recipes = [load_recipe(path) for path in sorted(RECIPES.glob("*.yaml"))]
    assert len(recipes) == 5
    assert all(
        (r.data, r.training, r.model) == (recipes[0].data, recipes[0].training, recipes[0].model) for r in recipes
    )
    assert len({str(r.mixture) for r in recipes}) == 5


def test_the_readmes_table_is_what_the_demo_wrote():
    """Whoever changes the demo runs it, and copies demo/pair-runs/sweep.csv to reproduction/results/demo/pair.csv."""
    with open(ROOT / "reproduction" / "results" / "demo" / "pair.csv", encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["measure"] == "loss"]
    table = [line for line in (ROOT / "README.md").read_text(encoding="utf-8").splitlines() if line.startswith("| ")]
    for recipe, label in LABELS.items():
        (line,) = (line for line in table if f"{label} |" in line)
        _, shown_frequent, shown_rare, shown_mean = (cell.replace("**", "") for cell in line.strip("| ").split(" | "))
        means = []
        for domain, shown in (("de", shown_frequent), ("ro", shown_rare)):
            some = [row for row in rows if (row["recipe"], row["domain"]) == (recipe, domain)]
            assert len(some) == 3  # seeds
            means.append(fmean(float(row["value"]) for row in some))
            loss, passes = re.fullmatch(r"([\d.]+) \(([\d.]+) passes\)", shown).groups()
            assert loss == f"{means[-1]:.2f}"
            assert float(passes) == pytest.approx(fmean(float(row["epochs"]) for row in some), abs=0.5)
        assert shown_mean == f"{fmean(means):.2f}"
