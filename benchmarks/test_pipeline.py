"""Mix eight domains of 100,000 texts of 324 bytes at temperature 5, in one process: samples per second beside peers.

Every pipeline starts from its own format on disk and yields decoded samples or bytes; each round takes the same number
of samples from a running iterator, so the factors in pytest-benchmark's columns are ratios of throughput.
"""

import itertools
import os
import resource
import tarfile
import threading
from pathlib import Path

import numpy as np
import pytest
from torch.utils.data import DataLoader

from pycooldown import DomainBatchSampler, Mixture, schedules
from pycooldown.data import TarDataset

SIZES = {f"domain{i}": size for i, size in enumerate([50_000, 22_000, 12_000, 7_000, 4_500, 2_500, 1_500, 500])}
TEXT_BYTES = 324
SHARDS = 4  # a domain
BATCH = 1024
SAMPLES = 20 * BATCH  # a round
MIXTURE = Mixture.temperature_sampling(SIZES, tau=5.0)

pytestmark = pytest.mark.benchmark(disable_gc=False, warmup=False)


def write_shard(path, texts):
    """Write a tar whose members are one block and its header each; tarfile would take minutes."""
    with open(path, "wb") as file:
        for key, text in texts:
            info = tarfile.TarInfo(f"{key}.txt")
            info.size = len(text)
            file.write(info.tobuf(tarfile.USTAR_FORMAT) + text + bytes(-len(text) % 512))
        file.write(bytes(1024))


@pytest.fixture(scope="module")
def texts():
    rng = np.random.default_rng(0)
    return {
        domain: [bytes(rng.integers(97, 123, TEXT_BYTES, dtype=np.uint8)) for _ in range(size)]
        for domain, size in SIZES.items()
    }


@pytest.fixture(scope="module")
def shards(texts, tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards")
    out = {}
    for domain, all_texts in texts.items():
        size = len(all_texts) // SHARDS
        out[domain] = [str(folder / f"{domain}-{number}.tar") for number in range(SHARDS)]
        for number, path in enumerate(out[domain]):
            own = enumerate(all_texts[number * size : (number + 1) * size])
            write_shard(path, [(f"{domain}/{number}-{i:06d}", text) for i, text in own])
    return out


def batches():
    schedule = schedules.constant(MIXTURE)
    return DomainBatchSampler(schedule, batch_size=BATCH, seed=0)


def run(benchmark, samples, rounds=5):
    """Take SAMPLES of an endless iterator per round."""
    iterator = iter(samples)
    next(iterator)  # opens what has to be opened
    benchmark.pedantic(lambda: sum(1 for _ in itertools.islice(iterator, SAMPLES)), rounds=rounds, warmup_rounds=1)
    benchmark.extra_info["samples_per_second"] = SAMPLES / benchmark.stats.stats.median


def run_batches(benchmark, read, rounds=5):
    iterator = iter(batches())
    read(next(iterator))

    def take():
        for _ in range(SAMPLES // BATCH):
            read(next(iterator))

    benchmark.pedantic(take, rounds=rounds, warmup_rounds=1)
    benchmark.extra_info["samples_per_second"] = SAMPLES / benchmark.stats.stats.median


# ---- ours ----


@pytest.mark.benchmark(group="mixing 8 domains")
def test_pycooldown(benchmark, shards):
    run_batches(benchmark, TarDataset(shards).__getitems__, rounds=25)


@pytest.mark.benchmark(group="mixing 8 domains")
def test_pycooldown_flat(benchmark, shards):
    dataset = TarDataset(shards)
    run_batches(benchmark, lambda indices: dataset.flat(indices, "txt"), rounds=25)


@pytest.mark.benchmark(group="mixing 8 domains")
def test_pycooldown_flat_without_planning(benchmark, shards):
    """Measure the reader alone, with batches planned beforehand."""
    dataset = TarDataset(shards)
    planned = list(itertools.islice(batches(), 32))
    iterator = itertools.cycle(planned)

    def take():
        for _ in range(SAMPLES // BATCH):
            dataset.flat(next(iterator), "txt")

    benchmark.pedantic(take, rounds=25, warmup_rounds=1)


@pytest.mark.benchmark(group="mixing 8 domains")
def test_pycooldown_stream(benchmark, shards):
    from pycooldown.data import mix

    run(benchmark, mix(shards, schedules.constant(MIXTURE), batch_size=BATCH, seed=0).decode())


# ---- peers ----


@pytest.mark.benchmark(group="mixing 8 domains")
@pytest.mark.parametrize("decode", [True, False], ids=["decoded", "bytes"])
def test_webdataset_random_mix(benchmark, shards, decode):
    webdataset = pytest.importorskip("webdataset")
    pipelines = [webdataset.WebDataset(paths, shardshuffle=SHARDS, seed=0).repeat() for paths in shards.values()]
    pipelines = [pipeline.decode() for pipeline in pipelines] if decode else pipelines
    run(benchmark, webdataset.RandomMix(pipelines, MIXTURE.sampling))


@pytest.mark.benchmark(group="mixing 8 domains")
def test_torchdata_weighted_sampler_over_webdataset(benchmark, shards):
    nodes = pytest.importorskip("torchdata.nodes")
    webdataset = pytest.importorskip("webdataset")
    sources = {
        domain: nodes.IterableWrapper(webdataset.WebDataset(paths, shardshuffle=SHARDS, seed=0))
        for domain, paths in shards.items()
    }
    weights = dict(zip(shards, MIXTURE.sampling.tolist(), strict=True))
    node = nodes.MultiNodeWeightedSampler(sources, weights, stop_criteria="CYCLE_FOREVER")
    run(benchmark, nodes.Loader(node))


@pytest.mark.benchmark(group="mixing 8 domains")
def test_litdata_combined(benchmark, texts, tmp_path):
    litdata = pytest.importorskip("litdata")
    from litdata.streaming.cache import Cache

    for domain, all_texts in texts.items():
        cache = Cache(str(tmp_path / domain), chunk_bytes="64MB")
        for i, text in enumerate(all_texts):
            cache[i] = {"txt": text}
        cache.done()
        cache.merge()
    datasets = [litdata.StreamingDataset(str(tmp_path / domain), shuffle=True) for domain in texts]
    combined = litdata.CombinedStreamingDataset(datasets, weights=MIXTURE.sampling.tolist(), iterate_over_all=False)
    run(benchmark, itertools.chain.from_iterable(itertools.repeat(combined)))


@pytest.mark.benchmark(group="mixing 8 domains")
@pytest.mark.parametrize("kind", ["map-style", "iterable"])
def test_hugging_face_interleave(benchmark, texts, kind):
    datasets = pytest.importorskip("datasets")
    rows = [datasets.Dataset.from_dict({"txt": all_texts}) for all_texts in texts.values()]
    if kind == "iterable":
        rows = [dataset.to_iterable_dataset() for dataset in rows]
    mixed = datasets.interleave_datasets(
        rows, probabilities=MIXTURE.sampling.tolist(), seed=0, stopping_strategy="all_exhausted"
    )
    run(benchmark, itertools.chain.from_iterable(itertools.repeat(mixed)), rounds=3)


# ---- circumstances ----


def collate(samples):
    return [sample["txt"] for sample in samples]


@pytest.mark.benchmark(group="DataLoader")
@pytest.mark.parametrize("workers", [0, 4])
def test_data_loader(benchmark, shards, workers):
    loader = DataLoader(TarDataset(shards), batch_sampler=batches(), num_workers=workers, collate_fn=collate)
    iterator = iter(loader)
    next(iterator)
    benchmark.pedantic(lambda: [next(iterator) for _ in range(SAMPLES // BATCH)], rounds=9, warmup_rounds=1)


@pytest.mark.benchmark(group="DataLoader")
def test_data_loader_without_reading(benchmark, shards):
    """Measure the cost of four workers and their queues without reading: the limit of the benchmark above."""
    samples = {i: {"txt": bytes(TEXT_BYTES)} for i in range(sum(SIZES.values()))}
    loader = DataLoader(samples, batch_sampler=batches(), num_workers=4, collate_fn=collate)
    iterator = iter(loader)
    next(iterator)
    benchmark.pedantic(lambda: [next(iterator) for _ in range(SAMPLES // BATCH)], rounds=9, warmup_rounds=1)


@pytest.mark.benchmark(group="page cache")
@pytest.mark.parametrize("cache", ["warm", "cold"])
def test_page_cache(benchmark, shards, cache):
    TarDataset(shards)  # leaves the index files

    def setup():
        for path in itertools.chain.from_iterable(shards.values()):
            with open(path, "rb") as file:
                os.fsync(file.fileno())
                if cache == "cold":
                    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
                else:
                    file.read()
        return (TarDataset(shards), list(itertools.islice(batches(), SAMPLES // BATCH))), {}

    def take(dataset, planned):
        for indices in planned:
            dataset.__getitems__(indices)

    benchmark.pedantic(take, setup=setup, rounds=5)


@pytest.mark.benchmark(group="10,000 domains")
def test_ten_thousand_domains(benchmark, tmp_path):
    """Index, open and draw 1 M samples of four shards each, within 64 threads, 1,024 open files and 1 GB."""
    domains, samples = 10_000, 30
    shards = {}
    for domain in range(domains):
        shards[f"{domain:05d}"] = [tmp_path / f"{domain:05d}-{number}.tar" for number in range(4)]
        for number, path in enumerate(shards[f"{domain:05d}"]):
            write_shard(path, [(f"{number}-{i}", b"text") for i in range(samples)])
    highest = {"threads": 0, "open files": 0, "maps": 0}
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    def watch(dataset=None):
        highest["threads"] = max(highest["threads"], len(list(Path("/proc/self/task").iterdir())))
        highest["open files"] = max(highest["open files"], len(list(Path("/proc/self/fd").iterdir())))
        highest["maps"] = max(highest["maps"], Path("/proc/self/maps").read_text().count("\n"))

    def everything():
        done = threading.Event()
        watcher = threading.Thread(target=lambda: [watch() for _ in iter(lambda: done.wait(0.05), True)])
        watcher.start()
        dataset = TarDataset(shards)
        mixture = Mixture.temperature_sampling(dataset.sizes, tau=5.0)
        sampler = DomainBatchSampler(
            schedules.constant(mixture), batch_size=BATCH, seed=0, num_steps=1_000_000 // BATCH
        )
        count = sum(len(dataset.__getitems__(indices)) for indices in sampler)
        done.set()
        watcher.join()
        return count

    assert benchmark.pedantic(everything, rounds=1) == 1_000_000 // BATCH * BATCH
    highest["MB"] = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024
    benchmark.extra_info.update(highest)
    print(highest)
    assert highest["threads"] <= 64
    assert highest["open files"] <= 1024
    assert highest["MB"] <= 1024
