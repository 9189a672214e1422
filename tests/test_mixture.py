"""Mixtures and schedules have the papers' values, keep their invariants and refuse wrong arguments."""

import math

import numpy as np
import pytest

from pycooldown import Mixture, schedules, temperature
from pycooldown.gradients.theory import variance_inflation

MC4 = {"en": 2733, "it": 162, "zh": 39, "sw": 1}


@pytest.mark.parametrize(
    ("tau", "expected"),
    [
        (1, [0.931175, 0.055196, 0.013288, 0.000341]),
        (3.33, [0.556, 0.238, 0.155, 0.052]),
        (100, [0.2594, 0.2522, 0.2486, 0.2397]),
        (math.inf, [0.25] * 4),
    ],
)
def test_temperature_golden_values(tau, expected):
    p = temperature(list(MC4.values()), tau)
    assert p.sum() == pytest.approx(1, abs=1e-15)
    assert p == pytest.approx(expected, abs=6e-4 if tau == 3.33 else 6e-5)


def test_temperature_does_not_overflow():
    assert temperature([1e300, 1e-300], 0.01).tolist() == [1, 0]
    assert temperature([5.0], 0.3).tolist() == [1]


@pytest.mark.parametrize(
    ("sizes", "tau", "expected"),
    [  # F = sum p(tau)^2 / p(1); Li et al. (NAACL 2025), Lemma 2.1 and Table 2's corpora
        *[
            ([10**9 // round(i**alpha * 1e3) for i in range(1, 21)], 5, f)
            for alpha, f in [(0.5, 1.1158), (1, 1.5989), (1.5, 2.9691), (2, 6.7745)]
        ],
        *[([56_000_000, 600_000], tau, f) for tau, f in [(2, 1.660), (3, 3.757), (5, 8.314)]],
        *[(list(MC4.values()), tau, f) for tau, f in [(3.33, 10.98), (5, 29.83), (100, 174.5)]],
    ],
)
def test_variance_inflation_golden_values(sizes, tau, expected):
    named = {str(i): n for i, n in enumerate(sizes)}
    assert variance_inflation(Mixture.scalarization(named, tau)) == pytest.approx(expected, rel=2e-3)
    assert variance_inflation(Mixture.temperature_sampling(named, tau)) == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("tau", [0.5, 1, 5, math.inf])
def test_scalarization_shares_the_target_of_temperature_sampling(tau):
    sampled, weighed = Mixture.temperature_sampling(MC4, tau), Mixture.scalarization(MC4, tau)
    assert np.array_equal(sampled.target, weighed.target)
    assert sampled.loss_weights == pytest.approx(np.ones(4), abs=1e-15)
    assert weighed.sampling * weighed.loss_weights == pytest.approx(weighed.target, rel=1e-15)
    assert weighed.sampling == pytest.approx(temperature(list(MC4.values()), 1), rel=1e-15)
    if tau == 5:
        assert weighed.loss_weights.max() == pytest.approx(274, abs=0.5)


def test_expected_epochs():
    mixture = Mixture.proportional({"a": 900, "b": 100})
    assert mixture.expected_epochs(2_000) == pytest.approx([2, 2])


def test_mixture_is_a_value():
    a, b = Mixture.temperature_sampling(MC4, 5), Mixture.temperature_sampling(dict(MC4), 5.0)
    assert a == b
    assert hash(a) == hash(b)
    assert a != Mixture.scalarization(MC4, 5)
    assert a.describe() == "temperature_sampling(tau=5.0)"
    by_hand = Mixture(("a", "b"), [3, 1], [0.5, 0.5], [0.25, 0.75])
    assert by_hand.describe() != Mixture(("a", "b"), [3, 1], [0.5, 0.5], [0.75, 0.25]).describe()
    with pytest.raises(ValueError, match="read-only"):
        a.target[0] = 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"domains": ()}, "domains is empty"),
        ({"domains": ("a", "a")}, "'a' more than once"),
        ({"domains": ("a", "")}, "non-empty strings"),
        ({"sizes": [3]}, r"sizes has shape \(1,\)"),
        ({"sizes": [3, 0]}, "size of domain 'b' is 0"),
        ({"sizes": [3, -2]}, "size of domain 'b' is -2"),
        ({"sizes": [3, math.nan]}, "size of domain 'b' is nan"),
        ({"sizes": [3, 1.5]}, "size of domain 'b' is 1.5"),
        ({"target": [0.5, 0.6]}, "target sums to 1.1"),
        ({"target": [1.5, -0.5]}, "target of domain 'b' is -0.5"),
        ({"sampling": [0.5, math.nan]}, "sampling of domain 'b' is nan"),
        ({"sampling": [1, 0]}, "sampling of domain 'b' is 0 but its target is 0.5"),
    ],
)
def test_bad_mixtures(change, message):
    good = {"domains": ("a", "b"), "sizes": [3, 1], "target": [0.5, 0.5], "sampling": [0.5, 0.5]}
    assert Mixture(**good).num_domains == 2
    with pytest.raises(ValueError, match=message):
        Mixture(**(good | change))


@pytest.mark.parametrize("tau", [0, -1, math.nan, -math.inf])
def test_bad_temperatures(tau):
    with pytest.raises(ValueError, match=r"tau = .*; expected a temperature > 0 .*inf: uniform"):
        Mixture.temperature_sampling(MC4, tau)


@pytest.mark.parametrize("sizes", [{}, {"a": 0}, {"a": -1}, {"a": math.nan}, {"a": "many"}, {"a": 10, "b": math.inf}])
def test_bad_sizes(sizes):
    with pytest.raises(ValueError, match="domains is empty" if not sizes else "size of domain"):
        Mixture.proportional(sizes)


def taus(schedule, steps):
    return [schedule.mixture(step).tau for step in steps]


def test_cooldown_and_staircase():
    cooldown = schedules.cooldown(MC4, switch_step=10)
    assert taus(cooldown, [0, 9, 10, 10**9]) == [5, 5, 1, 1]
    assert [cooldown.next_change(s) for s in (0, 9, 10)] == [10, 10, None]
    uniform_natural_uniform = schedules.staircase(
        [(start, Mixture.temperature_sampling(MC4, tau)) for start, tau in [(0, math.inf), (5, 1), (8, math.inf)]]
    )
    assert taus(uniform_natural_uniform, [4, 5, 7, 8]) == [math.inf, 1, 1, math.inf]


@pytest.mark.parametrize(
    ("shape", "middle"), [("linear", 3), ("cosine", 3), ("exponential", math.sqrt(5))], ids=lambda v: str(v)[:6]
)
def test_anneal(shape, middle):
    down = schedules.anneal(MC4, tau=5, final_tau=1, num_steps=100, shape=shape)
    assert taus(down, [0, 50, 100, 101]) == pytest.approx([5, middle, 1, 1])
    assert (down.next_change(0), down.next_change(99), down.next_change(100)) == (1, 100, None)
    up = schedules.anneal(MC4, tau=1, final_tau=5, num_steps=100, shape=shape)
    assert np.all(np.diff(taus(up, range(101))) > 0)


@pytest.mark.parametrize(
    "make",
    [
        lambda tau: schedules.constant(Mixture.scalarization(MC4, tau)),
        lambda tau: schedules.cooldown(MC4, tau=tau, switch_step=7),
        lambda tau: schedules.anneal(MC4, tau=tau, final_tau=2, num_steps=9, shape="cosine"),
        lambda tau: schedules.staircase([(0, Mixture.proportional(MC4)), (3, Mixture.scalarization(MC4, tau))]),
    ],
    ids=["constant", "cooldown", "anneal", "staircase"],
)
def test_schedule_contract(make):
    schedule = make(5.0)
    assert isinstance(schedule, schedules.Schedule)
    assert schedule.describe() == make(5).describe() != make(4.999999).describe()
    for step in range(12):  # the mixture does not change before the announced step
        change = schedule.next_change(step)
        assert change is None or change > step
        for later in range(step, 12 if change is None else change):
            assert schedule.mixture(later) == schedule.mixture(step)
    with pytest.raises(ValueError, match="step = -1"):
        schedule.mixture(-1)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: schedules.cooldown(MC4, switch_step=0), "switch_step = 0"),
        (lambda: schedules.cooldown(MC4, tau=0, switch_step=1), "tau = 0"),
        (lambda: schedules.anneal(MC4, tau=math.inf, final_tau=1, num_steps=5), "tau = inf; expected a finite"),
        (lambda: schedules.anneal(MC4, tau=5, final_tau=1, num_steps=0), "num_steps = 0"),
        (lambda: schedules.anneal(MC4, tau=5, final_tau=1, num_steps=5, shape="step"), "'linear', 'cosine'"),
        (lambda: schedules.anneal({"a": 0}, tau=5, final_tau=1, num_steps=5), "size of domain 'a' is 0"),
        (lambda: schedules.staircase([]), "stages is empty"),
        (lambda: schedules.staircase([(1, Mixture.proportional(MC4))]), r"start at steps \[1\]"),
        (
            lambda: schedules.staircase([(0, Mixture.proportional(MC4)), (5, Mixture.proportional({"en": 1}))]),
            r"step 5 has other domains than the first: \['it', 'sw', 'zh'\]",
        ),
        (
            lambda: schedules.staircase([(0, Mixture.proportional({"a": 1})), (5, Mixture.proportional({"a": 2}))]),
            "2 samples of domain 'a', the first one 1",
        ),
    ],
)
def test_bad_schedules(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_text_and_table_show_probabilities_and_weights():
    mixture = Mixture.scalarization({"<b>": 900, "sw": 100}, math.inf)
    assert repr(mixture) == "Mixture(2 domains: <b> q=0.9 v=0.556, sw q=0.1 v=5; scalarization(tau=inf))"
    assert repr(Mixture.proportional({"en": 3, "sw": 1})) == (
        "Mixture(2 domains: en q=0.75, sw q=0.25; temperature_sampling(tau=1.0))"
    )
    page = mixture._repr_html_()
    assert "&lt;b&gt;" in page
    assert "<b>" not in page
    assert page.count("<tr>") == 3
    many = Mixture.proportional({f"d{i}": 1 for i in range(100)})
    assert many._repr_html_().count("<tr>") == 62
    assert "and 40 more" in many._repr_html_()
