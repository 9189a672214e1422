"""Closed forms agree with Monte Carlo, finite differences and known numbers."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pycooldown import DomainBatchSampler, Mixture, schedules, theory
from pycooldown.mixture import temperature


def zipf(alpha, k=20):
    return {f"d{i}": max(1, round(1e9 * (i + 1) ** -alpha)) for i in range(k)}


MC4 = {"en": 2733, "it": 162, "zh": 39, "sw": 1}


@pytest.mark.parametrize(
    ("sizes", "tau", "expected"),
    [
        (zipf(0.5), 5, 1.1158),
        (zipf(1), 5, 1.5989),
        (zipf(1.5), 5, 2.9691),
        (zipf(2), 5, 6.7745),
        (zipf(1), math.inf, 1.8888),
        ({"cs": 56_000_000, "ro": 600_000}, 2, 1.660),
        ({"cs": 56_000_000, "ro": 600_000}, 3, 3.757),
        ({"cs": 56_000_000, "ro": 600_000}, 5, 8.314),
        ({"fr": 40_000_000, "ro": 600_000}, 5, 6.648),
        (MC4, 3.33, 10.98),
        (MC4, 100, 174.5),
    ],
)
def test_variance_inflation(sizes, tau, expected):
    assert theory.variance_inflation(Mixture.scalarization(sizes, tau)) == pytest.approx(expected, rel=1e-3)
    assert theory.variance_inflation(Mixture.temperature_sampling(sizes, tau)) == pytest.approx(1, abs=1e-12)


def inflation(sizes, tau):
    p, rho = temperature(sizes, tau), temperature(sizes, 1)
    return (p**2 / rho).sum()


@given(st.lists(st.floats(1, 1e9), min_size=2, max_size=6), st.floats(0.4, 50))
def test_inflation_slope_is_the_derivative(sizes, tau):
    h = 1e-5 * tau
    difference = (inflation(sizes, tau + h) - inflation(sizes, tau - h)) / (2 * h)
    assert theory.inflation_slope(sizes, tau) == pytest.approx(
        difference, rel=1e-5, abs=1e-8 * inflation(sizes, tau) / tau
    )


def test_the_derivative_printed_in_the_paper_differs():
    sizes = list(zipf(1).values())
    assert theory.inflation_slope(sizes, 2) == pytest.approx(0.2393, abs=1e-4)
    assert theory.inflation_slope(sizes, 0.7) < 0 < theory.inflation_slope(sizes, 1.3)


class TestTheorem2:
    """Scalarization does not always have more variance than temperature sampling."""

    mixture = Mixture(("high", "low"), np.array([900, 100]), np.array([0.5, 0.5]), np.array([0.9, 0.1]))

    def test_counterexample(self):
        means = np.zeros((2, 1))
        sampled = Mixture(("high", "low"), self.mixture.sizes, self.mixture.target, self.mixture.target)
        ts, s = (theory.gradient_variance(m, means, [10, 1], 1) for m in (sampled, self.mixture))
        assert (ts, s) == (pytest.approx(5.5), pytest.approx(5.27778, abs=1e-5))
        assert theory.variance_gap(self.mixture, [10, 1]) == pytest.approx(s - ts)

    @pytest.mark.parametrize(("ratio", "sign"), [(8.99, 1), (9.01, -1)])
    def test_the_sign_flips_at_the_threshold(self, ratio, sign):
        assert theory.moment_thresholds(self.mixture)[0, 1] == pytest.approx(9)
        assert np.sign(theory.variance_gap(self.mixture, [ratio, 1])) == sign

    def test_monte_carlo(self):
        rng = np.random.default_rng(0)
        for mixture, sign in ((self.mixture, 1), (self.mixture, -1)):
            moments = np.array([10.0, 1.0]) if sign < 0 else np.array([1.0, 1.0])
            i = rng.choice(2, p=mixture.sampling, size=400_000)
            s = (mixture.loss_weights[i] * np.sqrt(moments[i]) * rng.standard_normal(i.size)).var()
            j = rng.choice(2, p=mixture.target, size=400_000)
            ts = (np.sqrt(moments[j]) * rng.standard_normal(j.size)).var()
            assert np.sign(s - ts) == sign
            assert s - ts == pytest.approx(theory.variance_gap(mixture, moments), abs=0.08)

    @given(st.lists(st.tuples(st.floats(1, 1e6), st.floats(0.01, 100)), min_size=2, max_size=6), st.floats(1, 100))
    def test_no_flip_below_all_thresholds(self, domains, tau):
        sizes = {f"d{i}": int(n) for i, (n, _) in enumerate(domains)}
        mixture = Mixture.scalarization(sizes, tau)
        v = mixture.loss_weights
        moments = np.sort([m for _, m in domains])[np.argsort(np.argsort(v, kind="stable"), kind="stable")] / v
        assert theory.variance_gap(mixture, moments) >= -1e-9 * (v * moments).max()

    def test_the_gap_need_not_rise_with_tau(self):
        gaps = [
            theory.variance_gap(Mixture.scalarization({"a": 9, "b": 1}, tau), [6, 1]) for tau in (1, 1.5, 2, 3, 5, 100)
        ]
        assert gaps == pytest.approx([0, -0.31, -0.375, -0.282, -0.04, 0.621], abs=1e-3)


@pytest.fixture(scope="module")
def population():
    """Return sizes of three domains of 900, 90 and 30 samples, their gradients, means and traces."""
    rng = np.random.default_rng(3)
    sizes = {"a": 900, "b": 90, "c": 30}
    gradients = [
        rng.standard_normal((n, 3)) * scale + shift
        for n, scale, shift in zip(sizes.values(), (1.0, 0.6, 1.7), ([0, 1, 0], [1, 0, 0.5], [-1, -1, 2]), strict=True)
    ]
    means = np.stack([g.mean(0) for g in gradients])
    traces = np.array([g.var(0).sum() for g in gradients])
    return sizes, np.concatenate(gradients), means, traces


MIXTURES = {
    "temperature": lambda s: Mixture.temperature_sampling(s, 5),
    "scalarization": lambda s: Mixture.scalarization(s, 5),
    "between": lambda s: Mixture(tuple(s), np.array(list(s.values())), [0.5, 0.3, 0.2], [0.6, 0.15, 0.25]),
}


@pytest.mark.parametrize("allocation", ["multinomial", "systematic"])
@pytest.mark.parametrize("name", MIXTURES)
def test_gradient_variance_of_the_samplers_batches(population, name, allocation):
    """The formula without replacement agrees with batches of the sampler, each with its own seed."""
    sizes, gradients, means, traces = population
    mixture = MIXTURES[name](sizes)
    batch_size, trials = 24, 6000
    estimates = np.empty((trials, 3))
    for seed in range(trials):
        sampler = DomainBatchSampler(
            schedules.constant(mixture), batch_size=batch_size, seed=seed, allocation=allocation
        )
        plan = sampler.plan(0)
        estimates[seed] = mixture.loss_weights[plan.domain_ids] @ gradients[plan.indices] / batch_size
    predicted = theory.gradient_variance(mixture, means, traces, batch_size, allocation, replacement=False)
    assert estimates.var(0).sum() == pytest.approx(predicted, rel=0.06)
    full = mixture.target @ means
    assert np.abs(estimates.mean(0) - full).max() < 5 * np.sqrt(predicted / trials)


@pytest.mark.parametrize("name", MIXTURES)
def test_gradient_variance_of_independent_draws(population, name):
    sizes, gradients, means, traces = population
    mixture = MIXTURES[name](sizes)
    rng = np.random.default_rng(1)
    starts = np.cumsum([0, *sizes.values()])[:-1]
    domain = rng.choice(3, p=mixture.sampling, size=(40_000, 8))
    sample = starts[domain] + (rng.random(domain.shape) * mixture.sizes[domain]).astype(int)
    estimates = (mixture.loss_weights[domain][..., None] * gradients[sample]).mean(1)
    predicted = theory.gradient_variance(mixture, means, traces, 8)
    assert estimates.var(0).sum() == pytest.approx(predicted, rel=0.03)
    moments = traces + (means**2).sum(1)
    iid = ((mixture.sampling * mixture.loss_weights**2) @ moments - ((mixture.target @ means) ** 2).sum()) / 8
    assert predicted == pytest.approx(iid, rel=1e-12)


@pytest.mark.parametrize("k", [1, 2, 5, 12])
def test_systematic_count_covariance(k):
    rng = np.random.default_rng(k)
    p = rng.dirichlet(np.ones(k))
    mixture = Mixture(tuple(f"d{i}" for i in range(k)), np.full(k, 10**6), p, p)
    sampler = DomainBatchSampler(schedules.constant(mixture), batch_size=37, seed=5, allocation="systematic")
    counts = np.stack([np.bincount(sampler.plan(step).domain_ids, minlength=k) for step in range(20_000)])
    covariance = theory.count_covariance(mixture, 37, "systematic")
    np.testing.assert_allclose(np.cov(counts.T, bias=True).reshape(k, k), covariance, atol=0.012)
    np.testing.assert_allclose(covariance.sum(0), 0, atol=1e-9)
    np.testing.assert_allclose(theory.count_covariance(mixture, 37, counts), covariance, atol=0.012)


def test_stratified_is_the_case_of_whole_counts(population):
    sizes, _, means, traces = population
    p = np.array([0.5, 0.25, 0.25])
    mixture = Mixture(tuple(sizes), np.array(list(sizes.values())), p, p)
    results = [
        theory.gradient_variance(mixture, means, traces, 16, a)
        for a in ("stratified", "systematic", np.array([[8, 4, 4]]))
    ]
    assert results == pytest.approx([(p**2 / (16 * p)) @ traces] * 3)


@given(st.lists(st.tuples(st.floats(0.05, 1), st.floats(0.01, 10)), min_size=2, max_size=5), st.integers(0, 1000))
def test_optimal_sampling_is_optimal(domains, seed):
    target = np.array([p for p, _ in domains])
    target /= target.sum()
    traces = np.array([m for _, m in domains])
    names, sizes = tuple(f"d{i}" for i in range(len(target))), np.full(len(target), 1000)
    means = np.zeros((len(target), 1))
    best = theory.optimal_sampling(target, traces)
    other = np.random.default_rng(seed).dirichlet(np.ones(len(target)) * 3) + 1e-6
    least, more = (
        theory.gradient_variance(Mixture(names, sizes, target, q / q.sum()), means, traces, 10) for q in (best, other)
    )
    assert least == pytest.approx((target @ np.sqrt(traces)) ** 2 / 10)
    assert least <= more * (1 + 1e-12)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: theory.gradient_variance(m, [1, 2], [1, 1], 4), r"means has shape \(2,\)"),
        (lambda m: theory.gradient_variance(m, [[1], [2], [3]], [1, 1], 4), "the mixture has 2"),
        (lambda m: theory.gradient_variance(m, [[1], [2]], [1, 1], 4, "quota"), "planned counts"),
        (lambda m: theory.optimal_sampling(m.target, [1, -1]), "finite numbers >= 0"),
        (lambda m: theory.optimal_sampling(m.target, [0, 0]), "moments are 0"),
    ],
)
def test_wrong_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call(Mixture.proportional({"a": 3, "b": 1}))
