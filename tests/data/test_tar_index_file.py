"""Index files beside shards: written once, used, rebuilt, reported."""

import os
import random
import stat
import tarfile
from pathlib import Path

import pytest

from pycooldown.data import TarDataset
from pycooldown.data.index import count_samples


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


def test_index_stays_in_memory_where_the_folder_cannot_be_written(shard):
    with shard.open() as file:
        through_proc = f"/proc/self/fd/{file.fileno()}"
        assert len(TarDataset({"d": through_proc})) == 100
    assert not Path(f"{shard}.idx").exists()


def make_folder(index):
    index.mkdir()


def make_pipe(index):
    os.mkfifo(index)


def make_device(index):
    index.symlink_to("/dev/zero")


def make_loop(index):
    index.symlink_to(index)


def make_huge_foreign(index):
    index.touch()
    os.truncate(index, 1 << 40)


@pytest.mark.parametrize("make", [make_folder, make_pipe, make_device, make_loop, make_huge_foreign])
def test_what_cannot_be_an_index_is_left_alone(shard, make):
    """The shard is scanned; neither waits for a writer nor reads without end."""
    index = Path(f"{shard}.idx")
    make(index)
    before = index.lstat()
    assert len(TarDataset({"d": shard})) == 100
    assert index.lstat() == before


def test_index_that_is_too_large_is_replaced(shard):
    TarDataset({"d": shard})
    index = Path(f"{shard}.idx")
    good = index.read_bytes()
    os.truncate(index, 1 << 40)
    assert len(TarDataset({"d": shard})) == 100
    assert index.read_bytes() == good


def test_largest_indexes_are_within_the_limit(tmp_path):
    """Long names, new extensions and a fault in each sample: what an index needs most for."""
    shard = tmp_path / "shard.tar"
    with tarfile.open(shard, "w", format=tarfile.GNU_FORMAT) as tar:
        for i in range(300):
            for _ in range(2):
                tar.addfile(tarfile.TarInfo(f"{'k' * 400}{i}.{'e' * 400}{i}"))
    with pytest.warns(UserWarning, match="300 samples skipped"):
        TarDataset({"d": shard}, on_error="skip")
    written = Path(f"{shard}.idx").stat()
    with pytest.warns(UserWarning, match="300 samples skipped"):
        TarDataset({"d": shard}, on_error="skip")
    assert Path(f"{shard}.idx").stat().st_ino == written.st_ino


def test_samples_are_counted_by_the_head_of_the_index(shard):
    assert count_samples(str(shard)) is None  # there is none
    TarDataset({"d": shard})
    index = Path(f"{shard}.idx")
    index.write_bytes(index.read_bytes()[:64])
    assert count_samples(str(shard)) == 100
    index.write_bytes(index.read_bytes()[:63])
    assert count_samples(str(shard)) is None
    index.unlink()
    shard.write_bytes(shard.read_bytes()[:-10240])
    with pytest.warns(UserWarning, match="skipped"):
        TarDataset({"d": shard}, on_error="skip")
    assert count_samples(str(shard)) is None  # it has a fault
    index.unlink()
    index.mkdir()
    assert count_samples(str(shard)) is None
