"""mix: the same draws as the sampler, split over readers without repeats, resumable."""

import collections
import functools
import http.server
import shutil
import tarfile
import threading

import pytest
import webdataset
from torchdata.stateful_dataloader import StatefulDataLoader

from pycooldown import DomainBatchSampler, Mixture, schedules
from pycooldown.data import mix

COUNTS = {"en": [9, 9, 9, 9], "de": [30], "sw": [6, 6, 6]}


@pytest.fixture
def shards(write_shards):
    return write_shards(COUNTS)


@pytest.fixture
def schedule():
    return schedules.cooldown({domain: sum(counts) for domain, counts in COUNTS.items()}, tau=5.0, switch_step=5)


@pytest.fixture
def run_reader(monkeypatch):
    """Runs a pipeline as one reader among many."""

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
    """The samples of all readers, put back into the order of steps and slots."""
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
    """One domain, whose readers all draw equally often: after a whole number of epochs all samples came as often."""
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
    def run(start, rank, worker):
        pipeline = mix(shards, schedule, batch_size=8, seed=3, num_steps=50, start_step=start, elastic=elastic)
        return run_reader(pipeline, rank, 2, worker, 3)

    for rank, worker in [(0, 0), (1, 2)]:
        steps = len(range(worker + (start - worker + 2) // 3 * 3, 50, 3))
        whole, rest = run(0, rank, worker), run(start, rank, worker)
        assert len(rest) == 4 * steps
        assert rest == whole[-len(rest) :]


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


def keys(samples):
    return [sample["__key__"] for sample in samples]


def test_spawned_workers(shards, schedule):
    """They get the pipeline, and the sampler in it, pickled."""

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
    with pytest.raises(ValueError, match=r"state is of the reader .* \[0, 2, 0, 1\], this is \[1, 2, 0, 1\]"):
        run_reader(other, 1, 2)
    with pytest.raises(ValueError, match="expected a value of"):
        other.load_state_dict({"version": 1})


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
    """Serves the shards over HTTP; gives the root's URL."""
    handler = functools.partial(QuietHandler, directory=tmp_path)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.mark.skipif(shutil.which("curl") is None, reason="webdataset opens http URLs with curl")
def test_streams_over_http(shards, schedule, run_reader, server):
    urls = {domain: [f"{server}/{domain}-{n}.tar" for n in range(len(paths))] for domain, paths in shards.items()}
    options = {"batch_size": 8, "seed": 3, "num_steps": 12}
    assert run_reader(mix(urls, schedule, **options)) == run_reader(mix(shards, schedule, **options))
    with pytest.raises((tarfile.ReadError, OSError), match=r"nothing\.tar"):  # whichever of tarfile and curl ends first
        run_reader(mix({**urls, "de": [f"{server}/nothing.tar"]}, schedule, **options))


def test_errors_say_what_to_do(shards, schedule, run_reader, tmp_path):
    with pytest.raises(ValueError, match="expected the schedule's domains"):
        mix({"en": shards["en"]}, schedule, batch_size=8, seed=3)
    with pytest.raises(ValueError, match="start_step = -1"):
        mix(shards, schedule, batch_size=8, seed=3, start_step=-1)
    pipeline = webdataset.WebDataset(shards["de"], shardshuffle=False)
    with pytest.raises(ValueError, match="elastic=True needs URLs"):
        mix({**shards, "de": pipeline}, schedule, batch_size=8, seed=3, elastic=True)
    with tarfile.open(tmp_path / "empty.tar", "w"):
        pass
    with pytest.raises(ValueError, match="domain 'de' has no samples for this reader"):
        run_reader(mix({**shards, "de": [str(tmp_path / "empty.tar")]}, schedule, batch_size=8, seed=3, num_steps=9))
