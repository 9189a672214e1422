"""Benefit of a step of each mixture: throughput beside the variance of the minibatch gradient, on real text.

The rounds are gradients of the demo's model, at its initialization and after 200 steps of its recipe; temperature
sampling and scalarization descend the same objective. ``extra_info`` has the trace variance (measured, predicted), the
variance of the gradient's norm, tokens per second, and tokens per second over the trace: the rate at which the
gradient's precision grows; for throughput the contenders take turns. Needs packed data, which
`python benchmarks/report.py` prepares:

    PYCOOLDOWN_PACKED=demo/packed pytest benchmarks/test_variance.py --benchmark-enable

`test_probe` has what the probe costs beyond the gradients that it measures, on a model of 50 million parameters.
"""

import itertools
import os
import statistics
import time
from dataclasses import replace
from pathlib import Path

import process_memory
import pytest

torch = pytest.importorskip("torch")

from pycooldown import DomainBatchSampler, Mixture, schedules  # noqa: E402
from pycooldown.gradients.variance import domain_moments, measure  # noqa: E402
from pycooldown.recipes import load_recipe, train  # noqa: E402
from pycooldown.recipes.gradient_variance import RunGradients  # noqa: E402

RECIPE = Path(__file__).parents[1] / "recipes" / "demo" / "temperature5.yaml"
STEPS = 200
TAU = 5
ROUNDS = 5
ALLOCATIONS = ("multinomial", "systematic")
MIXTURES = {"temperature": Mixture.temperature_sampling, "scalarization": Mixture.scalarization}


class Contender:
    """Gradients of eight fixed batches of one mixture and allocation."""

    def __init__(self, run, kind, allocation):
        self.run = run
        self.mixture = MIXTURES[kind](run.sizes, TAU)
        sampler = DomainBatchSampler(
            schedules.constant(self.mixture), batch_size=run.batch_size, seed=0, allocation=allocation
        )
        plans = [sampler.plan(step) for step in range(8)]
        self.batches = [
            (
                run.dataset.__getitems__(p.indices.tolist()),
                torch.from_numpy(self.mixture.loss_weights[p.domain_ids]).float(),
            )
            for p in plans
        ]
        self.tokens = sum(int((run.collate(samples)["labels"][:, 1:] >= 0).sum()) for samples, _ in self.batches)

    def __call__(self):
        """Compute one gradient of each batch."""
        for samples, weights in self.batches:
            loss = (weights * self.run.losses(self.run.model, samples)).mean()
            torch.autograd.grad(loss, list(self.run.model.parameters()))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    data = os.environ.get("PYCOOLDOWN_PACKED")
    if not data:
        pytest.skip("set PYCOOLDOWN_PACKED to a folder written by `pycooldown pack`")
    steps = [f"training.{name}={STEPS}" for name in ("steps", "eval_every", "save_every")]
    recipe = load_recipe(RECIPE, [f"data.path={Path(data).resolve()}", *steps])
    return RunGradients.load(train(recipe, tmp_path_factory.mktemp("runs") / "run", progress=False).path)


@pytest.fixture(scope="module", params=["initial", "trained"])
def stage(request, trained):
    """Return the moments of a model, its contenders, and the tokens per second of each as medians of turns."""
    run = trained
    if request.param == "initial":
        torch.manual_seed(0)
        run = replace(trained, model=type(trained.model)(trained.model.config).eval())
    moments = domain_moments(run.model, run.losses, run.dataset, Mixture.proportional(run.sizes))
    contenders = {key: Contender(run, *key) for key in itertools.product(MIXTURES, ALLOCATIONS)}
    times = {key: [] for key in contenders}
    for _ in range(ROUNDS + 1):
        for key, contender in contenders.items():
            start = time.perf_counter()
            contender()
            times[key].append(time.perf_counter() - start)
    rates = {key: c.tokens / statistics.median(times[key][1:]) for key, c in contenders.items()}
    return moments, contenders, rates


@pytest.mark.parametrize("allocation", ALLOCATIONS)
@pytest.mark.parametrize("kind", MIXTURES)
def test_gradient(benchmark, stage, kind, allocation):
    moments, contenders, rates = stage
    contender = contenders[kind, allocation]
    benchmark.pedantic(contender, rounds=ROUNDS, warmup_rounds=1)
    (found,) = measure(
        contender.run.model,
        contender.run.losses,
        contender.run.dataset,
        {kind: contender.mixture},
        batch_size=contender.run.batch_size,
        allocations=[allocation],
        moments=moments,
    )
    info = benchmark.extra_info
    info["trace variance"] = found.trace._asdict()
    info["trace variance predicted"] = found.predicted._asdict()
    info["norm variance"] = found.norm_variance._asdict()
    info["tokens/s"] = rates[kind, allocation]
    info["tokens/s per unit of variance"] = rates[kind, allocation] / found.trace.value


SAMPLES, WIDTH, LAYERS, GROUPS = 64, 4096, 3, 4


@pytest.mark.parametrize("projection", [None, 4096], ids=["all coordinates", "projection"])
def test_probe(benchmark, projection):
    """Measure moments of two domains from groups of 8 samples, beside as many gradients, which are almost free here."""
    model = torch.nn.Sequential(*(torch.nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(LAYERS)))
    data = torch.randn(SAMPLES, WIDTH, generator=torch.Generator().manual_seed(0))
    mixture = Mixture.proportional({"a": SAMPLES - 16, "b": 16})

    def losses(model, samples):
        return model(torch.stack(samples)).square().mean(1)

    def gradients():
        for group in range(2 * GROUPS):
            torch.autograd.grad(losses(model, list(data[8 * group : 8 * group + 8])).mean(), list(model.parameters()))

    def peak(run):
        before, start = process_memory.resident(), time.perf_counter()
        process_memory.forget_peak()
        run()
        return process_memory.peak() - before, time.perf_counter() - start

    def probe():
        domain_moments(model, losses, data, mixture, num_groups=GROUPS, projection=projection)

    gradients()  # excludes memory that is allocated only once
    bare, bare_seconds = peak(gradients)
    memory, seconds = peak(lambda: benchmark.pedantic(probe, rounds=1))
    benchmark.extra_info["seconds a gradient beyond its own"] = (seconds - bare_seconds) / (2 * GROUPS)
    benchmark.extra_info["MiB beyond the gradients'"] = (memory - bare) / 2**20
