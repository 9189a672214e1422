"""ADO follows its formulas: the fit of power laws, the preference, and the sampling that follows from both."""

import numpy as np
import pytest
from scipy import optimize

from pycooldown import Mixture
from pycooldown.adaptive import ADO, Statistics
from pycooldown.adaptive.ado import fit_power_law

SIZES = {"a": 500, "b": 300, "c": 200}
START = Mixture.proportional(SIZES)


@pytest.mark.parametrize("law", [(2.0, 30.0, 0.3), (0.0, 8.0, 0.1), (3.5, 0.0, 0.5), (1.2, 500.0, 0.65)])
def test_the_fit_recovers_a_power_law(law):
    n = np.linspace(100, 50_000, 32)
    losses = law[0] + law[1] * n ** -law[2]
    found = fit_power_law(n, losses, np.ones(32))
    assert np.allclose(found.epsilon + found.beta * n**-found.alpha, losses, rtol=1e-3)
    if law[1]:
        assert found.alpha == pytest.approx(law[2], abs=0.006)
        assert found.epsilon == pytest.approx(law[0], abs=0.05)


def test_the_fit_is_the_least_squares_one():
    rng = np.random.default_rng(0)
    for _ in range(10):
        n, weights = np.sort(rng.uniform(10, 1000, 20)), rng.uniform(0, 1, 20)
        losses = rng.uniform(0, 3) + rng.uniform(1, 9) * n ** -rng.uniform(0.1, 0.9) + 0.1 * rng.normal(size=20)
        found = fit_power_law(n, losses, weights)

        def error(law, n=n, losses=losses, weights=weights):
            return weights @ (law[0] + law[1] * n ** -law[2] - losses) ** 2

        bounds = [(0, None), (0, None), (0.01, 1)]
        starts = [(e, 5.0, a) for e in (0.1, 1, 2) for a in (0.05, 0.3, 0.8)]
        best = min(optimize.minimize(error, s, bounds=bounds, tol=1e-12).fun for s in starts)
        assert error(found) <= best * 1.005  # the exponent is on a grid


def test_losses_without_weight_are_ignored():
    n, losses = np.array([10.0, 20, 30, 40, 50]), np.array([5.0, 4, np.nan, 3, 2.9])
    weights = np.array([1.0, 1, 0, 1, 1])
    assert fit_power_law(n, losses, weights) == fit_power_law(n[weights > 0], losses[weights > 0], np.ones(4))


@pytest.mark.parametrize("shared", [False, True])
def test_the_sampling_is_that_of_the_formula(shared):
    """The sampling equals the paper's formula, computed from the fitted laws and the losses and counts of each step."""
    laws = np.array([[2.0, 30.0, 0.3], [1.0, 9.0, 0.2], [3.0, 40.0, 0.5]]).T
    schedule = ADO(START, warmup=3, interval=9, shared_count=shared, delay=1)
    n, history, mean, rng = np.zeros(3), START.sampling, START.target, np.random.default_rng(0)
    for step in range(200):
        q = schedule.mixture(step).sampling
        tokens = rng.multinomial(600, q).astype(float)
        seen = np.full(3, n.sum()) if shared else n
        added = np.full(3, tokens.sum()) if shared else tokens
        loss = laws[0] + laws[1] * (seen + added / 2) ** -laws[2]
        n, history = n + tokens, 0.9 * history + 0.1 * q
        schedule.update(step, Statistics(loss * tokens, tokens))
        if step + 1 < 3 + 9:
            assert schedule.current is schedule.start
            continue
        learned = schedule.state_dict()["learned"]
        epsilon, beta, alpha = (np.array(list(learned[name].values())) for name in ("epsilon", "beta", "alpha"))
        count = np.full(3, n.sum()) if shared else n
        predicted = epsilon + beta * count**-alpha
        p = START.target * history**0.5 * alpha * (predicted - epsilon) / count
        p = np.maximum(p / p.sum(), 0)
        assert p.min() > 0.01  # the floor does not bind here
        assert np.allclose(schedule.current.sampling, 0.9 * mean + 0.1 * p, rtol=1e-6)
        mean = mean + (p - mean) / (step + 1)
    assert np.allclose(alpha, laws[2], atol=0.1)
    assert (schedule.current.sampling == schedule.current.target).all()


def test_a_domain_that_has_nothing_left_to_learn_falls_to_the_floor():
    schedule = ADO(START, warmup=0, interval=20, least=0.02, delay=1)
    for step in range(2000):
        tokens = np.array([500.0, 300, 200])
        loss = np.array([2.0, 1 + 9 * (step + 1) ** -0.3, 1 + 9 * (step + 1) ** -0.3])
        schedule.update(step, Statistics(loss * tokens, tokens))
    assert schedule.current.sampling[0] == pytest.approx(0.02, abs=0.03)
    assert schedule.current.sampling[1:].min() > 0.3


def test_bad_arguments():
    with pytest.raises(ValueError, match=r"least = 0\.4; expected a probability > 0, at most"):
        ADO(START, least=0.4)
    with pytest.raises(ValueError, match="interval = 0"):
        ADO(START, interval=0)
