"""`mix` draws as the sampler does, splits the draws over readers without repeats, and resumes."""

import collections
import functools
import gzip
import http.server
import math
import os
import shutil
import tarfile
import threading
from pathlib import Path

import pytest
import webdataset
from torch.utils.data import DataLoader
from torchdata.stateful_dataloader import StatefulDataLoader

from pycooldown import DomainBatchSampler, Mixture, schedules
from pycooldown.data import mix
from pycooldown.data.index import TarIndex
from pycooldown.data.streams import Passes

COUNTS = {"en": [9, 9, 9, 9], "de": [30], "sw": [6, 6, 6]}


@pytest.fixture
def shards(write_shards):
    return write_shards(COUNTS)


@pytest.fixture
def schedule():
    return schedules.cooldown({domain: sum(counts) for domain, counts in COUNTS.items()}, tau=5.0, switch_step=5)


@pytest.fixture
def run_reader(monkeypatch):
    """Return a function that runs a pipeline as one reader among many."""

    def run(pipeline, rank=0, world_size=1, worker=0, num_workers=1):
        for name, value in [
            ("RANK", rank),
            ("WORLD_SIZE", world_size),
            ("WORKER", worker),
            ("NUM_WORKERS", num_workers),
        ]:
            monkeypatch.setenv(name, str(value))
        return [(sample["__domain__"], sample["__key__"]) for sample in pipeline]

    return run


def global_order(run_reader, make, world_size, num_workers, batch_size, num_steps):
    """Return the samples of all readers in the order of steps and slots."""
    steps = [[] for _ in range(num_steps)]
    for rank in range(world_size):
        size = batch_size * (rank + 1) // world_size - batch_size * rank // world_size
        for worker in range(num_workers):
            samples = run_reader(make(), rank, world_size, worker, num_workers)
            for i, step in enumerate(range(worker, num_steps, num_workers)):
                steps[step].append((rank, samples[i * size : (i + 1) * size]))
    return [[sample for _, part in sorted(parts) for sample in part] for parts in steps]


READERS = [(1, 1), (2, 1), (1, 3), (3, 2), (2, 4), (7, 1)]


@pytest.mark.parametrize(("world_size", "num_workers"), READERS)
@pytest.mark.parametrize("elastic", [False, True])
def test_domains_are_those_of_the_sampler(shards, schedule, run_reader, world_size, num_workers, elastic):
    def make():
        return mix(shards, schedule, batch_size=8, seed=3, num_steps=9, elastic=elastic)

    order = global_order(run_reader, make, world_size, num_workers, 8, 9)
    sampler = DomainBatchSampler(schedule, batch_size=8, seed=3, num_steps=9)
    expected = [[sampler.domains[i] for i in sampler.plan(step).domain_ids] for step in range(9)]
    assert [[domain for domain, _ in step] for step in order] == expected


@pytest.mark.parametrize(("world_size", "num_workers"), READERS[1:])
def test_elastic_order_does_not_depend_on_the_readers(shards, schedule, run_reader, world_size, num_workers):
    def make():
        return mix(shards, schedule, batch_size=8, seed=3, num_steps=20, elastic=True)

    single = global_order(run_reader, make, 1, 1, 8, 20)
    assert global_order(run_reader, make, world_size, num_workers, 8, 20) == single


@pytest.mark.parametrize(("world_size", "num_workers"), READERS)
def test_nothing_is_lost_or_repeated(shards, run_reader, world_size, num_workers):
    """With one domain, all samples have come equally often after a whole number of epochs."""
    for domain in shards:
        size = sum(COUNTS[domain])
        schedule = schedules.constant(Mixture.proportional({domain: size * 100}))
        readers = world_size * num_workers
        batch_size, num_steps = size * world_size, 2 * num_workers

        def make(domain=domain, schedule=schedule, batch_size=batch_size, num_steps=num_steps):
            return mix({domain: shards[domain]}, schedule, batch_size=batch_size, seed=0, num_steps=num_steps)

        order = global_order(run_reader, make, world_size, num_workers, batch_size, num_steps)
        counts = collections.Counter(key for step in order for _, key in step)
        assert set(counts.values()) == {2 * readers}, domain
        assert len(counts) == size


@pytest.mark.parametrize("elastic", [False, True])
@pytest.mark.parametrize("start", [1, 6, 40])
def test_goes_on_from_any_step(shards, schedule, run_reader, elastic, start):
    """Worker w takes steps start + w, start + w + 3 and so on. Their samples are those of a whole run."""

    def run(start, rank, worker):
        pipeline = mix(shards, schedule, batch_size=8, seed=3, num_steps=50, start_step=start, elastic=elastic)
        return run_reader(pipeline, rank, 2, worker, 3)

    for rank, worker in [(0, 0), (1, 2)]:
        steps = len(range(start + worker, 50, 3))
        whole, rest = run(0, rank, (start + worker) % 3), run(start, rank, worker)
        assert len(rest) == 4 * steps
        assert rest == whole[-len(rest) :]


def numbered(samples):
    return [sample["__key__"] for sample in samples]


@pytest.mark.parametrize("elastic", [False, True])
@pytest.mark.parametrize("workers", [0, 1, 2, 3])
def test_chained_jobs_train_every_step_once_and_in_order(shards, schedule, elastic, workers):
    """Jobs of 5, 3, 4 and 4 steps with real workers give the batches of one job of 16 steps."""

    def job(start, stop):
        pipeline = mix(shards, schedule, batch_size=8, seed=3, num_steps=stop, start_step=start, elastic=elastic)
        return list(DataLoader(pipeline, batch_size=8, num_workers=workers, collate_fn=numbered))

    whole = job(0, 16)
    assert len(whole) == 16
    assert [batch for start, stop in [(0, 5), (5, 8), (8, 12), (12, 16)] for batch in job(start, stop)] == whole


def test_a_pipeline_among_the_sources_starts_at_a_multiple_of_the_workers(shards, schedule, run_reader):
    """A pipeline splits itself by worker. From another step, a worker would read the part of another one."""
    pipelines = {domain: webdataset.WebDataset(paths, shardshuffle=False) for domain, paths in shards.items()}

    def run(start):
        run_reader(mix(pipelines, schedule, batch_size=8, seed=3, num_steps=start, start_step=start), worker=0)
        return run_reader(
            mix(pipelines, schedule, batch_size=8, seed=3, num_steps=start, start_step=start), worker=1, num_workers=2
        )

    assert run(4) == []
    with pytest.raises(ValueError, match=r"start_step = 5 is no multiple of the 2 workers.*or pass URLs"):
        run(5)


def test_elastic_job_goes_on_with_other_readers(shards, schedule, run_reader):
    def make(start, stop):
        return lambda: mix(shards, schedule, batch_size=8, seed=3, start_step=start, num_steps=stop, elastic=True)

    whole = global_order(run_reader, make(0, 12), 1, 1, 8, 12)
    first = global_order(run_reader, make(0, 4), 4, 1, 8, 4)
    assert first == whole[:4]
    second = run_reader(make(4, 8)(), 0, 1)
    assert second == [sample for step in whole[4:8] for sample in step]
    halves = [run_reader(make(8, 12)(), rank, 2) for rank in range(2)]
    assert [halves[0][4 * i : 4 * i + 4] + halves[1][4 * i : 4 * i + 4] for i in range(4)] == whole[8:]


@pytest.mark.parametrize("workers", [0, 2])
def test_state_of_a_stateful_data_loader(shards, schedule, workers):
    def loader():
        pipeline = mix(shards, schedule, batch_size=8, seed=3, num_steps=10).map(lambda sample: sample["__key__"])
        return StatefulDataLoader(pipeline, batch_size=8, num_workers=workers)

    whole = list(loader())
    assert len(whole) == 10
    first = loader()
    iterator = iter(first)
    seen = [next(iterator) for _ in range(3)]
    state = first.state_dict()
    second = loader()
    second.load_state_dict(state)
    assert seen + list(second) == whole


STAGES = {
    "none": lambda pipeline: pipeline,
    "map": lambda pipeline: pipeline.decode().map(lambda sample: sample | {"n": len(sample["txt"])}),
    "select": lambda pipeline: pipeline.select(lambda sample: sample["__key__"][-1] in "0123"),
    "batched": lambda pipeline: pipeline.to_tuple("__key__", "txt").batched(5),
    "listed": lambda pipeline: pipeline.listed(7).map(lambda samples: [sample["__key__"] for sample in samples]),
    "whole": lambda pipeline: pipeline.listed(8, partial=False),
}


@pytest.mark.parametrize(("stages", "workers"), [*((name, 0) for name in STAGES), ("none", 2), ("batched", 2)])
def test_batches_made_in_the_pipeline_resume_exactly(shards, schedule, stages, workers):
    """Batches resume from any point, including the last partial batch and the end."""

    def loader():
        pipeline = STAGES[stages](mix(shards, schedule, batch_size=8, seed=3, num_steps=5))
        return StatefulDataLoader(pipeline, batch_size=None, num_workers=workers)

    whole = list(loader())
    stops = {0, 1, 2, len(whole) - 1, len(whole)} if workers == 0 else {2, len(whole) - 1}
    for stop in stops:
        first, second = loader(), loader()
        iterator = iter(first)
        seen = [next(iterator) for _ in range(stop)]
        state = first.state_dict()
        next(iterator, None)  # a batch after the state
        second.load_state_dict(state)
        assert seen + list(second) == whole
        assert list(second) == whole  # a further pass


@pytest.mark.parametrize("elastic", [False, True])
def test_states_of_a_loader_that_started_late_resume_exactly(shards, schedule, elastic):
    """A loader from step 5 with 2 workers is saved and resumed three times, after 1, 3 and 6 steps."""

    def loader():
        pipeline = mix(shards, schedule, batch_size=8, seed=3, num_steps=15, start_step=5, elastic=elastic)
        return StatefulDataLoader(pipeline.map(lambda sample: sample["__key__"]), batch_size=8, num_workers=2)

    single = mix(shards, schedule, batch_size=8, seed=3, num_steps=15, elastic=True)
    whole = list(loader())
    if elastic:
        assert whole == list(DataLoader(single, batch_size=8, collate_fn=numbered))[5:]
    seen, state = [], None
    for steps in (1, 3, 6):
        current = loader()
        if state is not None:
            current.load_state_dict(state)
        seen += [batch for _, batch in zip(range(steps), current, strict=False)]
        state = current.state_dict()
    assert seen == whole


@pytest.mark.parametrize(
    ("stage", "name"),
    [
        (lambda pipeline: pipeline.shuffle(4), "shuffle"),
        (lambda pipeline: pipeline.compose(webdataset.detshuffle(4)), "detshuffle"),
        (lambda pipeline: pipeline.listed(4).unlisted(), "unlisted"),
        (lambda pipeline: pipeline.slice(3), "islice"),
        (lambda pipeline: pipeline.compose(webdataset.filters.batched(3)), "batched"),
        (lambda pipeline: pipeline.compose(lambda samples: samples), "<lambda>"),
    ],
)
def test_stages_that_buffer_samples_have_no_state(shards, schedule, stage, name):
    pipeline = stage(mix(shards, schedule, batch_size=8, seed=3, num_steps=5))
    next(iter(pipeline))
    with pytest.raises(ValueError, match=f"the position of its stage {name}, so.*start_step"):
        pipeline.state_dict()


@pytest.mark.parametrize("worker", [0, 1])
def test_states_of_version_1_are_honoured(shards, schedule, run_reader, worker):
    """In version 1, worker w took the steps t with t mod W = w, whatever the first step."""
    whole = run_reader(mix(shards, schedule, batch_size=8, seed=3, num_steps=20), 0, 1, worker, 2)
    old = mix(shards, schedule, batch_size=8, seed=3, num_steps=20, start_step=5)
    old.load_state_dict({"version": 1, "samples": 11, "reader": [0, 1, worker, 2]})
    steps_before = len(range(worker, 5, 2))
    assert run_reader(old, 0, 1, worker, 2) == whole[8 * steps_before + 11 :]
    assert len(run_reader(old, 0, 1, worker, 2)) == 8 * len(range(5 + worker, 20, 2))  # a further pass
    assert old.state_dict()["version"] == 2


def keys(samples):
    return [sample["__key__"] for sample in samples]


def test_spawned_workers_give_the_same_batches(shards, schedule):
    """Spawned workers, which get the pipeline pickled, give the batches of forked ones."""

    def loader(context):
        pipeline = mix(shards, schedule, batch_size=8, seed=3, num_steps=7)
        return webdataset.WebLoader(
            pipeline, batch_size=8, num_workers=1, multiprocessing_context=context, collate_fn=keys
        )

    assert list(loader("spawn")) == list(loader("fork"))


def test_state_of_another_reader_is_refused(shards, schedule, run_reader):
    pipeline = mix(shards, schedule, batch_size=8, seed=3, num_steps=2)
    run_reader(pipeline, 0, 2)
    state = pipeline.state_dict()
    other = mix(shards, schedule, batch_size=8, seed=3, num_steps=2)
    other.load_state_dict(state)
    with pytest.raises(ValueError, match=r"state belongs to the reader .* \[0, 2, 0, 1\], but this is \[1, 2, 0, 1\]"):
        run_reader(other, 1, 2)


@pytest.mark.parametrize(
    "state",
    [
        {"version": 1},
        {"version": 3, "samples": 0, "reader": None, "start_step": 0},
        {"version": 2, "samples": 0, "reader": None},
        {"version": 2, "samples": -1, "reader": None, "start_step": 0},
        {"version": 2, "samples": True, "reader": None, "start_step": 0},
        {"version": 2, "samples": 2**80, "reader": None, "start_step": 0},
        {"version": 2, "samples": 0, "reader": [0, 1, 0], "start_step": 0},
        {"version": 2, "samples": 0, "reader": "0101", "start_step": 0},
        [],
        None,
    ],
)
def test_malformed_states_are_refused(shards, schedule, state):
    with pytest.raises(ValueError, match="expected a value of MixedPipeline"):
        mix(shards, schedule, batch_size=8, seed=3).load_state_dict(state)


def test_state_from_another_start_is_refused(shards, schedule, run_reader):
    state = mix(shards, schedule, batch_size=8, seed=3, num_steps=9, start_step=4).state_dict()
    other = mix(shards, schedule, batch_size=8, seed=3, num_steps=9, start_step=2)
    other.load_state_dict(state)
    with pytest.raises(ValueError, match="state counts from start_step = 4, but this pipeline from 2"):
        run_reader(other)


@pytest.mark.parametrize(("readers", "counts"), [(8, [40]), (3, [5, 7, 9, 1, 6, 2, 3])])
@pytest.mark.parametrize("elastic", [False, True])
def test_a_reader_of_local_shards_needs_its_own_samples_only(write_shards, run_reader, readers, counts, elastic):
    """A reader seeks to its own samples: it works although all other headers are destroyed."""
    shards = write_shards({"en": counts})
    schedule = schedules.constant(Mixture.proportional({"en": sum(counts) * 100}))
    originals = {path: Path(path).read_bytes() for path in shards["en"]}
    for path, content in originals.items():
        # An index made as for an object in a store has no fingerprint of the content, so it misses the destruction.
        index = TarIndex.scan_object(lambda at, count, content=content: content[at : at + count], len(content))
        Path(f"{path}.idx").write_bytes(index.to_bytes())
        os.utime(path, ns=(0, 0))
    slots = collections.Counter()
    for rank in range(readers):
        options = {"batch_size": readers, "seed": 3, "num_steps": sum(counts) // readers, "elastic": elastic}
        for path, content in originals.items():
            Path(path).write_bytes(content)
            os.utime(path, ns=(0, 0))
        expected = run_reader(mix(shards, schedule, **options), rank, readers)
        own = {key.encode() for _, key in expected}
        for path, content in originals.items():
            damaged = bytearray(content)
            for at in range(0, len(content) - 1024, 1024):
                if content[at : at + 100].partition(b".")[0] not in own:
                    damaged[at : at + 1024] = b"!" * 1024
            Path(path).write_bytes(damaged)
            os.utime(path, ns=(0, 0))
        assert run_reader(mix(shards, schedule, **options), rank, readers) == expected
        slots.update(own)
    assert set(slots.values()) == {1}
    assert len(slots) == sum(counts) // readers * readers


@pytest.mark.parametrize(("num_shards", "readers"), [(1, 8), (7, 3), (1000, 2048), (10007, 4096)])
def test_all_readers_together_read_each_shard_once(num_shards, readers):
    """Readers of one group share the passes over its shards, and exactly one of them finds each sample."""
    groups = math.gcd(num_shards, readers)
    stride = readers // groups
    counts = [3 + i % 4 for i in range(num_shards // groups)] if num_shards > 1 else [50]
    passes = Passes(counts.__getitem__, lambda number: range(len(counts))[:: 1 if number == 0 else -1])
    total = sum(counts)
    found = [passes.find(n) for n in range(2 * total)]  # sample n belongs to reader n mod stride
    every = {(shard, i) for shard, count in enumerate(counts) for i in range(count)}
    assert len(found[:total]) == len(set(found[:total]))
    assert set(found[:total]) == set(found[total:]) == every
    assert found[total][0] == len(counts) - 1  # the second pass has another order
    draws = collections.Counter(n % stride for n in range(total))
    assert max(draws.values()) - min(draws.get(reader, 0) for reader in range(stride)) <= 1


def test_resumes_far_ahead_without_reading_what_comes_before(write_shards, run_reader):
    """Resuming far ahead is fast, since the indexes have the numbers of samples and nothing before is read."""
    shards = write_shards({"en": [20, 20, 20]})
    schedule = schedules.constant(Mixture.proportional({"en": 60}))
    options = {"batch_size": 1, "seed": 3, "shuffle_shards": False}
    expected = run_reader(mix(shards, schedule, num_steps=1000 * 60 + 50, start_step=1000 * 60 + 45, **options))
    assert [key for _, key in expected] == [f"en/2/{i}" for i in range(5, 10)]


def test_composes_with_webdataset(shards, schedule):
    pipeline = mix(shards, schedule, batch_size=8, seed=3, num_steps=6).decode().to_tuple("__key__", "txt").batched(8)
    loader = webdataset.WebLoader(pipeline, batch_size=None, num_workers=2)
    batches = list(loader.unbatched().batched(16))
    assert [len(keys) for keys, _ in batches] == [16, 16, 16]
    assert all(texts == keys for keys, texts in batches)  # decoded


def test_streams_from_pipes_and_pipelines(shards, schedule, run_reader):
    expected = run_reader(mix(shards, schedule, batch_size=8, seed=3, num_steps=9, shuffle_shards=False))
    pipes = {domain: [f"pipe:cat {path}" for path in paths] for domain, paths in shards.items()}
    assert run_reader(mix(pipes, schedule, batch_size=8, seed=3, num_steps=9, shuffle_shards=False)) == expected
    pipelines = {domain: webdataset.WebDataset(paths, shardshuffle=False) for domain, paths in shards.items()}
    assert run_reader(mix(pipelines, schedule, batch_size=8, seed=3, num_steps=9)) == expected


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format, *args):
        pass


@pytest.fixture
def server(tmp_path):
    """Serve the shards over HTTP and yield the URL of their folder."""
    handler = functools.partial(QuietHandler, directory=tmp_path)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.mark.skipif(shutil.which("curl") is None, reason="webdataset needs curl for http URLs")
def test_streams_over_http(shards, schedule, run_reader, server):
    urls = {domain: [f"{server}/{domain}-{n}.tar" for n in range(len(paths))] for domain, paths in shards.items()}
    options = {"batch_size": 8, "seed": 3, "num_steps": 12}
    assert run_reader(mix(urls, schedule, **options)) == run_reader(mix(shards, schedule, **options))
    with pytest.raises((tarfile.ReadError, OSError), match=r"nothing\.tar"):  # tarfile or curl may fail first
        run_reader(mix({**urls, "de": [f"{server}/nothing.tar"]}, schedule, **options))


def test_compressed_shards_are_streamed_in_the_same_order(shards, schedule, run_reader, tmp_path):
    options = {"batch_size": 8, "seed": 3, "num_steps": 12}
    expected = run_reader(mix(shards, schedule, **options))
    packed = {}
    for domain, paths in shards.items():
        packed[domain] = [
            str(tmp_path / f"packed-{Path(path).name}") for path in paths
        ]  # the name does not show the compression
        for source, target in zip(paths, packed[domain], strict=True):
            Path(target).write_bytes(gzip.compress(Path(source).read_bytes()))
    assert run_reader(mix(packed, schedule, **options)) == expected
    mixed = {**shards, "en": [*shards["en"][:2], *packed["en"][2:]]}
    assert run_reader(mix(mixed, schedule, **options)) == expected


def test_damaged_local_shards_are_refused_or_left_to_the_handler(shards, schedule, run_reader):
    """Joined tars are refused, although tarfile and webdataset silently stop after the first one."""
    first, second, *_ = shards["en"]
    Path(first).write_bytes(Path(first).read_bytes() + Path(second).read_bytes())
    options = {"batch_size": 8, "seed": 3, "num_steps": 12}
    with pytest.raises(ValueError, match=r"en-0\.tar at byte \d+: data follow the zero blocks.*warn_and_continue"):
        run_reader(mix(shards, schedule, **options))
    handler = webdataset.warn_and_continue
    assert len(run_reader(mix(shards, schedule, handler=handler, **options))) == 8 * 12


def test_errors_say_what_to_do(shards, schedule, run_reader, tmp_path):
    with pytest.raises(ValueError, match="expected the schedule's domains"):
        mix({"en": shards["en"]}, schedule, batch_size=8, seed=3)
    with pytest.raises(ValueError, match="start_step = -1"):
        mix(shards, schedule, batch_size=8, seed=3, start_step=-1)
    with pytest.raises(ValueError, match="num_steps = -1"):
        mix(shards, schedule, batch_size=8, seed=3, num_steps=-1)
    with pytest.raises(ValueError, match="domain 'de' has no shards"):
        mix({**shards, "de": []}, schedule, batch_size=8, seed=3)
    for source in (True, None, {"a": 1}, b"de.tar", [True]):
        with pytest.raises(TypeError, match="domain 'de' has the s"):
            mix({**shards, "de": source}, schedule, batch_size=8, seed=3)
    with pytest.raises(ValueError, match="batch_size = 2 leaves rank 0 of 5 without samples"):
        run_reader(mix(shards, schedule, batch_size=2, seed=3), 0, 5)
    with pytest.raises(ValueError, match="batchsize = 0"):
        mix(shards, schedule, batch_size=8, seed=3).batched(0)
    pipeline = webdataset.WebDataset(shards["de"], shardshuffle=False)
    with pytest.raises(ValueError, match="elastic=True needs URLs"):
        mix({**shards, "de": pipeline}, schedule, batch_size=8, seed=3, elastic=True)
    with tarfile.open(tmp_path / "empty.tar", "w"):
        pass
    with pytest.raises(
        ValueError, match="domain 'de' has no samples for this reader; leave out shards without samples"
    ):
        run_reader(mix({**shards, "de": [str(tmp_path / "empty.tar")]}, schedule, batch_size=8, seed=3, num_steps=9))
