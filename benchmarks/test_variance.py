"""What a step of each mixture buys: throughput beside the variance of the minibatch gradient, on real text.

The rounds are gradients of the small translation model, at its initialization and after a short training; temperature
sampling and scalarization descend the same objective. ``extra_info`` has the trace variance (measured, predicted), the
variance of the gradient's norm, tokens per second, and tokens per second over the trace: the rate at which the
gradient's precision grows; for throughput the contenders take turns. Needs packed data, which
`python benchmarks/report.py` prepares:

    PYCOOLDOWN_PACKED=demo/packed pytest benchmarks/test_variance.py --benchmark-enable

`test_probe` has what the probe costs beyond the gradients that it measures, on a model of 50 million parameters.
"""

import itertools
import os
import re
import statistics
import time
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from pycooldown import DomainBatchSampler, Mixture, schedules  # noqa: E402
from pycooldown.experiments.translation import (  # noqa: E402
    Setting,
    build_model,
    load_model,
    read_texts,
    sample_losses,
    train,
)
from pycooldown.variance import domain_moments, measure  # noqa: E402

SETTING = Setting(steps=200)
TAU = 5
ROUNDS = 5
ALLOCATIONS = ("multinomial", "systematic")
MIXTURES = {"temperature": Mixture.temperature_sampling, "scalarization": Mixture.scalarization}


@pytest.fixture(scope="module")
def texts():
    folder = os.environ.get("PYCOOLDOWN_PACKED")
    if not folder:
        pytest.skip("set PYCOOLDOWN_PACKED to a folder that `pycooldown pack` wrote")
    return read_texts(Path(folder))


class Contender:
    """Gradients of eight batches of one mixture and allocation, always the same."""

    def __init__(self, model, texts, kind, allocation):
        self.model = model
        self.mixture = MIXTURES[kind](texts.sizes, TAU)
        sampler = DomainBatchSampler(
            schedules.constant(self.mixture), batch_size=SETTING.batch_size, seed=0, allocation=allocation
        )
        plans = [sampler.plan(step) for step in range(8)]
        self.batches = [
            ([texts.train[i] for i in p.indices], torch.from_numpy(self.mixture.loss_weights[p.domain_ids]).float())
            for p in plans
        ]
        self.tokens = sum(len(tokens) for samples, _ in self.batches for tokens, _ in samples)

    def __call__(self):
        """One gradient of each batch."""
        for samples, weights in self.batches:
            loss = (weights * sample_losses(self.model, samples)).mean()
            torch.autograd.grad(loss, list(self.model.parameters()))


@pytest.fixture(scope="module", params=["initial", "trained"])
def stage(request, texts, tmp_path_factory):
    """The moments of a model, its contenders, and the tokens per second of each: medians of turns."""
    if request.param == "initial":
        model = build_model(texts, SETTING, 0)
    else:
        folder = tmp_path_factory.mktemp("runs")
        train(texts, "temperature 5", 0, folder, SETTING, keep_weights=True)
        model = load_model(texts, "temperature 5", 0, folder, SETTING)
    moments = domain_moments(model, sample_losses, texts.train, Mixture.proportional(texts.sizes))
    contenders = {key: Contender(model, texts, *key) for key in itertools.product(MIXTURES, ALLOCATIONS)}
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
def test_gradient(benchmark, texts, stage, kind, allocation):
    moments, contenders, rates = stage
    contender = contenders[kind, allocation]
    benchmark.pedantic(contender, rounds=ROUNDS, warmup_rounds=1)
    (found,) = measure(
        contender.model,
        sample_losses,
        texts.train,
        {kind: contender.mixture},
        batch_size=SETTING.batch_size,
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


def resident(field):
    return int(re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024


@pytest.mark.parametrize("projection", [None, 4096], ids=["all coordinates", "projection"])
def test_probe(benchmark, projection):
    """Moments of two domains from groups of 8 samples, beside as many gradients, which cost next to nothing here."""
    model = torch.nn.Sequential(*(torch.nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(LAYERS)))
    data = torch.randn(SAMPLES, WIDTH, generator=torch.Generator().manual_seed(0))
    mixture = Mixture.proportional({"a": SAMPLES - 16, "b": 16})

    def losses(model, samples):
        return model(torch.stack(samples)).square().mean(1)

    def gradients():
        for group in range(2 * GROUPS):
            torch.autograd.grad(losses(model, list(data[8 * group : 8 * group + 8])).mean(), list(model.parameters()))

    def peak(run):
        before, start = resident("VmRSS"), time.perf_counter()
        Path("/proc/self/clear_refs").write_text("5")  # forgets the peak so far
        run()
        return resident("VmHWM") - before, time.perf_counter() - start

    def probe():
        domain_moments(model, losses, data, mixture, num_groups=GROUPS, projection=projection)

    gradients()  # what is allocated once is not of interest
    bare, bare_seconds = peak(gradients)
    memory, seconds = peak(lambda: benchmark.pedantic(probe, rounds=1))
    benchmark.extra_info["seconds a gradient beyond its own"] = (seconds - bare_seconds) / (2 * GROUPS)
    benchmark.extra_info["MiB beyond the gradients'"] = (memory - bare) / 2**20
