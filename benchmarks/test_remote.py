"""Mix eight domains of shards in a store 20 ms away, with a cache of a quarter of the data: samples per second.

A small server (`range_server.c`, compiled here) answers each request after 20 ms from memory. Every pipeline reads its
own format, with a loader, collation and decoding to bytes, each in turn, for at most `SECONDS`: the first pass with an
empty cache, then what it holds. We time the latter twice: "restarted" is the first pass of a new job, with a new
fetcher and a new worker; "later epochs" are those of a job that goes on. There local files of the same samples take
turns with the cache, and the median of the ratios of neighbouring turns is printed with its 95 % interval (bootstrap).
Prints a table; fails if the cache fetches other bytes than its plan says.

A worker sends each batch as a megabyte of bytes. By default glibc maps memory for these anew each time, or keeps it,
depending on what the process did before: rates then differ by a factor of two from run to run. Here it always keeps it,
for all pipelines.

    pytest benchmarks/test_remote.py -s
"""

import ctypes
import itertools
import shutil
import subprocess
import tarfile
import time
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from torch.utils.data import DataLoader

from pycooldown import DomainBatchSampler, Mixture, schedules
from pycooldown.data import KnownFutureCache, TarDataset
from pycooldown.data.cache.blocks import Blocks
from pycooldown.data.cache.plan import BlockUses, forecast
from pycooldown.gradients.moments import bootstrap

pytest.importorskip("obstore")

LATENCY = 20.0  # milliseconds
SIZES = {f"domain{i}": int(256_000 * 1_000 ** (-i / 7)) for i in range(8)}
TEXT_BYTES = 1_024
SHARD_BYTES = 64 << 20
TAR_BYTES = 1_536  # of a sample: its header and its text
BATCH = 1_024
SECONDS = 12.0
REPEATS = 12  # later epochs
TURNS = 8  # in an epoch
MIXTURE = Mixture.temperature_sampling(SIZES, tau=5.0)
STEPS = int(SIZES["domain0"] / (BATCH * MIXTURE.sampling[0]))  # the largest domain once
# Of the limit, what is fetched ahead at most: more hides more of the latency, less leaves more room to what is kept.
DEPTHS = {64: 16, 256: 48}
RESULTS = {}


@pytest.fixture(scope="module", autouse=True)
def kept_memory():
    """Let glibc keep freed memory, in this process and in the workers that it starts."""
    trim_threshold, top_pad, mmap_threshold = -1, -2, -3  # as <malloc.h> numbers them
    for parameter, size in ((mmap_threshold, 1 << 25), (trim_threshold, 1 << 28), (top_pad, 1 << 26)):
        assert ctypes.CDLL(None).mallopt(parameter, size) == 1


@pytest.fixture(scope="module")
def texts():
    rng = np.random.default_rng(0)
    return {domain: rng.integers(97, 123, (size, TEXT_BYTES), dtype=np.uint8) for domain, size in SIZES.items()}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """Start a server of a folder, which also acts as a bucket."""
    folder = tmp_path_factory.mktemp("store")
    (folder / "bucket").mkdir()
    program = folder.with_name("range_server")
    source = Path(__file__).with_name("range_server.c")
    if shutil.which("cc") is None:
        pytest.skip("the server needs a C compiler")
    subprocess.run(["cc", "-D_GNU_SOURCE", "-O2", "-pthread", source, "-o", program], check=True)
    process = subprocess.Popen([program, folder, str(LATENCY)], stdout=subprocess.PIPE, text=True)
    address = f"http://127.0.0.1:{process.stdout.readline().strip()}"
    with pytest.MonkeyPatch.context() as patch:
        for name in ("S3_ENDPOINT_URL", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"):
            patch.setenv(name, address)
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.setenv(name, "none")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        patch.setenv("AWS_ALLOW_HTTP", "true")
        patch.setenv("NO_PROXY", "127.0.0.1")
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("xdg")))
        yield address, folder / "bucket"
    process.terminate()
    process.wait()
    for name, row in RESULTS.items():
        print(f"\n{name:44s} {row}", end="")
    print()


@pytest.fixture(scope="module")
def shards(texts, server):
    """Return URLs of the tar shards by domain."""
    address, bucket = server
    urls = {}
    for domain, rows in texts.items():
        per_shard = SHARD_BYTES // TAR_BYTES
        for number, start in enumerate(range(0, len(rows), per_shard)):
            path = bucket / "tar" / f"{domain}-{number}.tar"
            path.parent.mkdir(exist_ok=True)
            with open(path, "wb") as file:
                for i, text in enumerate(rows[start : start + per_shard], start):
                    info = tarfile.TarInfo(f"{domain}-{i:06d}.txt")
                    info.size = TEXT_BYTES
                    file.write(info.tobuf(tarfile.USTAR_FORMAT) + text.tobytes())
                file.write(bytes(1_024))
            urls.setdefault(domain, []).append(f"{address}/bucket/tar/{path.name}")
    return urls


def counts(server):
    with urllib.request.urlopen(f"{server[0]}/_counts") as reply:
        return tuple(map(int, reply.read().split()))


def rate(batches, size=len):
    """Return samples per second from the first requested batch on, for at most `SECONDS`, and their number."""
    began, samples = time.perf_counter(), 0
    for batch in batches:
        samples += size(batch)
        if time.perf_counter() - began > SECONDS:
            break
    return samples / (time.perf_counter() - began), samples


def take_turns(loaders, size):
    """Return samples a second of loaders in each turn, of equally many samples; `TURNS` of them are a pass."""
    batches = {name: iter(loader) for name, loader in loaders.items()}
    rates = {name: [] for name in loaders}
    for _ in range((1 + REPEATS) * TURNS):
        for name in loaders:
            began = time.perf_counter()
            samples = sum(size(batch) for batch in itertools.islice(batches[name], STEPS // TURNS))
            rates[name].append(samples / (time.perf_counter() - began))
    return {name: np.array(turns) for name, turns in rates.items()}


def by_pass(rates):
    """Return the rates of the first pass and of all later ones together: harmonic means of those of turns."""
    passes = {"restarted": rates[:TURNS], "later epochs": rates[TURNS:]}
    return {name: len(turns) / np.reciprocal(turns).sum() for name, turns in passes.items()}


def note(name, rates, **more):
    columns = [f"{rate:12,.0f}/s {name}" for name, rate in rates.items()]
    RESULTS[name] = ", ".join(columns) + "  " + ", ".join(f"{key} {value}" for key, value in more.items())


def collate(samples):
    return [sample["txt"] for sample in samples]


def as_bytes(samples):
    """Return copies as bytes: litdata may return views, which a worker cannot send."""
    return [bytes(sample) for sample in samples]


def flat(dataset):
    """Return a data set whose batches are one buffer."""

    class Flat:
        def __len__(self):
            return len(dataset)

        def __getitems__(self, indices):
            return dataset.flat(indices, "txt")

    return Flat()


def make_sampler(dataset, block, steps=STEPS):
    return DomainBatchSampler(
        schedules.constant(MIXTURE),
        batch_size=BATCH,
        seed=0,
        num_steps=steps,
        allocation="systematic",
        shuffle="blocks",
        shard_sizes=dataset.shard_sizes,
        block=block,
    )


FORMS = {
    "samples": (lambda dataset: dataset, collate, len),
    "flat": (flat, lambda batch: batch, lambda batch: len(batch[1]) - 1),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("block", [64, 256])
def test_cache(server, shards, tmp_path, block, form):
    wrap, function, size = FORMS[form]
    dataset = TarDataset(shards)
    limit = sum(item.size for item in dataset.objects) // 4
    depth = limit // DEPTHS[block]
    sampler = make_sampler(dataset, block)
    uses = BlockUses(make_sampler(dataset, block), dataset, Blocks.of(dataset, block))
    plan = forecast(uses, stop=STEPS, limits=[limit], depths=[depth], prefetched=4).forecasts[0]
    with KnownFutureCache(tmp_path / "cache", limit=limit, depth=depth, prefetched=4) as cache:
        _, before = counts(server)
        cache.follow(sampler, dataset)
        loader = DataLoader(wrap(dataset), batch_sampler=sampler, collate_fn=function, num_workers=1)
        first = rate(loader, size)
        found, (_, after) = cache.statistics(), counts(server)
        if first[1] == STEPS * BATCH:  # the pass was complete
            assert (found.requests, found.fetched_bytes) == (plan.requests, plan.bytes_fetched)
            assert after - before == plan.bytes_fetched
    with KnownFutureCache(tmp_path / "warm", limit=4 * limit, depth=limit) as cache:
        for is_filled in (False, True):
            sampler = make_sampler(dataset, block, STEPS if not is_filled else (1 + REPEATS) * STEPS)
            cache.follow(sampler, dataset)
            loader = DataLoader(wrap(dataset), batch_sampler=sampler, collate_fn=function, num_workers=1)
            if not is_filled:
                for _ in loader:
                    pass
                continue
            folder = server[1] / "tar"
            near = TarDataset({d: [str(folder / Path(url).name) for url in urls] for d, urls in shards.items()})
            near_sampler = make_sampler(near, block, (1 + REPEATS) * STEPS)
            near_loader = DataLoader(wrap(near), batch_sampler=near_sampler, collate_fn=function, num_workers=1)
            turns = take_turns({"cache": loader, "local": near_loader}, size)
            assert cache.statistics().requests == 0
    ratio = plan.bytes_fetched / plan.bytes_used
    rates = {"first pass": first[0], **by_pass(turns["cache"])}
    note(f"pycooldown {form}, blocks of {block}", rates, requests=plan.requests, fetched_over_used=f"{ratio:.3f}")
    ratios = (turns["cache"] / turns["local"])[TURNS:]
    over_local = "{:.3f} [{:.3f}, {:.3f}]".format(*bootstrap(lambda x: np.median(x, axis=-1), ratios))
    note(f"  local files, in turns with it ({form}, {block})", by_pass(turns["local"]), cache_over_local=over_local)
    assert ratio <= 1.15


def test_mosaic_streaming(server, texts, tmp_path):
    streaming = pytest.importorskip("streaming")
    _, bucket = server
    for domain, rows in texts.items():
        out = str(bucket / "mds" / domain)
        with streaming.MDSWriter(out=out, columns={"txt": "bytes"}, size_limit=SHARD_BYTES) as writer:
            for text in rows:
                writer.write({"txt": text.tobytes()})
    limit = sum(rows.size for rows in texts.values()) // 4
    streams = [
        streaming.Stream(remote=f"s3://bucket/mds/{domain}", local=str(tmp_path / domain), proportion=float(share))
        for domain, share in zip(texts, MIXTURE.sampling)
    ]
    options = {"cache_limit": max(limit, 5 * SHARD_BYTES), "shuffle": True, "batch_size": BATCH}
    dataset = streaming.StreamingDataset(streams=streams, epoch_size=STEPS * BATCH, predownload=8 * BATCH, **options)
    loader = DataLoader(dataset, batch_size=BATCH, collate_fn=collate, num_workers=1)
    note("MosaicML Streaming", {"first pass": rate(loader)[0], "restarted": rate(loader)[0]})


def test_litdata(server, texts, tmp_path, monkeypatch):
    litdata = pytest.importorskip("litdata")
    from litdata.streaming import downloader
    from litdata.streaming.cache import Cache

    if hasattr(downloader, "_OBSTORE_CLIENT_OPTIONS"):  # otherwise its client accepts only https
        monkeypatch.setitem(downloader._OBSTORE_CLIENT_OPTIONS, "allow_http", "true")
    _, bucket = server
    for domain, rows in texts.items():
        writer = Cache(str(bucket / "lit" / domain), chunk_bytes=SHARD_BYTES)
        for i, text in enumerate(rows):
            writer[i] = text.tobytes()
        writer.done()
        writer.merge()
    limit = sum(rows.size for rows in texts.values()) // 4
    storage = {"endpoint_url": server[0]}
    datasets = [
        litdata.StreamingDataset(
            f"s3://bucket/lit/{domain}",
            cache_dir=str(tmp_path / domain),
            max_cache_size=max(2 * SHARD_BYTES, int(limit * share)),
            storage_options=storage,
            shuffle=True,
        )
        for domain, share in zip(texts, MIXTURE.sampling)
    ]
    weights = MIXTURE.sampling.tolist()
    combined = litdata.CombinedStreamingDataset(datasets, weights=weights, iterate_over_all=False)
    loader = litdata.StreamingDataLoader(combined, batch_size=BATCH, collate_fn=as_bytes, num_workers=1)
    note("litdata", {"first pass": rate(loader)[0], "restarted": rate(loader)[0]})


def test_webdataset(server, shards):
    webdataset = pytest.importorskip("webdataset")
    if shutil.which("curl") is None:
        pytest.skip("webdataset reads http by curl")
    pipelines = [
        webdataset.WebDataset([f"pipe:curl -s {url}" for url in urls], shardshuffle=False).shuffle(1_000).repeat()
        for urls in shards.values()
    ]
    mixed = webdataset.RandomMix(pipelines, MIXTURE.sampling.tolist())
    loader = DataLoader(mixed, batch_size=BATCH, collate_fn=collate, num_workers=1)
    note("webdataset, no cache", {"first pass": rate(itertools.islice(loader, STEPS))[0]})
