"""A cache over a real server gives the samples of the files with the planned requests, or clear errors."""

import io
import itertools
import json
import multiprocessing
import os
import signal
import subprocess
import tarfile
import threading
import warnings
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("obstore")

from object_server import serve_objects

from pycooldown import DomainBatchSampler, Mixture, schedules
from pycooldown.adaptive import GroupDRO, Statistics
from pycooldown.data import KnownFutureCache, TarDataset
from pycooldown.data.cache.blocks import Blocks
from pycooldown.data.cache.plan import BlockUses, forecast
from pycooldown.data.cache.starting import states_path
from pycooldown.data.cache.states import SilentSteps
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
    """Yield a server, and the URLs of its shards."""
    with serve_objects() as server:
        urls = {
            domain: [server.put(f"{domain}/{i}.tar", tar(domain, i, count)) for i, count in enumerate(counts)]
            for domain, counts in COUNTS.items()
        }
        TarDataset(urls)  # writes the indexes
        yield server, urls


@pytest.fixture
def server(stored):
    server, _ = stored
    server.faults.clear()
    server.requests.clear()
    return server


def tar(domain, shard, count):
    """Return a tar of samples whose texts name domain, shard and number."""
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
    """Return the batches of the job, read from files."""
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
    with KnownFutureCache(tmp_path / "cache", limit=160_000, depth=20_000, prefetched=2, patience=20) as cache:
        yield cache


def planned(dataset, cache, **options):
    uses = BlockUses(make_sampler(dataset, **options), dataset, Blocks.cut(dataset, BLOCK))
    limits = {"limits": [cache.limit], "depths": [cache.depth], "prefetched": cache.prefetched}
    return forecast(uses, stop=STEPS, **limits).forecasts[0]


def data_requests(server):
    return [wanted for method, _, wanted in server.requests if method == "GET"]


def read_all(dataset, sampler):
    return [texts(dataset.__getitems__(batch)) for batch in sampler]


def read_on(dataset, batches, found):
    """Read the batches and append each to `found`, so that it holds those before an error."""
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
    assert 1 < forecasted.bytes_fetched / forecasted.bytes_used < 4  # the limit makes some blocks be fetched twice
    files = list(cache.folder.glob("*.block"))
    assert sum(path.stat().st_size - 24 for path in files) <= cache.limit
    assert len(files) == found.held


def loader_of(dataset, sampler, *, workers, context="fork"):
    from torch.utils.data import DataLoader

    options = {"num_workers": workers, "prefetch_factor": 1, "multiprocessing_context": context}
    return DataLoader(dataset, batch_sampler=sampler, collate_fn=texts, **options)


def assert_as_planned(cache, forecasted):
    found = cache.statistics()
    assert (found.requests, found.fetched_bytes) == (forecasted.requests, forecasted.bytes_fetched)
    assert found.unplanned == 0


@pytest.mark.parametrize(("workers", "context"), [(1, "fork"), (2, "fork"), (4, "fork"), (2, "spawn")])
def test_workers_read_what_is_planned(dataset, tmp_path, expected, workers, context):
    """A block is kept until all batches requested so far have been read, whichever worker is ahead."""
    options = {"limit": 190_000, "depth": 20_000, "prefetched": workers}
    with KnownFutureCache(tmp_path / "cache", **options) as cache:
        sampler = make_sampler(dataset)
        forecasted = planned(dataset, cache)
        assert forecasted.requests > len(Blocks.cut(dataset, BLOCK))  # some are evicted and fetched again
        cache.follow(sampler, dataset)
        assert list(loader_of(dataset, sampler, workers=workers, context=context)) == expected
        assert_as_planned(cache, forecasted)


def two_ranks(dataset, folder, *, make=make_sampler, **options):
    """Return caches, samplers and data sets of both ranks of a node. The caches follow their samplers."""
    caches = [KnownFutureCache(folder, **options) for _ in range(2)]
    samplers = [make(dataset, rank=rank, world_size=2) for rank in range(2)]
    sets = [TarDataset(dataset.shards) for _ in range(2)]
    for cache, sampler, one in zip(caches, samplers, sets):
        cache.follow(sampler, one, ranks=(0, 2))
    return caches, samplers, sets


def test_ranks_with_workers_read_what_is_planned(dataset, tmp_path, expected):
    """Two ranks with two workers each read two passes and may begin the second one at different times."""
    caches, samplers, sets = two_ranks(dataset, tmp_path / "cache", limit=200_000, depth=20_000, prefetched=2)
    for number in range(2):
        loaders = [loader_of(one, sampler, workers=2) for one, sampler in zip(sets, samplers)]
        assert [first + second for first, second in zip(*loaders)] == expected
        if number == 0:
            assert_as_planned(caches[0], planned(dataset, caches[0]))
    assert caches[0].statistics().unplanned == 0
    for cache in caches:
        cache.close()


@pytest.mark.slow
def test_a_second_pass_fetches_evicted_blocks_again(dataset, cache, expected):
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
    """Return the batches of a pass, read without a cache."""
    sampler = make_sampler(dataset)
    sampler.set_epoch(epoch)
    other = TarDataset(dataset.shards)
    return [texts(other.__getitems__(batch)) for batch in sampler]


@pytest.mark.parametrize("steps", [0, 15, 33])
def test_a_killed_fetcher_loses_nothing(dataset, tmp_path, expected, steps):
    """With room for everything, a killed and a resumed job fetch each block once. Partial files are removed."""
    sampler = make_sampler(dataset)
    folder = tmp_path / "cache"
    cache = KnownFutureCache(folder, limit=10**7, depth=50_000, prefetched=0)
    cache.follow(sampler, dataset)
    batches = iter(sampler)
    found = [texts(dataset.__getitems__(next(batches))) for _ in range(steps)]
    state = sampler.state_dict(step=steps)
    kill_fetcher(folder)
    for block in blocks_in(folder)[:1]:
        (folder / block).with_suffix(".block.partial").write_bytes(b"half")
    cache.close()
    assert found + read_rest(folder, dataset, state) == expected
    assert not list(folder.glob("*.partial"))


def read_rest(folder, dataset, state):
    """Resume from a state with room for everything, and check that no block on disk is fetched again.

    The fetcher counts, since the server may still answer the requests of one that was killed.
    """
    there = cache_names(folder)
    resumed = make_sampler(dataset)
    resumed.load_state_dict(state)
    with KnownFutureCache(folder, limit=10**7, depth=50_000, prefetched=0) as cache:
        cache.follow(resumed, dataset)
        found = read_all(dataset, resumed)
        done = cache.statistics()
        assert done.requests == len(cache_names(folder) - there)
        assert done.unplanned == done.retries == 0
    return found


def run_until_killed(folder, urls, results):
    dataset = TarDataset(urls)
    sampler = make_sampler(dataset)
    with KnownFutureCache(folder, limit=10**7, depth=50_000, prefetched=0) as cache:
        cache.follow(sampler, dataset)
        for batch in sampler:
            results.send(texts(dataset.__getitems__(batch)))


@pytest.mark.parametrize("steps", [1, 21])
def test_a_killed_job_loses_nothing(dataset, tmp_path, expected, steps):
    """The fetcher ends when its ranks do, whatever it is doing. The next one uses the blocks on disk."""
    ours, theirs = multiprocessing.Pipe(duplex=False)
    folder = tmp_path / "cache"
    job = multiprocessing.get_context("fork").Process(target=run_until_killed, args=(folder, dataset.shards, theirs))
    job.start()
    found = [ours.recv() for _ in range(steps)]
    job.kill()
    job.join()
    wait_for_the_end_of(folder)
    state = make_sampler(dataset).state_dict(step=steps)
    assert found + read_rest(folder, dataset, state) == expected


def wait_for_the_end_of(folder):
    """Wait until a folder's fetcher has released it, so that its files no longer change."""
    from pycooldown._files import lock_folder

    with lock_folder(folder, wait=True):
        pass


def test_a_killed_worker_loses_nothing(dataset, tmp_path, server, expected):
    folder = tmp_path / "cache"
    sampler = make_sampler(dataset)
    with KnownFutureCache(folder, limit=10**7, depth=50_000, prefetched=2) as cache:
        cache.follow(sampler, dataset)
        batches = iter(loader_of(dataset, sampler, workers=2))
        found = [next(batches) for _ in range(9)]
        victim = multiprocessing.active_children()[0]
        victim.kill()
        with pytest.raises(RuntimeError, match="worker"):
            found += batches
        del batches
        sampler.load_state_dict(sampler.state_dict(step=len(found)))
        assert found + list(loader_of(dataset, sampler, workers=2)) == expected
        done = cache.statistics()
        assert done.requests == done.held == len(data_requests(server))


def cache_names(folder):
    return set(blocks_in(folder))


def fetcher_address(folder):
    return json.loads((folder / "fetcher.json").read_text())["socket"]


def fetcher_process(folder):
    import psutil

    address = fetcher_address(folder)
    for process in psutil.Process().children():
        if any(address == connection.laddr for connection in process.net_connections("unix")):
            return process
    raise AssertionError(f"{folder} has no running fetcher")


def kill_fetcher(folder):
    """Kill the fetcher of a folder with SIGKILL and wait for its end."""
    process = fetcher_process(folder)
    process.send_signal(signal.SIGKILL)
    process.wait(10)


def test_a_fetcher_that_was_killed_is_an_error(dataset, cache):
    sampler = make_sampler(dataset)
    cache.follow(sampler, dataset)
    batches = iter(sampler)
    dataset.__getitems__(next(batches))
    kill_fetcher(cache.folder)
    with pytest.raises(ConnectionError, match=r"the fetcher of .* has ended .*; start again from the last checkpoint"):
        read_all(dataset, batches)


@pytest.mark.parametrize("fault", [503, "short", "drop"])
def test_passing_failures_are_tried_again(dataset, cache, server, expected, fault):
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


def test_a_failing_server_is_an_error_when_patience_ends(dataset, tmp_path, server, expected):
    server.faults += [None] * 12 + ["short"] * 100_000
    sampler = make_sampler(dataset)
    found = []
    with KnownFutureCache(tmp_path / "cache", limit=160_000, depth=20_000, prefetched=2, patience=0.5) as cache:
        cache.follow(sampler, dataset)
        with pytest.raises(StoreError, match=r"could not be read in \d+ tries"):
            read_on(dataset, sampler, found)
        assert found == expected[: len(found)]
        server.faults.clear()  # the server is back, and the same rank goes on
        assert [texts(dataset.__getitems__(batch)) for batch in resume(sampler, len(found))] == expected[len(found) :]


def test_a_server_that_is_down_for_a_while_is_waited_for(stored, tmp_path, expected):
    """In the middle of a pass the server accepts no connection, and later another server replaces it."""
    server, _ = stored
    with serve_objects() as first:
        for name, content in server.files.items():
            first.put(name[1:], content)
        urls = {domain: [f"{first.address}/{domain}/{i}.tar" for i in range(len(COUNTS[domain]))] for domain in COUNTS}
        dataset = TarDataset(urls)
        sampler = make_sampler(dataset)
        cache = KnownFutureCache(tmp_path / "cache", limit=160_000, depth=20_000, prefetched=2, patience=60)
        cache.follow(sampler, dataset)
        batches = iter(sampler)
        found = [texts(dataset.__getitems__(next(batches))) for _ in range(10)]
    reading = threading.Thread(target=read_on, args=(dataset, batches, found))
    reading.start()
    while not cache.statistics().retries:
        assert reading.is_alive()
    with serve_objects(first.restart()):
        reading.join()
        assert found == expected
        assert_as_planned(cache, planned(dataset, cache))
        cache.close()


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


@pytest.mark.parametrize("limit", [1, 100_000])
def test_a_smaller_limit_holds_for_blocks_that_are_there(dataset, tmp_path, expected, limit):
    """Blocks that do not fit are deleted at the start, and those that are used first stay."""
    with KnownFutureCache(tmp_path, limit=10**7, prefetched=0) as cache:
        cache.follow(sampler := make_sampler(dataset), dataset)
        assert read_all(dataset, sampler) == expected
    wait_for_the_end_of(tmp_path)
    blocks, used = Blocks.cut(dataset, BLOCK), []
    for batch in make_sampler(dataset):
        used += [number for number in blocks.used_by_samples(np.array(batch), dataset).tolist() if number not in used]
    count = int((np.cumsum(blocks.sizes[used]) <= limit).sum())
    with KnownFutureCache(tmp_path, limit=limit, depth=0, prefetched=0) as cache, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the limit is below the blocks of a batch
        cache.follow(sampler := make_sampler(dataset), dataset)
        assert cache.statistics().held == len(blocks_in(tmp_path)) == count
        assert read_all(dataset, sampler) == expected
        assert cache.statistics().unplanned == 0


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
        late = make_sampler(dataset)  # the others do not wait for it
        same.follow(late, other)
        assert [texts(other.__getitems__(batch)) for batch in itertools.islice(late, 3)] == expected[:3]
        assert read_all(dataset, sampler) == expected
    for changed, limit, prefetched, what in (
        ({"seed": 2}, cache.limit, 2, "seed"),
        ({}, cache.limit + 1, 2, "limit"),
        ({}, cache.limit, 3, "prefetched"),
    ):
        with (
            KnownFutureCache(cache.folder, limit=limit, depth=cache.depth, prefetched=prefetched) as third,
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


def test_unplanned_reads_are_served(dataset, cache, expected):
    sampler = make_sampler(dataset)
    cache.follow(sampler, dataset)
    everything = [texts(dataset.__getitems__([i]))[0] for i in range(0, len(dataset), 7)]
    assert everything == texts(TarDataset(dataset.shards).__getitems__(range(0, len(dataset), 7)))
    assert cache.statistics().unplanned > 0
    assert read_all(dataset, sampler) == expected


def test_blocks_that_cannot_be_written_are_streamed(dataset, tmp_path, expected, monkeypatch):
    """Blocks that the fetcher cannot write are streamed. A limit on the size of files stands for a full disk."""
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


def test_blocks_are_streamed_while_the_disk_is_full(dataset, tmp_path, expected):
    """A file system smaller than the cache's limit is full at first, and later has room again."""
    folder = tmp_path / "small"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=120k", "tmpfs", folder]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("this user may not mount a file system")
    try:
        (folder / "other").write_bytes(bytes(60_000))
        with KnownFutureCache(folder, limit=160_000, depth=50_000, prefetched=2) as cache:
            sampler = make_sampler(dataset)
            cache.follow(sampler, dataset)
            batches = iter(sampler)
            found = [texts(dataset.__getitems__(next(batches))) for _ in range(20)]
            full = cache.statistics()
            (folder / "other").unlink()
            assert found + read_all(dataset, batches) == expected
            assert full.streamed > 0
            assert cache.statistics().held > full.held
            assert not list(folder.glob("*.partial"))
        wait_for_the_end_of(folder)
        dataset.ranges.close()
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


def test_a_schedule_that_learns_is_fetched_as_far_as_it_is_known(dataset, tmp_path, server):
    mixture = Mixture.temperature_sampling(dataset.sizes, 3)

    def train(follow):
        """Return the batches of a job in which each step decides the mixture four steps later."""
        schedule = GroupDRO(mixture, step_size=0.5, delay=4)
        sampler = make_sampler(dataset, schedule=schedule)
        follow(sampler)
        found, batches = [], []
        for step, batch in enumerate(sampler):
            batches.append(batch)
            found.append(texts(dataset.__getitems__(batch)))
            losses = np.array([1.0 + step % 3, 2.0])
            schedule.update(step, Statistics(10 * losses, np.full(2, 10.0)))
        return found, batches

    wanted, batches = train(lambda sampler: None)
    server.requests.clear()
    with KnownFutureCache(tmp_path / "cache", limit=10**7, depth=10**7, prefetched=0) as cache:
        found, _ = train(lambda sampler: cache.follow(sampler, dataset))
        done = cache.statistics()
    assert found == wanted
    blocks = Blocks.cut(dataset, BLOCK)
    used = {number for batch in batches for number in blocks.used_by_samples(np.array(batch), dataset)}
    assert done.requests == done.held == len(used) == len(data_requests(server))
    assert done.unplanned == 0


def test_evicted_blocks_free_their_disk_space(dataset, cache, expected):
    """A reader unmaps deleted files at its next batch."""
    if not Path("/proc/self/maps").exists():
        pytest.skip("only Linux lists the maps of a process")
    sampler = make_sampler(dataset)
    cache.follow(sampler, dataset)
    most = 0
    for batch in sampler:
        dataset.__getitems__(batch)
        maps = [line for line in Path("/proc/self/maps").read_text().splitlines() if str(cache.folder) in line]
        most = max(most, len([line for line in maps if line.endswith("(deleted)")]))
        assert len(maps) > 1
    assert most <= 8


def test_a_limit_below_the_open_window_is_warned_of(dataset, tmp_path, expected):
    for limit, message in (
        (30_000, "less than the blocks of the batches in use"),
        (130_000, "less than the open window"),
    ):
        with KnownFutureCache(tmp_path / str(limit), limit=limit, depth=120_000, prefetched=0) as cache:
            sampler = make_sampler(dataset)
            with pytest.warns(UserWarning, match=message):
                cache.follow(sampler, dataset)
            assert read_all(dataset, sampler) == expected


def test_ranks_of_a_node_share_a_fetcher(dataset, tmp_path, expected):
    caches, samplers, sets = two_ranks(dataset, tmp_path / "cache", limit=160_000, depth=50_000, prefetched=0)
    found = [
        [text for one, batch in zip(sets, batches) for text in texts(one.__getitems__(batch))]
        for batches in zip(*samplers)
    ]
    assert found == expected
    assert caches[0].statistics() == caches[1].statistics()
    assert caches[0].statistics().requests == planned(dataset, caches[0]).requests
    for cache in caches:
        cache.close()


def wait_until_silent(cache, step, leap=0):
    """Wait until ranks need not report the steps before this one."""
    silent = SilentSteps(states_path(fetcher_address(cache.folder)))
    while not silent.include(step - 1, leap):
        os.sched_yield()


def test_ranks_are_silent_when_all_is_there(dataset, tmp_path, expected, monkeypatch):
    """The fetcher is told of jumps only, when it has nothing left to fetch; then it goes on from there."""
    options = {"limit": 1 << 20, "depth": 1 << 18, "prefetched": 2}
    with KnownFutureCache(tmp_path / "cache", **options) as cache:
        cache.follow(filling := make_sampler(dataset), dataset)
        assert read_all(dataset, filling) == expected
    reported = []
    original = KnownFutureCache.report
    monkeypatch.setattr(KnownFutureCache, "report", lambda *args: (reported.append(args[1]["step"]), original(*args)))
    with KnownFutureCache(tmp_path / "cache", **options) as cache:
        cache.follow(sampler := make_sampler(dataset), dataset)
        batches = iter(sampler)
        found = [texts(dataset.__getitems__(next(batches)))]
        assert reported == [0]
        wait_until_silent(cache, STEPS)
        read_on(dataset, batches, found)
        assert found == expected
        assert reported == [0]
        assert read_all(dataset, sampler) == expected  # begins anew: a jump
        assert reported[:2] == [0, 0]
        sampler.set_epoch(1)
        assert read_all(dataset, sampler) == read_all_local(dataset, epoch=1)
        assert cache.statistics().unplanned == 0


def test_steps_after_a_jump_are_reported_while_the_fetcher_is_busy(dataset, tmp_path, expected):
    """A loader requests batches of a new pass before the fetcher has noticed it. They are fetched as planned."""
    with KnownFutureCache(tmp_path / "cache", limit=10**6, depth=0, prefetched=4) as cache:
        sampler = make_sampler(dataset)
        sampler.load_state_dict(sampler.state_dict(step=STEPS - 1))
        cache.follow(sampler, dataset)
        assert read_all(dataset, sampler) == expected[-1:]
        wait_until_silent(cache, STEPS)
        process = fetcher_process(cache.folder)
        process.suspend()
        batches = iter(sampler)
        requested = list(itertools.islice(batches, 4))
        process.resume()
        found = [texts(dataset.__getitems__(batch)) for batch in reversed(requested)][::-1]
        assert found + [texts(dataset.__getitems__(batch)) for batch in batches] == expected
        assert cache.statistics().unplanned == 0


def test_an_epoch_that_begins_before_the_first_step_is_followed(dataset, cache):
    sampler = make_sampler(dataset)
    cache.follow(sampler, dataset)
    sampler.set_epoch(1)
    assert read_all(dataset, sampler) == read_all_local(dataset, epoch=1)
    assert cache.statistics().unplanned == 0


def long_sampler(dataset, **options):
    """Return the sampler of a job that reads "en" alone for long. Its fetcher plans it in several parts."""
    schedule = schedules.order_matters(dataset.sizes, high_resource=["en"], switch_step=9_000, tau=1.0)
    return make_sampler(dataset, schedule=schedule, num_steps=9_030, block=1, group=32, **options)


def fill(folder, dataset, **options):
    """Fetch all of "en" for `long_sampler`."""
    with KnownFutureCache(folder, **options) as cache:
        cache.follow(sampler := long_sampler(dataset), dataset)
        for batch in itertools.islice(sampler, sum(COUNTS["en"]) // BATCH + 1):
            dataset.__getitems__(batch)
    wait_for_the_end_of(folder)


def test_ranks_do_not_wait_for_a_job_that_joins_while_they_are_silent(dataset, tmp_path):
    options = {"limit": 10**6, "depth": 0, "prefetched": 2}
    fill(tmp_path, dataset, **options)
    with KnownFutureCache(tmp_path, **options) as cache, KnownFutureCache(tmp_path, **options) as late:
        cache.follow(sampler := long_sampler(dataset), dataset)
        batches = iter(sampler)
        next(batches)
        wait_until_silent(cache, 3_000)
        skip(batches, 2_999)
        late.follow(second := long_sampler(dataset), TarDataset(dataset.shards))
        assert next(iter(second)) == next(iter(long_sampler(dataset)))
        skip(batches, 5_995)
        before = cache.statistics()
        assert len(read_all(dataset, batches)) == 35
        done = cache.statistics()
        assert done.requests - before.requests == sum(COUNTS["de"])
        assert done.unplanned == 0


def test_jumps_of_a_job_that_joined_late_are_not_followed(dataset, tmp_path, expected):
    options = {"limit": 190_000, "depth": 0, "prefetched": 0}
    with KnownFutureCache(tmp_path, **options) as cache, KnownFutureCache(tmp_path, **options) as other:
        cache.follow(sampler := make_sampler(dataset), dataset)
        batches = iter(sampler)
        found = [texts(dataset.__getitems__(batch)) for batch in itertools.islice(batches, 10)]
        other.follow(late := make_sampler(dataset), TarDataset(dataset.shards))
        skip(iter(late), 2)
        late.set_epoch(1)
        skip(iter(late), 2)
        dataset.__getitems__(sampler.plan(STEPS - 1).indices)  # waits if the fetcher is about to follow
        beside = cache.statistics().unplanned
        assert beside > 0
        read_on(dataset, batches, found)
        assert found == expected
        assert cache.statistics().unplanned == beside


def skip(batches, count):
    for _ in range(count):
        next(batches)


def test_a_silent_slow_rank_reads_what_is_planned(dataset, tmp_path):
    """The first rank reaches the steps that fetch and evict while the other one has been silent for long."""
    options = {"limit": 330_000, "depth": 0, "prefetched": 0}
    fill(tmp_path, dataset, **options)
    caches, samplers, sets = two_ranks(dataset, tmp_path, make=long_sampler, **options)
    fast, slow = iter(samplers[0]), iter(samplers[1])
    skip(fast, 1)
    skip(slow, 1)
    wait_until_silent(caches[0], 3_000)
    skip(slow, 2_999)
    batch = next(slow)
    skip(fast, 9_004)
    for _ in range(100):  # rounds in which a fetcher that did not wait would fetch
        assert caches[0].statistics().requests == 0
    sets[1].__getitems__(batch)
    assert caches[0].statistics().unplanned == 0
    skip(slow, 9_004 - 3_000)
    found = []
    for batches in zip(fast, slow):
        for one, batch in zip(sets, batches):
            found += texts(one.__getitems__(batch))
    rest = [samplers[0].plan(step).indices for step in range(9_005, 9_030)]
    assert found == texts(TarDataset(dataset.shards).__getitems__(np.concatenate(rest)))
    done = caches[0].statistics()
    assert done.held < done.requests + sum(COUNTS["en"])
    assert done.unplanned == 0
    for cache in caches:
        cache.close()


def test_silent_ranks_are_heard_again_before_blocks_are_fetched(dataset, tmp_path, expected):
    """A job whose first steps are there reads what is fetched for the later ones, as planned."""
    with KnownFutureCache(tmp_path / "cache", limit=200_000, depth=20_000, prefetched=2) as cache:
        cache.follow(begun := make_sampler(dataset), dataset)
        assert [texts(dataset.__getitems__(batch)) for batch in itertools.islice(begun, 6)] == expected[:6]
    caches, samplers, sets = two_ranks(dataset, tmp_path / "cache", limit=200_000, depth=20_000, prefetched=2)
    found = [
        [text for one, batch in zip(sets, batches) for text in texts(one.__getitems__(batch))]
        for batches in zip(*samplers)
    ]
    assert found == expected
    assert caches[0].statistics().unplanned == 0
    for cache in caches:
        cache.close()


def test_local_files_and_wrong_arguments_are_refused(dataset, cache, tmp_path, write_shards):
    local = TarDataset(write_shards({"en": [5]}))
    with pytest.raises(ValueError, match="is a local file"):
        cache.follow(
            DomainBatchSampler(schedules.constant(Mixture.proportional({"en": 5})), batch_size=2, seed=0), local
        )
    with pytest.raises(RuntimeError, match="follows no sampler"):
        cache.read(*(np.zeros(1, np.int64),) * 3)
    for wrong in ({"limit": 0}, {"limit": 5, "depth": -1}, {"limit": 5, "block": 0}, {"limit": 5, "patience": 0}):
        name, value = list(wrong.items())[-1]
        with pytest.raises(ValueError, match=f"{name} = {value}"):
            KnownFutureCache(tmp_path, **wrong)
