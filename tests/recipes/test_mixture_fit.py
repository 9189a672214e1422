"""A law is fitted to a sweep, and the mixture that is best by this law is found."""

import itertools

import numpy as np
import pytest

pytest.importorskip("pydantic")

from typer.testing import CliRunner

from pycooldown import cli
from pycooldown.recipes import load_recipe
from pycooldown.recipes.mixture_fit import LossLaw, best_mixture, epoch_bounds, fit_losses, read_sweep

FLOORS = np.array([2.0, 3.0, 2.5])
SLOPES = np.array([[-3.0, 0.2, 0.4], [0.6, -2.0, 0.1], [0.3, 0.5, -4.0]])
LAW = LossLaw(FLOORS, SLOPES, np.zeros((0, 3)))


def runs(count=30, noise=0.0, seed=0):
    rng = np.random.default_rng(seed)
    mixtures = rng.dirichlet([1.0, 1.0, 1.0], size=count)
    losses = FLOORS + np.exp(mixtures @ SLOPES.T)
    return mixtures, losses + noise * rng.normal(size=losses.shape)


def test_a_fit_recovers_the_law():
    law = fit_losses(*runs())
    assert law.floors == pytest.approx(FLOORS, abs=0.02)
    assert np.abs(law.residuals).max() < 1e-3
    for p in np.random.default_rng(1).dirichlet([1, 1, 1], size=20):
        assert law.losses(p) == pytest.approx(LAW.losses(p), abs=5e-3)


def test_the_residuals_of_a_fit_are_the_noise():
    law = fit_losses(*runs(60, noise=0.02))
    assert np.sqrt((law.residuals**2).mean()) == pytest.approx(0.02, rel=0.3)


@pytest.mark.parametrize("strength", [0.0, 0.05, 1.0])
@pytest.mark.parametrize("most", [None, [0.3, 1.0, 1.0], [0.2, 0.45, 0.4]])
def test_no_mixture_of_a_fine_grid_is_better(strength, most):
    prior = np.array([0.6, 0.3, 0.1])
    p = best_mixture(LAW, prior, strength=strength, most=most)
    bounds = np.array(most or [1, 1, 1])
    assert p.sum() == pytest.approx(1)
    assert (p <= bounds + 1e-9).all()

    def objective(q):
        q = np.maximum(q, 1e-12)
        return LAW.losses(q).mean() + strength * float(q @ np.log(q / prior))

    grid = [np.array([a, b, 200 - a - b]) / 200 for a, b in itertools.product(range(201), repeat=2) if a + b <= 200]
    best = min(objective(q) for q in grid if (q <= bounds + 1e-12).all())
    assert objective(p) <= best + 1e-6


def test_importances_and_strength_move_the_best_mixture():
    prior = np.array([0.6, 0.3, 0.1])
    even = best_mixture(LAW, prior, strength=0.0)
    third = best_mixture(LAW, prior, strength=0.0, importances=[0, 0, 1])
    assert third[2] > even[2]
    assert best_mixture(LAW, prior, strength=1e6) == pytest.approx(prior, abs=1e-4)


def test_wrong_arguments_are_named():
    mixtures, losses = runs(3)
    with pytest.raises(ValueError, match="3 different mixtures of 3 domains; expected at least 4"):
        fit_losses(mixtures, losses)
    mixtures, losses = runs()
    losses[0, 0] = np.nan
    with pytest.raises(ValueError, match="not finite"):
        fit_losses(mixtures, losses)
    with pytest.raises(ValueError, match="sum to at least 1"):
        best_mixture(LAW, [1, 1, 1], most=[0.2, 0.2, 0.2])
    with pytest.raises(ValueError, match="a prior > 0"):
        best_mixture(LAW, [1, 1, 0])


def write_sweep(folder):
    sizes, draws = {"en": 1000, "de": 200, "sw": 20}, 640
    lines = ["recipe,mixture.tau,seed,domain,size,epochs,measure,value"]
    for i, (p, losses) in enumerate(zip(*runs(12), strict=True)):
        for (domain, size), share, loss in zip(sizes.items(), p, losses, strict=True):
            lines.append(f"r{i},{i},0,{domain},{size},{share * draws / size},loss,{loss}")
            lines.append(f"r{i},{i},0,{domain},{size},{share * draws / size},bleu,12")
    (folder / "sweep.csv").write_text("\n".join(lines) + "\n")


def test_a_sweep_becomes_a_recipe_of_weights(tmp_path):
    write_sweep(tmp_path)
    found = read_sweep(tmp_path)
    assert (found.domains, found.sizes.tolist()) == (("en", "de", "sw"), [1000, 200, 20])
    assert found.mixtures == pytest.approx(runs(12)[0])
    base = tmp_path / "base.yaml"
    base.write_text("data: {path: packed}\nmixture: {method: cooldown}\ntraining: {steps: 100, batch_size: 8}\n")
    out = tmp_path / "fitted.yaml"
    result = CliRunner().invoke(
        cli.app, ["fit-mixture", str(tmp_path), str(base), "--output", str(out), "--max-epochs", "4"]
    )
    assert result.exit_code == 0, result.output
    mixture = load_recipe(out).mixture
    weights = dict(mixture.weights)
    assert sum(weights.values()) == pytest.approx(1, abs=1e-5)
    assert weights["sw"] <= epoch_bounds([20], 800, 4)[0] + 1e-6  # at most 4 passes
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match="has no losses"):
        read_sweep(tmp_path / "other.csv")
