"""A cache over a real server: the samples of the files, the requests of the plan, and clear errors."""

import io
import json
import os
import signal
import tarfile
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("obstore")

from object_server import serve_objects

from pycooldown import DomainBatchSampler, Mixture, schedules
from pycooldown.data import KnownFutureCache, TarDataset
from pycooldown.data.cache.blocks import Blocks
from pycooldown.data.cache.plan import BlockUses, forecast
from pycooldown.data.stores import StoreError

COUNTS = {"en": [120, 77, 100], "de": [60, 15]}
STEPS, BATCH, BLOCK = 40, 20, 8


@pytest.fixture(scope="module", autouse=True)
def folder_of_indexes(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NO_PROXY", "127.0.0.1")
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("xdg")))
        yield


@pytest.fixture(scope="module")
def stored():
    """A server, and the URLs of its shards."""
    with serve_objects() as server:
        urls = {
            domain: [server.put(f"{domain}/{i}.tar", tar(domain, i, count)) for i, count in enumerate(counts)]
            for domain, counts in COUNTS.items()
        }
        TarDataset(urls)  # indexes them
        yield server, urls


@pytest.fixture
def server(stored):
    server, _ = stored
    server.faults.clear()
    server.requests.clear()
    return server


def tar(domain, shard, count):
    """A tar of samples whose texts say what they are."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as file:
        for i in range(count):
            content = f"{domain} {shard} {i} ".encode() * (20 + i % 7)
            info = tarfile.TarInfo(f"{shard:03d}-{i:06d}.txt")
            info.size = len(content)
            file.addfile(info, io.BytesIO(content))
    return out.getvalue()


@pytest.fixture
def dataset(stored, server):
    return TarDataset(stored[1])


def make_sampler(dataset, **options):
    mixture = Mixture.temperature_sampling(dataset.sizes, 3)
    options = {"batch_size": BATCH, "seed": 1, "num_steps": STEPS, "block": BLOCK, "group": 4} | options
    schedule = options.pop("schedule", None) or schedules.constant(mixture)
    return DomainBatchSampler(schedule, shuffle="blocks", shard_sizes=dataset.shard_sizes, **options)


def texts(samples):
    return [(sample["__domain__"], sample["__key__"], sample["txt"]) for sample in samples]


@pytest.fixture(scope="module")
def expected(stored, tmp_path_factory):
    """The batches of the job, read from files."""
    server, urls = stored
    folder = tmp_path_factory.mktemp("local")
    paths = {domain: [str(folder / f"{domain}-{i}.tar") for i in range(len(urls[domain]))] for domain in urls}
    for domain, names in paths.items():
        for i, path in enumerate(names):
            Path(path).write_bytes(server.files[f"/{domain}/{i}.tar"])
    local = TarDataset(paths)
    return [texts(local.__getitems__(batch)) for batch in make_sampler(local)]


@pytest.fixture
def cache(tmp_path):
    with KnownFutureCache(tmp_path / "cache", limit=160_000, depth=50_000, prefetched=2, patience=20) as cache:
        yield cache


def planned(dataset, cache, **options):
    uses = BlockUses(make_sampler(dataset, **options), dataset, Blocks.cut(dataset, BLOCK))
    return forecast(uses, stop=STEPS, limits=[cache.limit], depths=[cache.depth]).forecasts[0]


def data_requests(server):
    return [wanted for method, _, wanted in server.requests if method == "GET"]


def read_all(dataset, sampler):
    return [texts(dataset.__getitems__(batch)) for batch in sampler]


def read_on(dataset, batches, found):
    """Append batch after batch, as far as it goes."""
    for batch in batches:
        found.append(texts(dataset.__getitems__(batch)))


def blocks_in(folder):
    return sorted(path.name for path in Path(folder).glob("*.block"))


def test_samples_are_those_of_files_and_requests_those_of_the_plan(dataset, cache, server, expected):
    sampler = make_sampler(dataset)
    forecasted = planned(dataset, cache)
    server.requests.clear()
    cache.follow(sampler, dataset)
    assert read_all(dataset, sampler) == expected
    found = cache.statistics()
    assert (found.requests, found.fetched_bytes) == (forecasted.requests, forecasted.bytes_fetched)
    assert found.unplanned == found.retries == found.streamed == 0
    assert len(data_requests(server)) == found.requests
    assert 1 < forecasted.bytes_fetched / forecasted.bytes_used < 4  # the limit is felt
    files = list(cache.folder.glob("*.block"))
    assert sum(path.stat().st_size - 24 for path in files) <= cache.limit
    assert len(files) == found.held


@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_workers_read_through_the_cache(dataset, cache, server, expected, context):
    from torch.utils.data import DataLoader

    sampler = make_sampler(dataset)
    forecasted = planned(dataset, cache)
    server.requests.clear()
    cache.follow(sampler, dataset)
    options = {"num_workers": 2, "prefetch_factor": 1, "multiprocessing_context": context}
    loader = DataLoader(dataset, batch_sampler=sampler, collate_fn=texts, **options)
    assert list(loader) == expected
    done = cache.statistics()
    # A worker that waits makes the plan go on; what another one then still has to read is read beside it.
    assert done.requests - done.unplanned == forecasted.requests
    assert done.requests == len(data_requests(server))


@pytest.mark.slow
def test_a_second_pass_fetches_what_went(dataset, cache, expected):
    sampler = make_sampler(dataset)
    cache.follow(sampler, dataset)
    assert read_all(dataset, sampler) == expected
    first = cache.statistics()
    assert read_all(dataset, sampler) == expected
    again = cache.statistics()
    assert 0 < again.requests - first.requests <= first.requests
    sampler.set_epoch(1)
    assert read_all(dataset, sampler) == read_all_local(dataset, epoch=1)
    assert cache.statistics().unplanned == 0


def read_all_local(dataset, *, epoch):
    """The batches of a pass, read beside any cache."""
    sampler = make_sampler(dataset)
    sampler.set_epoch(epoch)
    other = TarDataset(dataset.shards)
    return [texts(other.__getitems__(batch)) for batch in sampler]


def test_a_resumed_job_fetches_nothing_that_is_there(dataset, tmp_path, server, expected):
    """With room for everything, two halves of a job fetch what one does; a kill leaves nothing that is not used."""
    sampler = make_sampler(dataset)
    folder = tmp_path / "cache"
    cache = KnownFutureCache(folder, limit=10**7, depth=50_000, prefetched=0)
    cache.follow(sampler, dataset)
    batches = iter(sampler)
    found = [texts(dataset.__getitems__(next(batches))) for _ in range(15)]
    state = sampler.state_dict(step=15)
    kill_fetcher(folder)
    (folder / blocks_in(folder)[0]).with_suffix(".block.partial").write_bytes(b"half")
    before = len(data_requests(server))
    cache.close()
    resumed = make_sampler(dataset)
    resumed.load_state_dict(state)
    with KnownFutureCache(folder, limit=10**7, depth=50_000, prefetched=0) as cache:
        there = cache_names(folder)
        cache.follow(resumed, dataset)
        found += read_all(dataset, resumed)
        after = set(blocks_in(folder)) - there
        assert cache.statistics().requests == len(after)
    assert found == expected
    assert len(data_requests(server)) - before == len(after)
    assert not list(folder.glob("*.partial"))


def cache_names(folder):
    return set(blocks_in(folder))


def kill_fetcher(folder):
    """Kill the fetcher of a folder as a machine that goes down would, and wait until it has gone."""
    import psutil

    address = json.loads((folder / "fetcher.json").read_text())["socket"]
    for process in psutil.Process().children():
        if any(address == connection.laddr for connection in process.net_connections("unix")):
            process.send_signal(signal.SIGKILL)
            process.wait(10)
            return
    raise AssertionError("no fetcher")


def test_a_fetcher_that_was_killed_is_an_error(dataset, cache):
    sampler = make_sampler(dataset)
    cache.follow(sampler, dataset)
    batches = iter(sampler)
    dataset.__getitems__(next(batches))
    kill_fetcher(cache.folder)
    with pytest.raises(ConnectionError, match=r"the fetcher of .* has ended .*; go on from the last checkpoint"):
        read_all(dataset, batches)


@pytest.mark.parametrize("fault", [503, "short", "drop"])
def test_what_fails_in_passing_is_tried_again(dataset, cache, server, expected, fault):
    server.faults += [None] * 10 + [fault, None] * 8
    sampler = make_sampler(dataset)
    cache.follow(sampler, dataset)
    assert read_all(dataset, sampler) == expected
    assert cache.statistics().unplanned == 0
    assert not server.faults


def test_a_changed_object_is_an_error_and_never_a_sample(dataset, cache, server, expected, monkeypatch):
    monkeypatch.setattr(server, "files", dict(server.files))
    monkeypatch.setattr(server, "etags", dict(server.etags))
    sampler = make_sampler(dataset)
    cache.follow(sampler, dataset)
    batches = iter(sampler)
    found = [texts(dataset.__getitems__(next(batches))) for _ in range(3)]
    for name in list(server.files):
        server.change(name[1:], server.files[name][::-1])
    with pytest.raises(StoreError, match=r"has changed since it was indexed") as caught:
        read_on(dataset, batches, found)
    assert caught.value.filename.startswith(server.address)
    assert found == expected[: len(found)]


def test_a_server_that_is_gone_is_an_error_when_patience_ends(dataset, tmp_path, server, expected):
    server.faults += [None] * 12 + ["short"] * 100_000
    sampler = make_sampler(dataset)
    found = []
    with KnownFutureCache(tmp_path / "cache", limit=160_000, depth=50_000, prefetched=2, patience=0.5) as cache:
        cache.follow(sampler, dataset)
        with pytest.raises(StoreError, match=r"could not be read in \d+ tries"):
            read_on(dataset, sampler, found)
        assert found == expected[: len(found)]
        server.faults.clear()  # it is back: the same rank goes on
        assert [texts(dataset.__getitems__(batch)) for batch in resume(sampler, len(found))] == expected[len(found) :]


def resume(sampler, step):
    sampler.load_state_dict(sampler.state_dict(step=step))
    return sampler


def test_damaged_files_are_fetched_again(dataset, tmp_path, expected):
    folder = tmp_path / "cache"
    for _ in range(2):
        with KnownFutureCache(folder, limit=10**7, prefetched=2) as cache:
            sampler = make_sampler(dataset)
            cache.follow(sampler, dataset)
            assert read_all(dataset, sampler) == expected
            requests = cache.statistics().requests
        names = blocks_in(folder)
        for name in names[:5]:
            content = bytearray((folder / name).read_bytes())
            content[10] ^= 1
            (folder / name).write_bytes(content)
        os.truncate(folder / names[5], 100)
    assert requests == 6


def test_another_job_joins_with_the_same_plan_only(dataset, cache, tmp_path, expected):
    sampler = make_sampler(dataset)
    cache.follow(sampler, dataset)
    other = TarDataset(dataset.shards)
    with KnownFutureCache(cache.folder, limit=cache.limit, depth=cache.depth, prefetched=2) as same:
        twin = make_sampler(dataset)
        same.follow(twin, other)
        for batch, again, wanted in zip(sampler, twin, expected):
            assert texts(dataset.__getitems__(batch)) == texts(other.__getitems__(again)) == wanted
        assert same.statistics() == cache.statistics()
        assert same.statistics().unplanned == 0
    for changed, limit, what in (({"seed": 2}, cache.limit, "seed"), ({}, cache.limit + 1, "limit")):
        with (
            KnownFutureCache(cache.folder, limit=limit, depth=cache.depth) as third,
            pytest.raises(ValueError, match=f"in use by a job with another plan: {what} differ"),
        ):
            third.follow(make_sampler(dataset, **changed), other)


def test_foreign_files_stay_and_those_of_former_versions_go(dataset, cache, server, expected):
    folder = cache.folder
    folder.mkdir()
    foreign = {"notes.txt": b"mine", "0" * 32 + "-0-400.block": b"not listed", ".hidden": b""}
    for name, content in foreign.items():
        (folder / name).write_bytes(content)
    former, gone = "1" * 32 + "-0-400.block", "2" * 32 + "-0-400.block"
    (folder / former).write_bytes(b"of another data set")
    (folder / "manifest").write_text(f"{former}\n{gone}\nnotes.txt\n../notes.txt\n{former[:20]}")
    sampler = make_sampler(dataset)
    cache.follow(sampler, dataset)
    assert read_all(dataset, sampler) == expected
    assert {name: (folder / name).read_bytes() for name in foreign} == foreign
    assert not (folder / former).exists()


def test_reads_beside_the_plan_are_served(dataset, cache, expected):
    sampler = make_sampler(dataset)
    cache.follow(sampler, dataset)
    everything = [texts(dataset.__getitems__([i]))[0] for i in range(0, len(dataset), 7)]
    assert everything == texts(TarDataset(dataset.shards).__getitems__(range(0, len(dataset), 7)))
    assert cache.statistics().unplanned > 0
    assert read_all(dataset, sampler) == expected


def test_a_full_disk_is_passed_by(dataset, tmp_path, expected, monkeypatch):
    """The fetcher may write files of 6 kB at most: larger blocks find no room."""
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    limited = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (9_000, 9_000))\n"
    limited += "import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
    (tmp_path / "sitecustomize.py").write_text(limited)
    monkeypatch.syspath_prepend(str(tmp_path))
    with KnownFutureCache(tmp_path / "cache", limit=160_000, depth=50_000, prefetched=2) as cache:
        sampler = make_sampler(dataset)
        cache.follow(sampler, dataset)
        assert read_all(dataset, sampler) == expected
        assert cache.statistics().streamed > 0
    assert not list(cache.folder.glob("*.partial"))


def test_a_limit_below_the_open_window_is_warned_of(dataset, tmp_path, expected):
    for limit, message in ((30_000, "less than the blocks of one step"), (130_000, "less than the open window")):
        with KnownFutureCache(tmp_path / str(limit), limit=limit, depth=120_000, prefetched=0) as cache:
            sampler = make_sampler(dataset)
            with pytest.warns(UserWarning, match=message):
                cache.follow(sampler, dataset)
            assert read_all(dataset, sampler) == expected


def test_ranks_of_a_node_share_a_fetcher(dataset, tmp_path, expected):
    options = {"limit": 160_000, "depth": 50_000, "prefetched": 0}
    caches = [KnownFutureCache(tmp_path / "cache", **options) for _ in range(2)]
    samplers = [make_sampler(dataset, rank=rank, world_size=2) for rank in range(2)]
    sets = [TarDataset(dataset.shards) for _ in range(2)]
    for cache, sampler, one in zip(caches, samplers, sets):
        cache.follow(sampler, one, ranks=(0, 2))
    found = [
        [text for one, batch in zip(sets, batches) for text in texts(one.__getitems__(batch))]
        for batches in zip(*samplers)
    ]
    assert found == expected
    assert caches[0].statistics() == caches[1].statistics()
    assert caches[0].statistics().requests == planned(dataset, caches[0]).requests
    for cache in caches:
        cache.close()


def test_local_files_and_wrong_arguments_are_refused(dataset, cache, tmp_path, write_shards):
    local = TarDataset(write_shards({"en": [5]}))
    with pytest.raises(ValueError, match="is a file of this machine"):
        cache.follow(
            DomainBatchSampler(schedules.constant(Mixture.proportional({"en": 5})), batch_size=2, seed=0), local
        )
    with pytest.raises(RuntimeError, match="follows no sampler"):
        cache.read(*(np.zeros(1, np.int64),) * 3)
    for wrong in ({"limit": 0}, {"limit": 5, "depth": -1}, {"limit": 5, "block": 0}, {"limit": 5, "patience": 0}):
        name, value = list(wrong.items())[-1]
        with pytest.raises(ValueError, match=f"{name} = {value}"):
            KnownFutureCache(tmp_path, **wrong)
