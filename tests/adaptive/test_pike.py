"""PiKE follows its algorithm, solves the problem of each step, and descends faster on the paper's example."""

import math

import numpy as np
import pytest
from scipy import optimize

from pycooldown import Mixture
from pycooldown.adaptive import PiKE, Statistics
from pycooldown.adaptive.pike import pike_step

SIZES = {"a": 500, "b": 300, "c": 200}
UNIFORM = Mixture.temperature_sampling(SIZES, math.inf)


def probe(squared_norms, variances):
    """Return statistics whose gradients have these moments; the second moment is the sum of both."""
    one, variances = np.ones(len(variances)), np.asarray(variances, dtype=float)
    return Statistics(
        one, one, probe_gradient_variance=variances, probe_gradient_second_moment=variances + np.array(squared_norms)
    )


def test_weights_are_those_of_the_algorithm():
    schedule = PiKE(UNIFORM, batch_size=16, gradient_rate=0.03, variance_rate=0.5, interval=2, delay=1)
    w, rng = np.full(3, 1 / 3), np.random.default_rng(0)
    for step in range(40):
        squared_norms, variances = rng.uniform(0, 9, 3), rng.uniform(0, 40, 3)
        schedule.update(step, probe(squared_norms, variances))
        if step % 2:  # every second step has a probe
            w = w * np.exp(0.03 * squared_norms - 0.5 / (2 * 16) * variances)
            w /= w.sum()
        mixture = schedule.mixture(step + 1)
        assert mixture.sampling == pytest.approx(w, rel=1e-9)
        assert mixture.loss_weights == pytest.approx(np.ones(3))


def test_a_step_is_mirror_descent():
    """Each step minimises <slope, w> + KL(w | old) over the simplex, for the slope of the paper's bound."""
    rng = np.random.default_rng(1)
    for _ in range(5):
        old, squared_norms, variances = rng.dirichlet(np.ones(4)), rng.uniform(0, 5, 4), rng.uniform(0, 30, 4)
        slope = -0.2 * squared_norms + 0.7 / 16 * variances

        def objective(w, old=old, slope=slope):
            return slope @ w + (w * np.log(w / old)).sum()

        constraint = {"type": "eq", "fun": lambda w: w.sum() - 1}
        start = np.full(4, 0.25)
        best = optimize.minimize(objective, start, bounds=[(1e-9, 1)] * 4, constraints=constraint, tol=1e-12).x
        assert pike_step(old, squared_norms, variances, 8, 0.2, 0.7) == pytest.approx(best, abs=1e-5)


def test_it_descends_faster_than_an_even_batch_when_losses_differ():
    """Example 2.1 is L_k = theta_k^2 / 2 with noise. A batch of b_k samples moves theta_k by -eta theta_k b_k / b."""
    eta, b, noise = 0.2, 8, np.array([0.01, 0.01])

    def expected_loss(adaptive):
        theta2 = np.array([9.0, 0.25])  # expected squares of both coordinates
        start = Mixture.temperature_sampling({"a": 9, "b": 9}, math.inf)
        schedule = PiKE(start, batch_size=b, gradient_rate=0.05, variance_rate=0.05, interval=1, delay=1)
        for step in range(8):
            w = schedule.mixture(step).sampling if adaptive else start.sampling
            schedule.update(step, probe(theta2, 2 * noise))
            theta2 = (1 - eta * w) ** 2 * theta2 + eta**2 * (w @ noise) / b
        return theta2.sum() / 2

    assert expected_loss(True) < 0.8 * expected_loss(False)


def test_noise_makes_a_domain_rarer_and_a_negative_estimate_counts_as_none():
    schedule = PiKE(UNIFORM, batch_size=8, interval=1, delay=1)
    schedule.update(0, probe([5, 5, 5], [10, 10, 4000]))
    q = schedule.mixture(1).sampling
    assert q[0] == q[1] > q[2]
    schedule = PiKE(UNIFORM, batch_size=8, variance_rate=0.0, interval=1, delay=1)
    schedule.update(0, probe([-3, 0, -1], [9, 9, 9]))  # noise makes the estimated squared norms negative
    assert schedule.mixture(1).sampling == pytest.approx(np.full(3, 1 / 3))


def test_no_domain_vanishes():
    schedule = PiKE(UNIFORM, batch_size=8, gradient_rate=50.0, interval=1, least=0.02, delay=1)
    for step in range(3):
        schedule.update(step, probe([400, 1, 1], [1, 1, 1]))
    assert schedule.mixture(3).sampling == pytest.approx([0.96, 0.02, 0.02])
    schedule.update(3, probe([1, 400, 1], [1, 1, 1]))
    assert schedule.mixture(4).sampling == pytest.approx([0.02, 0.96, 0.02])  # a domain at the floor can rise again


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size = 0; expected at least 1"),
        ({"gradient_rate": -1.0}, "gradient_rate = -1.0"),
        ({"variance_rate": math.inf}, "variance_rate = inf"),
        ({"least": 0.5}, "at most 1/K = 0.3333"),
        ({"interval": 0}, "interval = 0"),
    ],
)
def test_bad_arguments_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        PiKE(UNIFORM, **{"batch_size": 8, **options})
