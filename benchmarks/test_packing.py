"""Measure the padding that packing leaves in a step's rows, on packed data: the demo's, or PYCOOLDOWN_PACKED's.

    PYCOOLDOWN_PACKED=demo/packed pytest benchmarks/test_packing.py --benchmark-enable -s

Samples are the source and target tokens of a pair, end to end, drawn at temperature 5 or, in larger batches, 1.5. Waste
is the share of padding in the rows of 50 steps; beside it the least that whole rows allow, and the share of padding
where each sequence has a row of its own, as long as the longest of the step.
"""

import io
import os
from pathlib import Path

import numpy as np
import pytest

from pycooldown import DomainBatchSampler, Mixture, schedules
from pycooldown.data import TarDataset, pack_sequences
from pycooldown.data.manifest import load_manifest

FOLDER = Path(os.environ.get("PYCOOLDOWN_PACKED", "demo/packed"))
NUM_STEPS = 50


def tokens(sample):
    sides = (np.load(io.BytesIO(sample[name]), allow_pickle=False) for name in ("src.npy", "tgt.npy"))
    return np.concatenate(list(sides))


@pytest.mark.parametrize(("batch_size", "length"), [(48, 64), (48, 128), (128, 128), (512, 512), (1024, 1024)])
def test_waste(benchmark, batch_size, length):
    if not (FOLDER / "manifest.json").exists():
        pytest.skip(f"{FOLDER} has no packed data; `make demo` makes them, or set PYCOOLDOWN_PACKED")
    dataset = TarDataset(load_manifest(FOLDER).shards("train"))
    tau = 5.0 if batch_size < 512 else 1.5  # the demo's rarest domain has 130 samples, which a batch must not exceed
    schedule = schedules.constant(Mixture.temperature_sampling(dataset.sizes, tau))
    sampler = DomainBatchSampler(schedule, batch_size=batch_size, seed=0)
    steps = []
    for plan in map(sampler.plan, range(NUM_STEPS)):
        samples = [tokens(sample) for sample in dataset.__getitems__(plan.indices.tolist())]
        steps.append((samples, plan.domain_ids))

    packed = []

    def pack_all():
        packed[:] = [pack_sequences(samples, domain_ids, length=length) for samples, domain_ids in steps]

    benchmark.pedantic(pack_all, rounds=3, warmup_rounds=1)
    used = sum(len(sample) for samples, _ in steps for sample in samples)
    rows = sum(len(step.tokens) for step in packed)
    padded = sum(len(samples) * max(map(len, samples)) for samples, _ in steps)
    figures = {
        "rows_per_step": rows / NUM_STEPS,
        "waste": 1 - used / (rows * length),
        "waste_without_packing": 1 - used / padded,
        "least_waste": 1 - used / (sum(-(-sum(map(len, samples)) // length) for samples, _ in steps) * length),
        "ns_per_token": benchmark.stats.stats.median * 1e9 / used,
    }
    benchmark.extra_info.update(figures)
    print(batch_size, length, {name: round(value, 4) for name, value in figures.items()})
