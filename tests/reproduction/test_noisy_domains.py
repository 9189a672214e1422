"""The small problems with a bad domain have exact gradients and show the expected outcome."""

import numpy as np
import pytest

from pycooldown.mixture import Mixture
from reproduction import noisy_domains

METHODS = tuple(noisy_domains.methods(Mixture.proportional({"a": 1, "b": 1})))


def test_largest_remainders():
    assert noisy_domains.largest_remainders(np.array([0.5, 0.3, 0.2]), 10).tolist() == [5, 3, 2]
    assert noisy_domains.largest_remainders(np.array([0.55, 0.28, 0.17]), 10).tolist() == [5, 3, 2]
    assert noisy_domains.largest_remainders(np.array([0.999, 0.001, 0.0]), 10).tolist() == [8, 1, 1]


@pytest.mark.parametrize(
    "problem",
    [
        noisy_domains.linear_regression(0, noise=(3, 0.3), spread=(0.3, 2.7)),
        noisy_domains.logistic_regression(0, flipped=(0, 0.4)),
        noisy_domains.digits(0, width=5),
    ],
    ids=["linear", "logistic", "digits"],
)
def test_gradients_are_those_of_the_losses(problem):
    rng = np.random.default_rng(0)
    parameters = problem.parameters + 0.1 * rng.normal(size=problem.parameters.shape)
    x, y = (part[:7] for part in problem.data[1])
    _, gradients = problem.model(parameters, x, y)
    way = rng.normal(size=parameters.shape)
    ahead, behind = (problem.model(parameters + step * way, x, y)[0] for step in (1e-5, -1e-5))
    assert np.allclose(gradients @ way, (ahead - behind) / 2e-5, rtol=1e-5, atol=1e-7)


def test_both_defects_need_both_remedies():
    """A noisy domain with small inputs needs FGLS and VA together. A command computes the whole table, in minutes."""
    errors = {
        name: np.mean(
            [
                noisy_domains.final_error(
                    noisy_domains.linear_regression(s, noise=(3, 0.3), spread=(0.3, 2.7)), name, s
                )
                for s in range(3)
            ]
        )
        for name in ("uniform", "FGLS", "FGLS+VA")
    }
    assert errors["uniform"] > 3 * errors["FGLS"]
    assert errors["FGLS"] > errors["FGLS+VA"]


def test_a_run_is_a_function_of_its_seed():
    problem = noisy_domains.linear_regression(0)
    assert set(METHODS) >= {"uniform", "FGLS", "VA", "FGLS+VA", "ERMA", "ERMA+VA"}
    first, again, other = (noisy_domains.final_error(problem, "ERMA+VA", seed) for seed in (1, 1, 2))
    assert first == again != other
