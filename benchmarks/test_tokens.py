"""Batches of tokens on one core, from warm pages, beside memcpy of as many bytes.

    pytest benchmarks/test_tokens.py --benchmark-enable -s

Documents have 600 tokens on average, lognormal, in 100 million uint16 tokens of four domains; indices are shuffled. All
four arrays are made: ids and labels of int64, positions and segments of int32, 24 bytes for a token. memcpy copies the
arrays of the same batch to another, so it reads 24 bytes where the dataset reads 2.
"""

import time

import numpy as np
import pytest

from pycooldown.data import TokenDataset
from pycooldown.data.token_shard_writer import write_token_shard

BATCH_TOKENS = 1 << 16
DOMAINS = {"en": 70_000_000, "de": 20_000_000, "sw": 9_000_000, "is": 1_000_000}


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokens")
    rng = np.random.default_rng(0)

    def documents(tokens):
        while tokens > 0:
            length = int(np.clip(rng.lognormal(5.9, 1.0), 1, tokens))
            yield rng.integers(0, 50_000, length, np.uint16)
            tokens -= length

    for name, tokens in DOMAINS.items():
        write_token_shard(folder / f"{name}.tar", documents(tokens), 50_257)
    return {name: folder / f"{name}.tar" for name in DOMAINS}


def copies(batch, repeats):
    """Return the median seconds to copy the arrays of a batch."""
    target = {name: np.empty_like(array) for name, array in batch.items()}
    times = []
    for _ in range(repeats):
        begin = time.perf_counter()
        for name, array in batch.items():
            np.copyto(target[name], array)
        times.append(time.perf_counter() - begin)
    return float(np.median(times))


@pytest.mark.parametrize("mode", ["concat", "best_fit"])
@pytest.mark.parametrize("length", [512, 1024, 2048])
def test_batches(benchmark, shards, mode, length):
    dataset = TokenDataset(shards, length, mode)
    rows = BATCH_TOKENS // length
    order = np.random.default_rng(1).permutation(len(dataset))
    batches = np.split(order[: len(order) // rows * rows], len(order) // rows)
    for batch in batches:  # loads the pages
        last = dataset.__getitems__(batch)
    number = iter(range(1 << 62))
    benchmark.pedantic(
        lambda: dataset.__getitems__(batches[next(number) % len(batches)]), rounds=min(len(batches), 1000)
    )
    seconds = benchmark.stats.stats.median
    figures = {
        "gtokens_per_s": rows * length / seconds / 1e9,
        "ratio_to_memcpy": copies(last, 200) / seconds,
        "padding": 1 - sum(dataset.tokens.values()) / (len(dataset) * length),
    }
    benchmark.extra_info.update(figures)
    print(mode, length, {name: round(value, 4) for name, value in figures.items()})


def test_opening(benchmark, shards):
    """Open a dataset of 170,000 documents, and build its index for best fit."""
    benchmark.pedantic(lambda: TokenDataset(shards, 2048, "best_fit"), rounds=5, warmup_rounds=1)
