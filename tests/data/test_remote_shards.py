"""Shards in object stores give the samples of the same files or a clear error, whatever fails."""

import atexit
import io
import itertools
import os
import pickle
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from object_server import serve_objects

pytest.importorskip("obstore")

from pycooldown.data import TarDataset
from pycooldown.data.byte_ranges import StoreRanges
from pycooldown.data.index import TarIndex
from pycooldown.data.index_building import LARGEST_WINDOW, NEAR, build_index
from pycooldown.data.shard_lists import find_shards, parse_shards
from pycooldown.data.subprocess_call import call_apart

COUNTS = {"en": [40, 25], "de": [10], "sw": [3, 0, 4]}


@pytest.fixture
def server(monkeypatch, tmp_path):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with serve_objects() as server:
        yield server


@pytest.fixture
def shards(write_shards):
    return write_shards(COUNTS)


@pytest.fixture
def urls(server, shards):
    """Put the same shards on the server and return their URLs."""
    return {
        domain: [server.put(f"{domain}/{i}.tar", Path(path).read_bytes()) for i, path in enumerate(paths)]
        for domain, paths in shards.items()
    }


def contents(samples):
    return [{name: value for name, value in sample.items() if name != "__url__"} for sample in samples]


def as_files(shards):
    return contents(TarDataset(shards).__getitems__(range(82)))


def gets(server):
    return [path for method, path, _ in server.requests if method == "GET"]


def test_objects_give_the_samples_of_files(urls, shards, server):
    dataset = TarDataset(urls)
    assert dataset.sizes == {"en": 65, "de": 10, "sw": 7}
    assert dataset.shards == urls
    assert dataset.shard_sizes == COUNTS
    order = np.random.default_rng(0).integers(-82, 82, 200)
    expected = as_files(shards)
    server.requests.clear()
    found = dataset.__getitems__(order)
    assert contents(found) == [expected[i] for i in order]
    assert found[0]["__url__"] in urls[found[0]["__domain__"]]
    assert len(gets(server)) == 5  # one request for each shard with samples
    buffer, offsets = dataset.flat(order, "txt")
    assert [bytes(buffer[a:b]) for a, b in itertools.pairwise(offsets)] == [expected[i]["txt"] for i in order]
    assert contents([dataset[81]]) == [expected[81]]
    with pytest.raises(KeyError, match=r"sample 'en/0/0' of http://.*/en/0.tar has no 'jpg'"):
        dataset.flat([0], "jpg")
    with pytest.raises(IndexError, match="index 82 is out of range"):
        dataset[82]


def test_files_and_objects_mix(urls, shards):
    dataset = TarDataset({"en": [shards["en"][0], urls["en"][1]], "de": urls["de"], "sw": shards["sw"]})
    order = np.random.default_rng(0).permutation(82)
    expected = as_files(shards)
    assert contents(dataset.__getitems__(order)) == [expected[i] for i in order]
    buffer, offsets = dataset.flat(order, "txt")
    assert [bytes(buffer[a:b]) for a, b in itertools.pairwise(offsets)] == [expected[i]["txt"] for i in order]
    assert contents(dataset.__getitems__([0, 1])) == expected[:2]


def test_a_second_opening_reads_no_shard(urls, server):
    TarDataset(urls)
    server.requests.clear()
    TarDataset(urls)
    assert gets(server) == []


def test_braces_name_objects(urls, shards, server):
    dataset = TarDataset({"en": f"{server.address}/en/{{0..1}}.tar"})
    assert contents(dataset) == as_files(shards)[:65]


def test_an_index_is_brought_up_to_date(urls, shards, server, tmp_path):
    index = tmp_path / "x.idx"
    TarDataset(urls, index=index)
    server.change("de/0.tar", Path(shards["sw"][0]).read_bytes())
    server.requests.clear()
    dataset = TarDataset(urls, index=index)
    assert set(gets(server)) == {"/de/0.tar"}
    assert dataset.sizes == {"en": 65, "de": 3, "sw": 7}


def test_an_index_in_a_store_is_copied_once(urls, shards, server, tmp_path):
    build_index(urls, tmp_path / "x.idx")
    server.put("set/dataset.idx", (tmp_path / "x.idx").read_bytes())
    for where in ("set", "set/", "set/dataset.idx"):
        server.requests.clear()
        dataset = TarDataset(f"{server.address}/{where}")
        assert set(gets(server)) == ({"/set/dataset.idx"} if where == "set" else set())
    assert contents(dataset.__getitems__(range(82))) == as_files(shards)
    with pytest.raises(FileNotFoundError, match=r"there is no index 'http://.*/none/dataset\.idx'"):
        TarDataset(f"{server.address}/none")
    build_index(shards, tmp_path / "y.idx")
    server.put("files.idx", (tmp_path / "y.idx").read_bytes())
    with pytest.raises(ValueError, match=r"files\.idx lists the file 'en-0\.tar'; .* from the URLs"):
        TarDataset(f"{server.address}/files.idx")


def test_an_object_that_changed_since_is_refused(urls, shards, server, tmp_path):
    TarDataset(urls, index=tmp_path / "x.idx")
    dataset = TarDataset(tmp_path / "x.idx")  # sends no request
    server.change("de/0.tar", server.files["/de/0.tar"])
    with pytest.raises(OSError, match=r"has changed since it was indexed .*index it again.*de/0\.tar"):
        dataset[65]
    assert dataset[0]["__key__"] == "en/0/0"


@pytest.mark.parametrize("fault", [503, "short", "drop"])
def test_passing_failures_cost_no_sample(urls, shards, server, fault, tmp_path):
    server.faults += [fault, None, fault]
    build_index(urls, tmp_path / "x.idx", workers=2)
    dataset = TarDataset(tmp_path / "x.idx")
    server.faults += [fault, fault]
    assert contents(dataset.__getitems__(range(82))) == as_files(shards)


def test_a_server_that_is_down_is_an_error_that_names_the_object(urls, server, tmp_path):
    dataset = TarDataset(urls)
    dataset.ranges = StoreRanges(dataset.objects, patience=0.3)
    server.faults += ["drop"] * 1000
    with pytest.raises(OSError, match=r"could not be read in \d+ tries .*check the endpoint.*/en/0\.tar"):
        dataset[0]
    with pytest.raises(FileNotFoundError, match=r"there is no object 'http://.*/none\.tar'"):
        TarDataset({"en": f"{server.address}/none.tar"})


def test_a_process_that_aborts_at_its_end_has_given_its_result():
    """Threads of a store's client can do that."""
    assert call_apart(atexit.register, os.abort) is os.abort


def test_a_server_without_ranges_is_an_error_at_once(urls, server):
    server.has_ranges = False
    with pytest.raises(OSError, match=r"Range request not supported .*use a server that .*/\w\w/\d\.tar"):
        TarDataset(urls)
    assert len(gets(server)) <= sum(len(names) for names in urls.values())  # none is tried again


def test_faults_are_refused_or_skipped(urls, shards, server):
    server.change("de/0.tar", server.files["/de/0.tar"][:-10240])
    with pytest.raises(ValueError, match=r"/de/0\.tar at byte \d+: the file ends without .*on_error='skip'"):
        TarDataset(urls)
    with pytest.warns(UserWarning, match=r"1 samples skipped, the first in http://.*/de/0\.tar"):
        dataset = TarDataset(urls, on_error="skip")
    assert dataset.sizes["de"] == 9
    assert dataset.skipped[0].shard == urls["de"][0]


class Recorded:
    """Serve ranges of objects from memory, as a cache does, and record them."""

    def __init__(self, objects, files):
        self.contents = [files["/" + item.url.split("/", 3)[3]] for item in objects]
        self.calls = 0

    def read(self, objects, starts, ends):
        self.calls += 1
        return [memoryview(self.contents[o])[a:b] for o, a, b in zip(objects, starts, ends)]


def test_other_ranges_can_be_given(urls, shards, server):
    ranges = Recorded(TarDataset(urls).objects, server.files)
    dataset = TarDataset(urls, ranges=ranges)
    server.requests.clear()
    assert contents(dataset.__getitems__(range(82))) == as_files(shards)
    assert ranges.calls == 1
    copy = pickle.loads(pickle.dumps(dataset))
    assert contents(copy.__getitems__([0, 81])) == [as_files(shards)[i] for i in (0, 81)]
    assert gets(server) == []


def test_ranges_that_give_too_little_are_noticed(urls):
    class Short:
        def read(self, objects, starts, ends):
            return [bytes(int(b - a) - 1) for a, b in zip(starts, ends)]

    with pytest.raises(ValueError, match=r"content 0 has \d+ bytes; expected \d+"):
        TarDataset(urls, ranges=Short())[0]


def test_ranges_of_samples_are_known_without_reading(urls, shards):
    dataset = TarDataset(urls)
    spans = dataset.locate([0, 65, -1], "txt")
    assert [dataset.objects[i].url for i in spans.objects] == [urls["en"][0], urls["de"][0], urls["sw"][2]]
    files = TarDataset(shards)
    for i, index in enumerate([0, 65, -1]):
        content = Path(files.objects[spans.objects[i]].url).read_bytes()
        assert content[spans.starts[i] : spans.ends[i]] == files[index]["txt"]


@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_loads_in_workers(urls, shards, context):
    """Workers load objects. The test runs in a new process, since a process that has read must not fork."""
    code = f"""
from torch.utils.data import DataLoader
from pycooldown.data import TarDataset

def keys(samples):
    return [sample["__key__"] for sample in samples]

if __name__ == "__main__":
    dataset = TarDataset({urls})
    batches = [[i, 81 - i] for i in range(6)]
    options = dict(num_workers=1, multiprocessing_context={context!r}, collate_fn=keys)
    print(*(key for batch in DataLoader(dataset, batch_sampler=batches, **options) for key in batch))
    if {context!r} == "spawn":
        raise SystemExit
    dataset[0]
    try:
        list(DataLoader(dataset, batch_sampler=batches, **options))
    except RuntimeError as error:
        print("spawn workers" in str(error))
"""
    script = Path(shards["en"][0]).parent / "script.py"
    script.write_text(code)
    run = subprocess.run([sys.executable, script], capture_output=True, text=True)
    lines = run.stdout.splitlines()
    expected = [sample["__key__"] for sample in as_files(shards)]
    assert lines[:1] == [" ".join(expected[i] for batch in range(6) for i in (batch, 81 - batch))], run.stderr
    assert lines[1:] == (["True"] if context == "fork" else [])


def test_large_members_are_not_fetched_for_the_index(server, tmp_path):
    with io.BytesIO() as file:
        with tarfile.open(fileobj=file, mode="w") as tar:
            for i in range(4):
                info = tarfile.TarInfo(f"{i}.bin")
                info.size = 4 * NEAR
                tar.addfile(info, io.BytesIO(bytes(info.size)))
        content = file.getvalue()
    url = server.put("large.tar", content)
    build_index({"x": url}, tmp_path / "x.idx")
    fetched = [wanted.removeprefix("bytes=").split("-") for method, _, wanted in server.requests if method == "GET"]
    assert sum(int(last) + 1 - int(first) for first, last in fetched) < len(content) / 20
    dataset = TarDataset(tmp_path / "x.idx")
    assert [len(sample["bin"]) for sample in dataset] == [4 * NEAR] * 4


def test_small_members_are_fetched_in_growing_windows(server, tmp_path):
    with io.BytesIO() as file:
        with tarfile.open(fileobj=file, mode="w") as tar:
            for i in range(2000):
                info = tarfile.TarInfo(f"{i}.bin")
                info.size = 3000
                tar.addfile(info, io.BytesIO(bytes(info.size)))
        url = server.put("small.tar", file.getvalue())
    build_index({"x": url}, tmp_path / "x.idx")
    assert len(TarDataset(tmp_path / "x.idx")) == 2000
    assert len(gets(server)) <= 12  # for about 7 MB
    assert LARGEST_WINDOW > NEAR


def test_objects_by_wildcards_in_a_bucket(shards, tmp_path, monkeypatch, make_store):
    """Wildcards list objects of an S3 bucket, which moto serves."""
    obstore = pytest.importorskip("obstore")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    bucket = make_store("s3")
    store = obstore.store.from_url(bucket)
    for paths in shards.values():
        for path in paths:
            obstore.put(store, os.path.basename(path), Path(path).read_bytes())
    obstore.put(store, "en-0.tar.idx", b"of somebody else")
    given = {domain: f"{bucket}/{domain}-*" for domain in shards}
    dataset = TarDataset({**given, "de": f"{bucket}/de-{{0..0}}.tar"})
    assert contents(dataset.__getitems__(range(82))) == as_files(shards)
    with pytest.raises(FileNotFoundError, match=r"no object matches the pattern 's3://b\w+/none-\*'"):
        TarDataset({"en": f"{bucket}/none-*"})
    with pytest.raises(FileNotFoundError, match=r"no object matches the pattern 's3://b\w+/\*\.idx'"):
        TarDataset({"en": f"{bucket}/*.idx"})


def test_an_object_named_like_a_pattern_is_read_itself(shards, tmp_path, monkeypatch, make_store):
    """As for files; so folders and `dataset.shards` name the same objects again."""
    obstore = pytest.importorskip("obstore")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    bucket = make_store("s3")
    store = obstore.store.from_url(bucket)
    names = ["en/a[1].tar", "en/a1.tar", "en/ü %20+#*.tar"]
    for name, path in zip(names, [*shards["en"], *shards["de"]], strict=True):
        obstore.put(store, name, Path(path).read_bytes())
    dataset = TarDataset({"en": f"{bucket}/en/a[1].tar"})
    assert dataset.sizes == {"en": 40}
    dataset = TarDataset(parse_shards([bucket]))
    assert dataset.shards == TarDataset(dataset.shards).shards == {"en": [f"{bucket}/{name}" for name in sorted(names)]}
    assert dataset.shard_sizes == {"en": [25, 40, 10]}


def test_a_scan_over_ranges_is_that_of_the_file(shards):
    for path in shards["en"]:
        content = Path(path).read_bytes()
        index = TarIndex.scan_object(lambda at, count, content=content: content[at : at + count], len(content))
        assert len(index) == len(TarIndex.scan(path))
        with pytest.raises(OSError, match="gone"):
            TarIndex.scan_object(lambda at, count: (_ for _ in ()).throw(OSError("gone")), 1024)


def test_shards_are_found_with_size_and_version(urls, server):
    found = find_shards(urls)["de"][0]
    assert (found.url, found.size) == (urls["de"][0], len(server.files["/de/0.tar"]))
    assert f'"{found.version}"' == server.etags["/de/0.tar"]
