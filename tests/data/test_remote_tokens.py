"""Tokens in object stores give the arrays of the same files or a clear error, whatever fails."""

import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from object_server import serve_objects
from token_files import make_documents, write_folder

pytest.importorskip("obstore")

from pycooldown import DomainBatchSampler, Mixture, schedules
from pycooldown.data import KnownFutureCache, TokenDataset, range_requests
from pycooldown.data.byte_ranges import StoreRanges
from pycooldown.data.cache.blocks import Blocks
from pycooldown.data.cache.plan import BlockUses, forecast

COLUMNS = ("input_ids", "position_ids", "segment_ids", "labels", "shift_labels", "domain_ids")


@pytest.fixture
def folder(tmp_path):
    """Return a folder of two domains with small blocks. One of the shards has no document."""
    (tmp_path / "tokens").mkdir()
    rng = np.random.default_rng(0)
    en = [make_documents(rng.integers(1, 90, 40), seed) for seed in range(3)]
    de = [make_documents([5, 200, 1, 1, 30], 9), make_documents([64, 3], 8)]
    return write_folder(tmp_path / "tokens", {"en": {"train": en}, "de": {"train": de, "validation": de[1:]}})


@pytest.fixture
def server(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with serve_objects() as server:
        for path in folder.rglob("*"):
            if path.is_file():
                server.put(f"set/{path.relative_to(folder)}", path.read_bytes())
        yield server


def url(server, name=""):
    return f"{server.address}/set{name}"


def gets(server):
    return [path for method, path, _ in server.requests if method == "GET"]


def assert_equal(found, expected):
    assert found.keys() == expected.keys()
    for name in expected:
        assert found[name].dtype == expected[name].dtype
        assert np.array_equal(found[name], expected[name]), name


@pytest.mark.parametrize("columns", [COLUMNS, ("input_ids", "labels")])
@pytest.mark.parametrize(
    "options",
    [
        {"length": 16},
        {"length": 64, "cross_document_labels": True, "remainder": "drop", "dtype": np.int32},
        {"length": 700},
        {"length": 50, "mode": "document"},
        {"length": 300, "mode": "document", "long_documents": "truncate"},
        {"length": 100, "mode": "best_fit"},
    ],
)
def test_objects_give_the_arrays_of_files(folder, server, options, columns):
    here = TokenDataset(folder, columns=columns, **options)
    there = TokenDataset(url(server), columns=columns, **options)
    assert (there.sizes, there.tokens, there.left_out) == (here.sizes, here.tokens, here.left_out)
    order = np.random.default_rng(0).integers(-len(here), len(here), 3 * len(here))
    assert_equal(there.__getitems__(order), here.__getitems__(order))
    for i in (0, len(here) - 1):
        assert_equal(there[i], here[i])
    assert_equal(there.__getitems__([]), here.__getitems__([]))


def test_a_batch_is_fetched_by_few_requests(server):
    dataset = TokenDataset(url(server), length=16)
    dataset[0]
    server.requests.clear()
    dataset.__getitems__(range(len(dataset)))
    numbers = [("de", 0), ("de", 1), ("en", 0), ("en", 1), ("en", 2)]
    shards = [f"/set/{domain}/train-{number:06d}.tar" for domain, number in numbers]
    assert sorted(gets(server)) == shards


def test_only_what_rows_need_is_fetched(server):
    dataset = TokenDataset(url(server), length=16)
    spans = dataset.locate([0, 1])
    assert int((spans.ends - spans.starts).sum()) == 2 * 16 * 2  # uint16


def test_sources_by_domain_with_braces(folder, server):
    there = TokenDataset({"en": url(server, "/en/train-{000000..000002}.tar")}, length=16)
    here = TokenDataset(folder, length=16, domains=["en"])
    assert_equal(there.__getitems__(range(9)), here.__getitems__(range(9)))


def test_sidecars_are_copied_once_and_made_where_they_are_missing(folder, server):
    del server.files["/set/en/train-000001.tar.ends"]
    here = TokenDataset(folder, length=16)
    for _ in range(2):
        there = TokenDataset(url(server), length=16)
        assert_equal(there.__getitems__(range(50)), here.__getitems__(range(50)))
        server.requests.clear()
    TokenDataset(url(server), length=16)
    assert gets(server) == ["/set/manifest.json"]


@pytest.mark.parametrize("fault", [503, "short", "drop"])
def test_passing_failures_cost_nothing(folder, server, fault):
    there, here = TokenDataset(url(server), length=16), TokenDataset(folder, length=16)
    server.faults += [fault, None, fault]
    assert_equal(there.__getitems__(range(len(here))), here.__getitems__(range(len(here))))


def test_a_shard_that_changes_is_refused(server):
    dataset = TokenDataset(url(server), length=16)
    server.change("set/en/train-000000.tar", server.files["/set/en/train-000000.tar"])
    with pytest.raises(OSError, match=r"has changed since it was indexed.*/set/en/train-000000\.tar"):
        dataset[0]


def test_a_server_that_is_down_is_named(server):
    dataset = TokenDataset(url(server), length=16)
    dataset.ranges = StoreRanges(dataset.objects, patience=0.3)
    server.faults += ["drop"] * 1000
    with pytest.raises(OSError, match=r"could not be read in \d+ tries .*/set/en/train-000000\.tar"):
        dataset[0]


def test_what_is_missing_or_wrong_is_named(server, folder):
    with pytest.raises(FileNotFoundError, match=r"/none/manifest.json is missing: no complete folder of tokens there"):
        TokenDataset(f"{server.address}/none")
    with pytest.raises(FileNotFoundError, match=r"there is no object .*/none\.tar"):
        TokenDataset({"en": url(server, "/none.tar")})
    with pytest.raises(ValueError, match=r"manifest\.json is no \.tar"):
        TokenDataset({"en": url(server, "/manifest.json")})
    with pytest.raises(ValueError, match="some sources are in stores and others are local files"):
        TokenDataset({"en": [url(server, "/en/train-000000.tar"), str(folder / "en/train-000001.tar")]})
    with pytest.raises(ValueError, match="'ftp://' does not"):
        TokenDataset({"en": "ftp://host/x.tar"})
    content = server.files["/set/de/train-000000.tar"]
    server.change("set/de/train-000000.tar", content + bytes(512))
    with pytest.raises(ValueError, match=r"belongs to a tar of \d+ bytes, but http://.*/de/train-000000.tar has \d+"):
        TokenDataset(url(server))


def test_ids_outside_of_the_vocabulary_are_refused(server):
    dataset = TokenDataset({"en": url(server, "/en/train-000000.tar")}, length=16, vocabulary_size=4)
    with pytest.raises(ValueError, match=r"http://.*/en/train-000000.tar has token id \d+; expected ids in \[0, 4\)"):
        dataset.__getitems__(range(9))


class Recorded:
    """Serve ranges of objects from memory, as a cache does, and record them."""

    def __init__(self, objects, files):
        self.contents = [files["/" + item.url.split("/", 3)[3]] for item in objects]
        self.calls = 0

    def read(self, objects, starts, ends):
        self.calls += 1
        return [memoryview(self.contents[o])[a:b] for o, a, b in zip(objects, starts, ends)]


def test_other_ranges_can_be_given(server, folder):
    ranges = Recorded(TokenDataset(url(server)).objects, server.files)
    there, here = TokenDataset(url(server), length=16, ranges=ranges), TokenDataset(folder, length=16)
    copy = pickle.loads(pickle.dumps(there))
    server.requests.clear()
    for dataset in (there, copy):
        assert_equal(dataset.__getitems__(range(30)), here.__getitems__(range(30)))
    assert ranges.calls == 1
    assert gets(server) == []


def test_rows_over_many_requests(server, folder, monkeypatch):
    monkeypatch.setattr(range_requests, "RANGE_BYTES", 64)
    there, here = TokenDataset(url(server), length=100), TokenDataset(folder, length=100)
    assert_equal(there.__getitems__(range(len(here))), here.__getitems__(range(len(here))))


def test_loads_in_forked_workers(server, folder, tmp_path):
    """Forked workers load objects. The test runs in a new process, since a process that has read must not fork."""
    code = f"""
from torch.utils.data import DataLoader
from pycooldown.data import TokenDataset

dataset = TokenDataset({url(server)!r}, length=16)
options = dict(num_workers=1, multiprocessing_context="fork", collate_fn=TokenDataset.collate)
for batch in DataLoader(dataset, batch_sampler=[[0, 5], [7, 3]], **options):
    print(*batch["input_ids"].flatten().tolist())
"""
    script = Path(tmp_path / "script.py")
    script.write_text(code)
    run = subprocess.run([sys.executable, script], capture_output=True, text=True)
    here = TokenDataset(folder, length=16)
    expected = [" ".join(map(str, here.__getitems__(batch)["input_ids"].ravel())) for batch in ([0, 5], [7, 3])]
    assert run.stdout.splitlines() == expected, run.stderr


@pytest.mark.parametrize("options", [{"length": 16}, {"length": 100, "mode": "best_fit"}])
def test_a_cache_gives_the_arrays_of_files(folder, server, tmp_path, options):
    """Batches and requests are the planned ones, although a row may extend over several blocks."""
    from torch.utils.data import DataLoader

    here, there = TokenDataset(folder, **options), TokenDataset(url(server), **options)
    job = {"batch_size": 6, "seed": 0, "num_steps": 30}

    def make():
        return DomainBatchSampler(schedules.constant(Mixture.temperature_sampling(here.sizes, 2)), **job)

    sampler = make()
    blocks = Blocks.of(there, 3)
    limit, depth = int(0.6 * blocks.sizes.sum()), int(0.1 * blocks.sizes.sum())
    plan = forecast(BlockUses(make(), there, blocks), stop=30, limits=[limit], depths=[depth], prefetched=2)
    with KnownFutureCache(tmp_path / "blocks", limit=limit, depth=depth, block=3, prefetched=2) as cache:
        cache.follow(sampler, there)
        loader = DataLoader(there, batch_sampler=sampler, collate_fn=dict, num_workers=2, prefetch_factor=1)
        for found, indices in zip(loader, make(), strict=True):
            assert_equal(found, here.__getitems__(indices))
        done = cache.statistics()
    assert (done.requests, done.unplanned) == (plan.forecasts[0].requests, 0)
