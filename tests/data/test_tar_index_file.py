"""Index files beside shards: written once, used, rebuilt, reported."""

import os
import random
import stat
from pathlib import Path

import pytest

from pycooldown.data import TarDataset


@pytest.fixture
def shard(write_shards):
    return Path(write_shards({"d": [100]})["d"][0])


def texts(shard):
    return [sample["txt"] for sample in TarDataset({"d": shard})]


def test_index_is_written_once_and_used(shard):
    TarDataset({"d": shard})
    index = Path(f"{shard}.idx")
    written = index.stat()
    assert stat.S_IMODE(written.st_mode) == 0o644
    assert len(TarDataset({"d": shard})) == 100
    assert index.stat().st_ino == written.st_ino
    assert sorted(p.name for p in shard.parent.iterdir()) == ["d-0.tar", "d-0.tar.idx"]  # nothing temporary


def test_stale_index_is_rebuilt(shard, write_shards):
    TarDataset({"d": shard})
    smaller, others = (write_shards({domain: [2]})[domain][0] for domain in "ab")
    os.replace(smaller, shard)
    assert texts(shard) == [b"a/0/0", b"a/0/1"]
    before = shard.stat().st_mtime_ns
    os.replace(others, shard)  # the same size
    os.utime(shard, ns=(before + 1, before + 1))
    assert texts(shard) == [b"b/0/0", b"b/0/1"]


def test_index_of_another_tool_is_left_alone(shard):
    index = Path(f"{shard}.idx")
    index.write_bytes(b"offsets of somebody else")
    assert len(TarDataset({"d": shard})) == 100
    assert index.read_bytes() == b"offsets of somebody else"


def test_index_of_another_version_is_replaced(shard):
    TarDataset({"d": shard})
    index = Path(f"{shard}.idx")
    good = index.read_bytes()
    index.write_bytes(good[:7] + b"0" + good[8:])
    assert len(TarDataset({"d": shard})) == 100
    assert index.read_bytes() == good


def test_damaged_index_is_reported_wherever_it_is_damaged(shard):
    TarDataset({"d": shard})
    index = Path(f"{shard}.idx")
    good = index.read_bytes()
    rng = random.Random(0)
    for _ in range(200):
        bad = bytearray(good[: rng.randrange(30, len(good))] if rng.random() < 0.3 else good)
        bad[rng.randrange(24, len(bad))] ^= 1 << rng.randrange(8)  # behind magic, size and time
        index.write_bytes(bad)
        with pytest.raises(ValueError, match=r"d-0\.tar\.idx: the index is damaged; delete it"):
            TarDataset({"d": shard})


def test_unwritable_index_path_keeps_the_index_in_memory(shard, monkeypatch):
    def refuse(*args, **kwargs):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("pycooldown.data.index.tempfile.mkstemp", refuse)
    assert len(TarDataset({"d": shard})) == 100
    assert not Path(f"{shard}.idx").exists()
