"""UniMax has the water-filling optimum in both modes, and Order Matters has its two stages."""

import warnings

import numpy as np
import pytest

from pycooldown import DomainBatchSampler, schedules
from pycooldown.schedules.unimax import unimax_budgets

SIZES = {"en": 5000, "de": 1200, "gl": 150, "fa": 30}


def test_budgets_are_the_water_filling_optimum():
    rng = np.random.default_rng(0)
    for _ in range(300):
        n = rng.lognormal(5, 2, rng.integers(1, 30)).round() + 1
        cap = rng.uniform(0.1, 10)
        budget = rng.uniform(0.01, 1) * cap * n.sum()
        budgets = unimax_budgets(n, budget=budget, max_epochs=cap)
        low, high = 0.0, budget  # bisect the water level
        for _ in range(200):
            level = (low + high) / 2
            low, high = (level, high) if np.minimum(level, cap * n).sum() < budget else (low, level)
        assert np.allclose(budgets, np.minimum(level, cap * n), rtol=1e-9)
        assert np.isclose(budgets.sum(), budget)


def test_shares_are_those_published_for_mc4():
    mc4 = {"en": 2733, "it": 162, "zh": 39, "sw": 1}  # in billions of tokens
    shares = unimax_budgets(list(mc4.values()), budget=52.4, max_epochs=1) / 52.4
    assert np.allclose(shares, [0.327, 0.327, 0.327, 0.019], atol=5e-4)


@pytest.mark.parametrize("num_steps", [7, 100, 1000])
def test_both_modes_draw_the_same_in_total(num_steps):
    budget = 4000
    expected = unimax_budgets(list(SIZES.values()), budget=budget, max_epochs=2)
    for mode in ("static", "frontload"):
        schedule = schedules.unimax(SIZES, budget=budget, max_epochs=2, mode=mode, num_steps=num_steps)
        draws = sum(schedule.mixture(t).sampling for t in range(num_steps)) * budget / num_steps
        assert np.allclose(draws, expected)
    first, last = schedule.mixture(0), schedule.mixture(num_steps - 1)
    assert first.sampling[3] > last.sampling[3] == 0
    if num_steps > 7:
        assert np.allclose(first.sampling, 0.25)


def test_a_cap_that_binds_for_no_domain_is_warned_of():
    """With nine languages of OPUS-100's sizes and 122.9 M draws, a cap of 200 passes binds nowhere."""
    opus = {f"{i}": n for i, n in enumerate([1_000_000] * 3 + [515_344, 534_319, 289_339, 79_927, 98_000, 89_000])}
    smallest = 122.9e6 / 9 / min(opus.values())
    with pytest.warns(UserWarning, match=f"max_epochs = 200 binds for no domain: .* '6', {smallest:.4g} times"):
        schedule = schedules.unimax(opus, budget=122.9e6, max_epochs=200)
    assert np.allclose(schedule.mixture(0).sampling, 1 / 9)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        schedule = schedules.unimax(opus, budget=122.9e6, max_epochs=50)
    assert schedule.mixture(0).expected_epochs(122.9e6).max() == pytest.approx(50)


def test_a_whole_front_loaded_run_respects_the_cap():
    schedule = schedules.unimax(SIZES, budget=40 * 100, max_epochs=2, mode="frontload", num_steps=100)
    sampler = DomainBatchSampler(schedule, batch_size=40, seed=0, num_steps=100, allocation="systematic")
    assert np.allclose(sampler.exposure().epochs[2:], 2, atol=0.3)


def test_order_matters_trains_large_domains_first():
    schedule = schedules.order_matters(SIZES, switch_step=10, tau=5)
    assert np.allclose(schedule.mixture(9).sampling, [5000 / 6200, 1200 / 6200, 0, 0])
    assert schedule.mixture(10) == schedules.cooldown(SIZES, tau=5, switch_step=1).mixture(0)
    chosen = schedules.order_matters(SIZES, high_resource=["de", "gl"], switch_step=10)
    assert np.allclose(chosen.mixture(0).target, [0, 1200 / 1350, 150 / 1350, 0])
    assert schedule.describe() != chosen.describe()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: schedules.unimax(SIZES, budget=1e5, max_epochs=2), "left over; expected max_epochs >= 15.674"),
        (lambda: schedules.unimax(SIZES, budget=0), "budget = 0"),
        (lambda: schedules.unimax(SIZES, budget=10, max_epochs=0), "max_epochs = 0"),
        (lambda: schedules.unimax(SIZES, budget=10, mode="frontload"), "num_steps = None; 'frontload' needs"),
        (lambda: schedules.unimax(SIZES, budget=10, mode="late"), "mode = 'late'"),
        (lambda: schedules.order_matters(SIZES, switch_step=0), "switch_step = 0"),
        (lambda: schedules.order_matters(SIZES, switch_step=1, high_resource=["xx"]), r"names \['xx'\]"),
        (lambda: schedules.order_matters(SIZES, switch_step=1, high_resource=[]), "high_resource is empty"),
    ],
)
def test_bad_arguments_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
