"""Index files beside shards are written once and used. Stale ones are rebuilt, damaged ones reported."""

import base64
import io
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
    assert sorted(p.name for p in shard.parent.iterdir()) == ["d-0.tar", "d-0.tar.idx"]  # no temporary file is left


def test_stale_index_is_rebuilt(shard, write_shards):
    TarDataset({"d": shard})
    smaller, others = (write_shards({domain: [2]})[domain][0] for domain in "ab")
    os.replace(smaller, shard)
    assert texts(shard) == [b"a/0/0", b"a/0/1"]
    before = shard.stat().st_mtime_ns
    os.replace(others, shard)  # has the same size
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
        bad[rng.randrange(24, len(bad))] ^= 1 << rng.randrange(8)  # after magic, size and time
        index.write_bytes(bad)
        with pytest.raises(ValueError, match=r"d-0\.tar\.idx: the index is damaged; delete this file"):
            TarDataset({"d": shard})


def test_index_stays_in_memory_where_the_folder_cannot_be_written(shard):
    with shard.open() as file:
        through_proc = f"/proc/self/fd/{file.fileno()}"
        assert len(TarDataset({"d": through_proc})) == 100
    assert not Path(f"{shard}.idx").exists()


# The index that version 0.2 wrote beside a USTAR tar of these members with a modification time of 5 ns.
FORMER_MEMBERS = [("a/1.txt", b"one"), ("a/1.cls", b"7"), ("a/2.txt", b""), ("b.jpg", b"x" * 1000)]
FORMER_INDEX = base64.b85decode(
    "aCu{7X=HdZ04M+e000001poj5000001ONa4000001ONa4000000{{R3000000000000000I5G^uAB5Yq000000000000000000000ssI20000"
    "00{{R3000000{{R3000001^@s6000001ONa4000002LJ#7000000RR91000000{{R3000000{{R30RR910RR91000001poj50000000000000"
    "001^@s60ssI2=mP)%000002LJ#700000VJ|UZFEU~S000000001Vcyt2*00000003iba{~YX000000BUe&"
)


def test_an_index_of_the_former_version_is_used(tmp_path):
    shard, index = tmp_path / "x.tar", tmp_path / "x.tar.idx"
    with tarfile.open(shard, "w", format=tarfile.USTAR_FORMAT) as tar:
        for name, content in FORMER_MEMBERS:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    os.utime(shard, ns=(5, 5))
    expected = list(TarDataset({"d": shard}))
    index.write_bytes(FORMER_INDEX)
    assert count_samples(str(shard)) == 3
    assert list(TarDataset({"d": shard})) == expected
    assert index.read_bytes() == FORMER_INDEX  # it is not written again
    rng = random.Random(0)
    for _ in range(200):
        bad = bytearray(FORMER_INDEX)
        bad[rng.randrange(24, len(bad))] ^= 1 << rng.randrange(8)
        index.write_bytes(bad)
        with pytest.raises(ValueError, match=r"x\.tar\.idx: the index is damaged; delete this file"):
            TarDataset({"d": shard})


@pytest.fixture
def rewrite(shard, write_shards):
    """Return a function that writes another tar of the same size into the shard and restores its times."""
    other = Path(write_shards({"e": [100]})["e"][0]).read_bytes()

    def write():
        before = shard.stat()
        assert before.st_size == len(other)
        shard.write_bytes(other)
        os.utime(shard, ns=(before.st_atime_ns, before.st_mtime_ns))

    return write


def test_a_shard_rewritten_with_its_size_and_time_is_indexed_again(shard, rewrite):
    assert texts(shard)[0] == b"d/0/0"
    rewrite()
    assert TarDataset({"d": shard})[99]["__key__"] == "e/0/99"


@pytest.mark.parametrize("mmap", [True, False])
def test_a_shard_rewritten_in_use_with_its_size_and_time_is_refused(shard, rewrite, mmap):
    dataset = TarDataset({"d": shard}, mmap=mmap)
    rewrite()
    for _ in range(2):
        with pytest.raises(OSError, match=r"d-0\.tar has changed since .*, though it has the size and time"):
            dataset[0]


def test_an_index_takes_few_bytes_a_sample(shard):
    """An index takes at most 12 bytes for a sample beside its key, and 300 for the file."""
    TarDataset({"d": shard})
    keys = sum(len(f"d/0/{i}") for i in range(100))
    assert os.path.getsize(f"{shard}.idx") < keys + 12 * 100 + 300


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
def test_anything_else_in_place_of_an_index_is_left_alone(shard, make):
    """The shard is scanned instead. Nothing waits for a pipe's writer or reads a device without end."""
    index = Path(f"{shard}.idx")
    make(index)

    def found():
        """Return what identifies a file and its content, without the time of the last access."""
        status = index.lstat()
        return status.st_ino, status.st_mode, status.st_size, status.st_mtime_ns

    before = found()
    assert len(TarDataset({"d": shard})) == 100
    assert found() == before


def test_index_that_is_too_large_is_replaced(shard):
    TarDataset({"d": shard})
    index = Path(f"{shard}.idx")
    good = index.read_bytes()
    os.truncate(index, 1 << 40)
    assert len(TarDataset({"d": shard})) == 100
    assert index.read_bytes() == good


def test_largest_indexes_are_within_the_limit(tmp_path):
    """Samples with long names, new extensions and faults, which make the largest indexes, are within the limit."""
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
    assert count_samples(str(shard)) is None  # there is no index
    TarDataset({"d": shard})
    index = Path(f"{shard}.idx")
    index.write_bytes(index.read_bytes()[:80])
    assert count_samples(str(shard)) == 100
    index.write_bytes(index.read_bytes()[:79])
    assert count_samples(str(shard)) is None
    index.unlink()
    shard.write_bytes(shard.read_bytes()[:-10240])
    with pytest.warns(UserWarning, match="skipped"):
        TarDataset({"d": shard}, on_error="skip")
    assert count_samples(str(shard)) is None  # the shard has a fault
    index.unlink()
    index.mkdir()
    assert count_samples(str(shard)) is None
