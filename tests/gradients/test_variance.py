"""The variance probe has right sums, projections and intervals, and predicts what it measures."""

import numpy as np
import pytest
import torch

from pycooldown import Mixture, theory
from pycooldown.gradients.moments import CountSketch, StreamingMoments, bootstrap
from pycooldown.gradients.variance import domain_moments, measure, trace_ratio


def test_streaming_moments_and_merge():
    x = torch.randn(37, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) + 100
    parts = []
    for part in x.split([20, 1, 16]):
        parts.append(StreamingMoments())
        for row in part:
            parts[-1].update(row)
    whole = StreamingMoments()
    for part in (StreamingMoments(), *parts):
        whole.merge(part)
    assert whole.count == 37
    assert len(whole.contrasts) == 36
    np.testing.assert_allclose(whole.mean, x.mean(0), rtol=1e-12)
    assert whole.trace == pytest.approx(x.var(0).sum().item(), rel=1e-9)


def test_the_interval_of_a_trace_covers_it():
    rng = np.random.default_rng(0)
    scales = np.array([3.0, 1, 1, 0.5])
    covered = 0
    for trial in range(200):
        stream = StreamingMoments()
        for row in torch.from_numpy(rng.standard_normal((40, 4)) * scales):
            stream.update(row)
        _, low, high = bootstrap(lambda c: c.mean(-1), stream.contrasts, seed=trial)
        covered += low <= (scales**2).sum() <= high
    assert 0.86 <= covered / 200 <= 0.99


def test_projection_is_unbiased_and_as_close_as_promised():
    rng = torch.Generator().manual_seed(1)
    x, y = (torch.randn(3000, generator=rng) for _ in range(2))
    x[0] = 40.0  # one coordinate with a third of the squared length
    sketches = [CountSketch(128, seed) for seed in range(600)]
    for other in (x, y + 0.5 * x):
        exact = float(x @ other)
        estimates = np.array(
            [
                float(s([x[:2000].view(2, 1000), None, x[2000:]]) @ s([other[:2000], None, other[2000:]]))
                for s in sketches
            ]
        )
        bound = np.sqrt(2 / 128) * float(x.norm() * other.norm())
        assert abs(estimates.mean() - exact) < 4 * bound / np.sqrt(600)
        assert estimates.std() < 1.1 * bound


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    """Use one thread, since the tensors are tiny."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


SIZES = {"high": 600, "mid": 120, "low": 40}


@pytest.fixture(scope="module")
def problem():
    """Return a small network, its loss, and data of three domains with different inputs and noise."""
    generator = torch.Generator().manual_seed(0)
    xs, ys = [], []
    for i, n in enumerate(SIZES.values()):
        x = torch.randn(n, 6, generator=generator) * (1 + 0.3 * i)
        xs.append(x)
        ys.append(torch.sin(x[:, 0]) + 3 * (i - 1) + 0.5 * torch.randn(n, generator=generator))
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(6, 16), torch.nn.Tanh(), torch.nn.Linear(16, 1))
    data = list(zip(torch.cat(xs), torch.cat(ys)))

    def loss(model, samples):
        x, y = (torch.stack(t) for t in zip(*samples))
        return (model(x).squeeze(1) - y) ** 2

    return model, loss, data


def exact_moments(model, loss, data):
    gradients = torch.stack(
        [
            torch.cat([g.reshape(-1) for g in torch.autograd.grad(loss(model, [s]).sum(), tuple(model.parameters()))])
            for s in data
        ]
    ).numpy()
    parts = np.split(gradients, np.cumsum(list(SIZES.values()))[:-1])
    return np.stack([p.mean(0) for p in parts]), np.array([p.var(0).sum() for p in parts])


def test_a_sketch_is_the_same_bits_every_time(device):
    """A sketch has the same bits each time, although many coordinates are added to one bucket."""
    vector = torch.randn(100_000, generator=torch.Generator().manual_seed(0)).to(device)
    first = CountSketch(16)([vector, None])
    assert all(first.equal(CountSketch(16)([vector, None])) for _ in range(5))
    torch.testing.assert_close(first.square().sum(), vector.double().cpu().square().sum(), rtol=1, atol=0)


def test_domain_moments_agree_with_those_of_all_samples(problem):
    means, traces = exact_moments(*problem)
    mixture = Mixture.proportional(SIZES)
    for projection in (None, 512):
        found = domain_moments(*problem, mixture, group_size=4, num_groups=250, projection=projection)
        np.testing.assert_allclose(found.covariance_traces, traces, rtol=0.25)
        np.testing.assert_allclose(found.mean_products, means @ means.T, atol=0.1 * (means**2).sum(1).max())
        assert found.means.shape == (3, projection or means.shape[1])


@pytest.mark.parametrize("allocation", ["multinomial", "systematic"])
def test_measured_variance_is_the_predicted_one(problem, allocation):
    means, traces = exact_moments(*problem)
    mixtures = {
        "temperature": Mixture.temperature_sampling(SIZES, 5),
        "scalarization": Mixture.scalarization(SIZES, 5),
    }
    results = measure(*problem, mixtures, batch_size=16, num_batches=900, allocations=[allocation], projection=None)
    for found in results:
        exact = theory.gradient_variance(found.mixture, means, traces, 16, allocation, replacement=False)
        assert found.trace.value == pytest.approx(exact, rel=0.12)
        assert found.trace.low <= exact * 1.05
        assert found.trace.high >= exact * 0.95
        assert found.norm_variance.value < found.trace.value
        assert found.predicted.low < found.predicted.value < found.predicted.high


def test_the_counterexample_flips_the_sign_of_measured_variances():
    """With zero-mean gradients of second moments 10 and 1, scalarization has the smaller variance."""
    sizes = {"high": 9000, "low": 1000}
    mixtures = [getattr(Mixture, kind)(sizes, float("inf")) for kind in ("scalarization", "temperature_sampling")]
    gradients = torch.randn(10_000, generator=torch.Generator().manual_seed(0))
    data = gradients * torch.tensor([10.0] * 9000 + [1.0] * 1000).sqrt()
    model = torch.nn.Linear(1, 1, bias=False)

    def loss(model, samples):
        return model(torch.stack(samples)[:, None]).squeeze(1)

    moments = domain_moments(model, loss, data, mixtures[0], num_groups=1000, projection=None)
    results = measure(
        model, loss, data, dict(zip("ab", mixtures)), batch_size=64, num_batches=2000, moments=moments, projection=None
    )
    scalarization, sampling = (64 * r.trace.value for r in results)
    assert scalarization < sampling
    assert (scalarization, sampling) == (pytest.approx(5.278, rel=0.12), pytest.approx(5.5, rel=0.12))
    assert [64 * r.predicted.value for r in results] == pytest.approx([scalarization, sampling], rel=0.12)
    assert theory.variance_gap(mixtures[0], moments.second_moments) < 0


def test_measuring_changes_nothing(problem):
    model, loss, data = problem
    before = [p.clone() for p in model.parameters()]
    model[0].weight.grad = torch.ones_like(model[0].weight)
    model[2].bias.requires_grad_(False)
    measure(model, loss, data, {"a": Mixture.proportional(SIZES)}, batch_size=4, num_batches=2, projection=64)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters()))
    assert torch.equal(model[0].weight.grad, torch.ones_like(model[0].weight))
    model[0].weight.grad = None
    model[2].bias.requires_grad_(True)


def test_wrong_arguments_are_named(problem):
    model, loss, data = problem
    a, b = Mixture.proportional(SIZES), Mixture.proportional({"x": 3, "y": 2})
    with pytest.raises(ValueError, match="one loss for each sample"):
        measure(model, lambda m, s: loss(m, s).mean(), data, {"a": a}, batch_size=4)
    with pytest.raises(ValueError, match="'b' has other domains"):
        measure(model, loss, data, {"a": a, "b": b}, batch_size=2, num_batches=2)
    other = Mixture.proportional({domain: size + 1 for domain, size in SIZES.items()})
    with pytest.raises(ValueError, match=f"dataset has {len(data)} samples, but the mixture's sizes add up to"):
        measure(model, loss, data, {"other": other}, batch_size=2)
    with pytest.raises(ValueError, match="the mixture's sizes add up to"):
        measure(model, loss, data, {"a": a, "other": other}, batch_size=2, num_batches=2)
    with pytest.raises(ValueError, match="num_batches = 1"):
        measure(model, loss, data, {"a": a}, batch_size=4, num_batches=1)
    with pytest.raises(ValueError, match="mixtures is empty"):
        measure(model, loss, data, {}, batch_size=4)
    with pytest.raises(ValueError, match="num_groups = 1"):
        domain_moments(model, loss, data, a, num_groups=1)
    with pytest.raises(ValueError, match="size = 0"):
        CountSketch(0)


def test_systematic_and_quota_batches_vary_less(problem):
    """The ratio to the trace of multinomial batches has an interval below 1 that holds the predicted ratio."""
    mixture = Mixture.temperature_sampling(SIZES, 5)
    multinomial, *others = measure(
        *problem,
        {"t": mixture},
        batch_size=16,
        num_batches=700,
        allocations=("multinomial", "systematic", "quota"),
        moments=domain_moments(*problem, mixture, num_groups=250),
    )
    for found in others:
        low, high = trace_ratio(found.contrasts, multinomial.contrasts)[1:]
        assert low < found.predicted.value / multinomial.predicted.value < high < 1, found.allocation
        assert found.trace.value == pytest.approx(found.predicted.value, rel=0.1)
