"""A real Ray cluster, of two cores of this machine, makes the same index of a data set (`nox -s ray`)."""

import shutil
from pathlib import Path

import pytest
from object_server import serve_objects

pytest.importorskip("ray")

from pycooldown.data import TarDataset, index_building
from pycooldown.data.index_building import build_index


def test_the_same_bytes_on_ray(write_shards, tmp_path, monkeypatch):
    """The bytes are the same in small windows, with relative paths, and when the index is updated."""
    monkeypatch.setattr(index_building, "ON_RAY", 2)
    monkeypatch.chdir(tmp_path)
    paths = write_shards({"en": [40, 25, 3], "de": [10], "sw": [3, 0, 4]})
    shards = {domain: [str(p).removeprefix(f"{tmp_path}/") for p in files] for domain, files in paths.items()}
    build_index(shards, "one.idx")
    build_index(shards, "ray.idx", workers=2, ray="local")
    expected = (tmp_path / "one.idx").read_bytes()
    assert (tmp_path / "ray.idx").read_bytes() == expected
    assert TarDataset("ray.idx")[84]["__key__"] == "sw/2/3"
    shutil.copy(shards["en"][0], shards["sw"][1])
    for name in ("one", "ray"):
        build_index(shards, f"{name}.idx", workers=2, ray="local" if name == "ray" else None)
    assert (tmp_path / "ray.idx").read_bytes() == (tmp_path / "one.idx").read_bytes() != expected


def test_objects_and_faults(write_shards, tmp_path, monkeypatch):
    """Objects are indexed too, and a fault raises an error that names its shard, or is listed."""
    pytest.importorskip("obstore")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    paths = write_shards({"en": [40, 25], "de": [10]})
    with serve_objects() as server:
        urls = {
            d: [server.put(f"{d}/{i}.tar", Path(p).read_bytes()) for i, p in enumerate(ps)] for d, ps in paths.items()
        }
        bad = urls | {"sw": [server.put("bad.tar", b"no tar" * 500)]}
        for name, ray in (("one", None), ("ray", "local")):
            build_index(urls, tmp_path / f"{name}.idx", workers=2, ray=ray)
            with pytest.raises(ValueError, match=r"bad\.tar at byte 0"):
                build_index(bad, tmp_path / "bad.idx", workers=2, ray=ray)
            build_index(bad, tmp_path / f"{name}-bad.idx", workers=2, ray=ray, on_error="skip")
    for end in (".idx", "-bad.idx"):
        assert (tmp_path / f"ray{end}").read_bytes() == (tmp_path / f"one{end}").read_bytes()


def test_a_bucket(write_shards, tmp_path, make_store):
    """Tasks read the shards of an S3 bucket with the credentials of this process."""
    obstore = pytest.importorskip("obstore")
    bucket = make_store("s3")
    store = obstore.store.from_url(bucket)
    for domain, paths in write_shards({"en": [40, 25], "de": [10]}).items():
        for i, path in enumerate(paths):
            obstore.put(store, f"{domain}-{i}.tar", Path(path).read_bytes())
    shards = {"en": f"{bucket}/en-*", "de": f"{bucket}/de-*"}
    for name, ray in (("one", None), ("ray", "local")):
        build_index(shards, tmp_path / f"{name}.idx", workers=2, ray=ray)
    assert (tmp_path / "ray.idx").read_bytes() == (tmp_path / "one.idx").read_bytes()
    assert TarDataset(tmp_path / "ray.idx")[74]["__key__"] == "de/0/9"
