"""Tar shards are read as webdataset reads them, or refused with shard and offset."""

import io
import os
import random
import re
import stat
import tarfile
from pathlib import Path

import pytest
import webdataset
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from webdataset.handlers import ignore_and_continue, reraise_exception

from pycooldown.data import TarDataset


def as_webdataset(path, handler=reraise_exception):
    samples = list(webdataset.tariterators.tarfile_samples([{"url": str(path)}], handler=handler))
    return [{k: v for k, v in sample.items() if k != "__local_path__"} for sample in samples]


def as_ours(path, on_error="raise"):
    dataset = TarDataset({"d": path}, on_error=on_error)
    samples = dataset.__getitems__(range(len(dataset)))
    assert all(sample.pop("__domain__") == "d" for sample in samples)
    return samples


def outcome(read, path):
    """(samples, None) or (None, what was wrong)."""
    try:
        return read(path), None
    except ValueError as error:
        return None, str(error)


def write_tar(path, members, format=tarfile.USTAR_FORMAT, **kwargs):
    """Members are (name, bytes) or (name, tar type)."""
    with tarfile.open(path, "w", format=format, **kwargs) as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            if isinstance(content, str):
                info.type, info.linkname = content.encode(), "elsewhere"
                tar.addfile(info)
            else:
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return path


MEMBERS = [
    ("a/1.txt", b"one"),
    ("a/1.CLS", b"7"),
    ("a", tarfile.DIRTYPE.decode()),
    ("a/2.txt", b""),
    ("a/link.txt", tarfile.SYMTYPE.decode()),
    ("a/2.seg.png", bytes(1500)),
    ("__meta__/x.txt", b"not a sample"),
    ("__about__", b"nor this"),
    ("README", b"no extension"),
    ("a.b/.hidden.txt", b"skipped"),
    ("a/.hidden.txt", b"a key that ends in a slash"),
    ("x" * 60 + "/" + "y" * 90 + ".txt", b"long"),
    ("last.json", b"{}" * 256),
]


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize(
    "extra",
    [
        [],
        [("long/" * 40 + "name.txt", b"x"), ("ü" * 90 + ".txt", b"non-ASCII")],
        [("\udcff\udc80.txt", b"not UTF-8")],
    ],
    ids=["plain", "long", "bytes"],
)
def test_reads_what_webdataset_reads(tmp_path, format, extra):
    if extra and format == tarfile.USTAR_FORMAT and "long" in extra[0][0]:
        extra = extra[1:] and [("ü" * 40 + ".txt", b"non-ASCII")]
    options = {"encoding": "utf-8", "errors": "surrogateescape"}
    path = write_tar(tmp_path / "shard.tar", MEMBERS + extra, format, **options)
    expected = as_webdataset(path)
    assert len(expected) >= 5
    assert as_ours(path) == expected
    assert as_ours(path) == expected  # now from the index file


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(names=st.lists(st.text("ab.._/A\n", min_size=1, max_size=9), min_size=1, max_size=4))
def test_keys_and_extensions_follow_webdataset(tmp_path, names):
    path = write_tar(tmp_path / "shard.tar", [(name, b"x") for name in names], tarfile.GNU_FORMAT)
    expected, duplicate = outcome(as_webdataset, path)
    ours, fault = outcome(as_ours, path)
    assert ours == expected
    if duplicate:
        assert "duplicate file name" in duplicate
        assert "repeats the extension" in fault


def header(name, size, type=b"0"):
    info = tarfile.TarInfo(name)
    info.size, info.type = size, type
    return bytearray(info.tobuf(tarfile.GNU_FORMAT))


def fix_checksum(block):
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return block


def test_reads_sizes_in_base_256_and_in_pax_headers(tmp_path):
    binary = header("a.txt", 0)
    binary[124:136] = b"\x80" + (5).to_bytes(11, "big")
    record = b"10 size=5\n"
    content = b"hello".ljust(512, b"\0")
    path = tmp_path / "shard.tar"
    path.write_bytes(
        fix_checksum(binary)
        + content
        + header("./PaxHeaders/b", len(record), b"x")
        + record.ljust(512, b"\0")
        + header("b.txt", 0)
        + content
        + bytes(1024)
    )
    assert [sample["txt"] for sample in as_ours(path)] == [b"hello", b"hello"]
    assert as_ours(path) == as_webdataset(path)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "the file is empty"),
        (b"\x1f\x8b" + bytes(600), r"compressed \(gzip\).*pycooldown.data.mix"),
        (b"\xfd7zXZ\0" + bytes(600), r"compressed \(xz\)"),
        (b"BZh9" + bytes(600), r"compressed \(bzip2\)"),
        (b"\x28\xb5\x2f\xfd" + bytes(600), r"compressed \(zstd\)"),
        (b"no tar at all" * 80, "wrong checksum"),
        (bytes(header("a.txt", 9999)) + bytes(512), "'a.txt' is cut off: 9999 bytes expected, 512 left"),
        (bytes(header("a.txt", 8**11 - 1)) + bytes(512), "is cut off"),
        (bytes(header("a.txt", 3, b"L")) + bytes(512), "without a member"),
        (bytes(header("a.txt", 8**10, b"x")) + bytes(512), "extended header of 1073741824 bytes"),
        (bytes(header("a.txt", 3, b"x")) + b"9 a=b\n".ljust(512, b"\0"), "malformed pax header"),
        (bytes(header("a.txt", 0, b"S")), "'a.txt' is a sparse file"),
        (bytes(header("a.__key__", 0)), "reserved"),
        (bytes(header("a.txt", 0) + header("a.txt", 0)), "repeats the extension 'txt'"),
        (bytes(header("a.txt", 0)) + b"short", "ends inside a block"),
        (bytes(header("a.txt", 0)), "ends without the zero blocks that end a tar: it was cut off, or never closed"),
    ],
)
def test_names_shard_offset_and_reason(tmp_path, content, reason):
    path = tmp_path / "shard.tar"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"{re.escape(str(path))} at byte \d+: .*{reason}"):
        TarDataset({"d": path})


def test_skip_counts_and_reports_what_it_leaves_out(tmp_path):
    blocks = [header("a.txt", 0), header("b.txt", 0), header("b.txt", 0), header("c.txt", 0, b"S"), header("d.txt", 0)]
    path = tmp_path / "shard.tar"
    path.write_bytes(b"".join(blocks) + b"garbage".ljust(512, b"!"))
    for _ in range(2):  # scanned, then from the index file
        with pytest.warns(
            UserWarning, match=r"3 samples skipped, the first in .*shard.tar at byte 1024: 'b.txt' repeats"
        ):
            dataset = TarDataset({"d": path}, on_error="skip")
        assert [sample["__key__"] for sample in dataset] == ["a"]  # d may have had more members
        assert [(fault.shard, fault.offset) for fault in dataset.skipped] == [
            (str(path), at) for at in (1024, 1536, 2560)
        ]
        with pytest.raises(ValueError, match="at byte 1024"):
            TarDataset({"d": path})


def mutate(tar, rng):
    """One way in which a shard goes bad."""
    tar = bytearray(tar)
    headers = [at for at in range(0, len(tar), 512) if tar[at + 257 : at + 262] == b"ustar"]
    at = rng.choice(headers)
    block = tar[at : at + 512]
    kind = rng.randrange(9)
    if kind == 0:
        return kind, tar[: rng.randrange(len(tar))]
    if kind == 1:
        tar[rng.randrange(len(tar))] ^= 1 << rng.randrange(8)
        return kind, tar
    if kind == 2:
        block[rng.randrange(148, 156)] = rng.randrange(256)
    if kind == 3:  # damage that the checksum does not show
        for _ in range(rng.randrange(1, 4)):
            block[rng.choice([*range(124), *range(136, 148), *range(156, 512)])] = rng.randrange(256)
        fix_checksum(block)
    if kind == 4:  # tarfile would read to the end of such a member for hours, so the caller does not ask it
        size = rng.choice([2**33, 2**62, 2**63, 2**64 - 1, 2**80, len(tar) - at, len(tar)])
        block[124:136] = rng.choice([b"\x80", b"\xff"]) + size.to_bytes(11, "big")
        fix_checksum(block)
    if kind == 5:  # the same name again: a repeated extension or key
        block[:100] = tar[rng.choice(headers) :][:100]
        fix_checksum(block)
    if kind == 6:
        block[156:157] = bytes([rng.choice(b"\x000123456789ADKLMNSVXgx\xff")])
        fix_checksum(block)
    if kind == 7:
        block[: rng.randrange(1, 100)] = rng.randbytes(rng.randrange(100))
        fix_checksum(block.ljust(512, b"\0"))
        block = block[:512]
    if kind == 8:
        position = 512 * rng.randrange(len(tar) // 512)
        return kind, tar[:position] + rng.choice([bytes(512), rng.randbytes(512), b""]) + tar[position + 512 :]
    tar[at : at + 512] = block
    return kind, tar


@pytest.mark.filterwarnings("ignore:.*skipped:UserWarning")
@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_mutated_shards_read_as_webdataset_reads_them_or_not_at_all(tmp_path, format):
    names = [f"d/{i:03d}.{ext}" for i in range(12) for ext in ("txt", "cls", "json")[: 1 + i % 3]]
    names += [] if format == tarfile.USTAR_FORMAT else ["n" * 120 + ".txt", "m" * 300 + ".txt", "ü" * 99 + ".txt"]
    original = write_tar(
        tmp_path / "original.tar", [(n, n.encode() * (i % 5 * 9)) for i, n in enumerate(names)], format
    )
    samples = [{k: v for k, v in sample.items() if k != "__url__"} for sample in as_webdataset(original)]
    rng = random.Random(format)
    outcomes = {"read": 0, "refused": 0}
    for i in range(250):
        path = tmp_path / f"{i}.tar"
        kind, content = mutate(original.read_bytes(), rng)
        path.write_bytes(content)
        ours, fault = outcome(as_ours, path)
        outcomes["refused" if fault else "read"] += 1
        if not fault:
            assert ours == as_webdataset(path), f"mutation {i}"
            continue
        assert re.match(rf"{re.escape(str(path))} at byte \d+: ", fault), f"mutation {i}"
        assert TarDataset({"d": path}, on_error="skip").skipped
        readable = [] if kind == 4 else as_webdataset(path, ignore_and_continue)
        contents = [{k: v for k, v in sample.items() if k != "__url__"} for sample in readable] or samples
        for sample in as_ours(path, "skip"):
            assert sample.pop("__url__") == str(path)
            assert sample in contents, f"mutation {i}"
    assert min(outcomes.values()) > 25, outcomes


# ---- index files ----


@pytest.fixture
def shard(tmp_path):
    return write_tar(tmp_path / "shard.tar", [(f"{i}.txt", b"%d" % i) for i in range(100)])


def test_index_is_written_once_and_used(shard):
    TarDataset({"d": shard})
    index = Path(f"{shard}.idx")
    written = index.stat()
    assert stat.S_IMODE(written.st_mode) == 0o644
    assert len(TarDataset({"d": shard})) == 100
    assert index.stat().st_ino == written.st_ino
    assert sorted(p.name for p in shard.parent.iterdir()) == ["shard.tar", "shard.tar.idx"]  # nothing temporary


def test_stale_index_is_rebuilt(shard):
    TarDataset({"d": shard})
    write_tar(shard, [("a.txt", b"a"), ("b.txt", b"b")])
    assert [sample["txt"] for sample in as_ours(shard)] == [b"a", b"b"]
    before = shard.stat().st_mtime_ns
    write_tar(shard, [("c.txt", b"c"), ("d.txt", b"d")])  # the same size
    os.utime(shard, ns=(before + 1, before + 1))
    assert [sample["txt"] for sample in as_ours(shard)] == [b"c", b"d"]


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
        with pytest.raises(ValueError, match=r"shard\.tar\.idx: the index is damaged; delete it"):
            TarDataset({"d": shard})


def test_unwritable_index_path_keeps_the_index_in_memory(shard, monkeypatch):
    def refuse(*args, **kwargs):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("pycooldown.data.index.tempfile.mkstemp", refuse)
    assert len(TarDataset({"d": shard})) == 100
    assert not Path(f"{shard}.idx").exists()


def test_what_is_no_file_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="missing"):
        TarDataset({"d": tmp_path / "missing.tar"})
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="no regular file"):
        TarDataset({"d": tmp_path / "pipe"})
