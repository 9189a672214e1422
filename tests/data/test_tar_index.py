"""Tar shards are read as webdataset reads them, or refused with the shard's name and the offset."""

import collections
import io
import os
import random
import re
import shutil
import tarfile
from pathlib import Path

import pytest
import webdataset
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from webdataset.handlers import ignore_and_continue, reraise_exception

from pycooldown.data import TarDataset

CORPUS = Path(__file__).parents[1] / "fuzz" / "corpus"


def as_webdataset(path, handler=reraise_exception):
    samples = list(webdataset.tariterators.tarfile_samples([{"url": str(path)}], handler=handler))
    return [{k: v for k, v in sample.items() if k != "__local_path__"} for sample in samples]


def as_ours(path, on_error="raise"):
    dataset = TarDataset({"d": path}, on_error=on_error)
    samples = dataset.__getitems__(range(len(dataset)))
    assert all(sample.pop("__domain__") == "d" for sample in samples)
    return samples


def outcome(read, path):
    """Return (samples, None), or (None, message of the error)."""
    try:
        return read(path), None
    except ValueError as error:
        return None, str(error)


def write_tar(path, members, format=tarfile.USTAR_FORMAT, **kwargs):
    """Write a tar of members, given as (name, bytes) or (name, tar type)."""
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
    assert as_ours(path) == expected  # the second time from the index file


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
        (b"\x1f\x8b short", r"compressed \(gzip\)"),
        (b"\x04\x22\x4d\x18 short", r"compressed \(lz4\)"),
        (b"PAR1" + bytes(20), "is a Parquet file, not a tar: write its samples into tar shards"),
        (b"PK\x03\x04" + bytes(900), "is a zip archive"),
        (b"ARROW1\0\0", "is an Arrow file"),
        (b"\x89HDF\r\n\x1a\n", "is an HDF5 file"),
        (b"\x93NUMPY\x01\x00", "is a NumPy array"),
        (b'{"text": "a"}\n' * 3, "looks like JSON, not like a tar"),
        (b'{"text": "a"}\n' * 300, "looks like JSON, not like a tar"),
        (b"text", "ends inside a block"),
        (b"no tar at all" * 80, "wrong checksum"),
        (bytes(header("a.txt", 9999)) + bytes(512), "'a.txt' is cut off: 9999 bytes expected, 512 left"),
        (bytes(header("a.txt", 8**11 - 1)) + bytes(512), "is cut off"),
        (bytes(header("a.txt", 3, b"L")) + bytes(512), "without a member"),
        (bytes(header("a.txt", 8**10, b"x")) + bytes(512), "extended header of 1073741824 bytes"),
        (bytes(header("a.txt", 3, b"x")) + b"9 a=b\n".ljust(512, b"\0"), "malformed pax header"),
        (bytes(header("a.txt", 0, b"S")), "'a.txt' is a sparse file"),
        (bytes(header("a.__key__", 0)), "reserved"),
        (bytes(header("a.txt", 0) + header("a.txt", 0)), "repeats the extension 'txt'"),
        (bytes(header("\x1b[31ma\x7f.txt", 9999)) + bytes(512), r"'\\x1b\[31ma\\x7f\.txt' is cut off"),
        (bytes(header("a.txt", 0)) + b"short", "ends inside a block"),
        (bytes(header("a.txt", 0)), "ends without the zero blocks that end a tar: it was cut off, or never closed"),
    ],
)
def test_names_shard_offset_and_reason(tmp_path, content, reason):
    path = tmp_path / "shard.tar"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"{re.escape(str(path))} at byte \d+: .*{reason}"):
        TarDataset({"d": path})


@pytest.mark.parametrize("blocks", [1, 2, 20, 200], ids=lambda blocks: f"{blocks}-blocks")
def test_data_behind_the_end_of_a_tar_are_a_fault(tmp_path, blocks):
    """Zeros may follow the end of a tar in any number. Other data, which no reader would see, are a fault."""
    first, second = bytes(header("a.txt", 0)), bytes(header("b.txt", 0)) + bytes(1024)
    path = tmp_path / "shard.tar"
    for rest in (b"", bytes(100)):  # zeros need not fill whole blocks
        path.write_bytes(first + bytes(512 * blocks) + rest)
        assert [sample["__key__"] for sample in as_ours(path)] == ["a"]
    for rest in (second, b"x", bytes(100_000) + b"x", bytes(512) + second):
        content = first + bytes(512 * blocks) + rest
        path.write_bytes(content)
        at = (len(content) - len(rest) + len(rest) - len(rest.lstrip(b"\0"))) // 512 * 512
        with pytest.raises(ValueError, match=rf"shard\.tar at byte {at}: data follow the zero blocks.*joined by cat"):
            TarDataset({"d": path})
        with pytest.warns(UserWarning, match="1 samples skipped"):
            dataset = TarDataset({"d": path}, on_error="skip")
        assert [sample["__key__"] for sample in dataset] == ["a"]  # the sample before the fault is whole


def test_joined_tars_are_a_fault(tmp_path):
    parts = [write_tar(tmp_path / f"{i}.tar", [(f"{i}.txt", b"x")]).read_bytes() for i in range(2)]
    path = tmp_path / "joined.tar"
    path.write_bytes(b"".join(parts))
    with pytest.raises(ValueError, match=f"at byte {len(parts[0])}: data follow"):
        TarDataset({"d": path})


def test_a_name_with_a_brace_is_not_taken_for_json(tmp_path):
    path = write_tar(tmp_path / "shard.tar", [("{a}.txt", b"x")])
    assert [sample["__key__"] for sample in as_ours(path)] == ["{a}"]


def test_skip_counts_and_reports_what_it_leaves_out(tmp_path):
    blocks = [header("a.txt", 0), header("b.txt", 0), header("b.txt", 0), header("c.txt", 0, b"S"), header("d.txt", 0)]
    path = tmp_path / "shard.tar"
    path.write_bytes(b"".join(blocks) + b"garbage".ljust(512, b"!"))
    for _ in range(2):  # the first time from a scan, then from the index file
        with pytest.warns(
            UserWarning, match=r"3 samples skipped, the first in .*shard.tar at byte 1024: 'b.txt' repeats"
        ):
            dataset = TarDataset({"d": path}, on_error="skip")
        assert [sample["__key__"] for sample in dataset] == ["a"]  # d is left out too, since it may have lost members
        assert [(fault.shard, fault.offset) for fault in dataset.skipped] == [
            (str(path), at) for at in (1024, 1536, 2560)
        ]
        with pytest.raises(ValueError, match="at byte 1024"):
            TarDataset({"d": path})


MUTATIONS = ["cut", "bit", "checksum", "field", "size", "repeat", "type", "name", "block"]


def mutate(tar, rng, mutation):
    """Return the tar after one kind of damage."""
    tar = bytearray(tar)
    headers = [at for at in range(0, len(tar), 512) if tar[at + 257 : at + 262] == b"ustar"]
    at = rng.choice(headers)
    block = tar[at : at + 512]
    match mutation:
        case "cut":
            return tar[: rng.choice([at, rng.randrange(len(tar))])]
        case "bit":
            tar[rng.randrange(len(tar))] ^= 1 << rng.randrange(8)
            return tar
        case "block":
            position = 512 * rng.randrange(len(tar) // 512)
            return tar[:position] + rng.choice([bytes(512), rng.randbytes(512), b""]) + tar[position + 512 :]
        case "field":  # damage with a correct checksum
            for _ in range(rng.randrange(1, 4)):
                block[rng.choice([*range(124), *range(136, 148), *range(156, 512)])] = rng.randrange(256)
        case "size":  # webdataset is not compared here: tarfile would read such a member for hours
            size = rng.choice([2**33, 2**62, 2**63, 2**64 - 1, 2**80, len(tar) - at, len(tar)])
            block[124:136] = rng.choice([b"\x80", b"\xff"]) + size.to_bytes(11, "big")
        case "repeat":  # repeats a name, and so an extension or a key
            block[:100] = tar[rng.choice(headers) :][:100]
        case "type":
            block[156:157] = bytes([rng.choice(b"\x000123456789ADKLMNSVXgx\xff")])
        case "name":  # rarely valid UTF-8
            block[: rng.randrange(1, 100)] = rng.randbytes(rng.randrange(100))
            block = block.ljust(512, b"\0")[:512]
    fix_checksum(block)
    if mutation == "checksum":
        block[rng.randrange(148, 156)] = rng.randrange(256)
    tar[at : at + 512] = block
    return tar


def assert_read_as_webdataset_reads_it_or_refused(path, ask_webdataset=True, originals=()):
    """Return "read" or "refused". If refused, check that skipping lists the faults and keeps only right samples."""
    ours, fault = outcome(as_ours, path)
    if not fault:
        assert ours == as_webdataset(path)
        return "read"
    assert re.match(rf"{re.escape(str(path))} at byte \d+: ", fault)
    with pytest.warns(UserWarning, match=r"^\d+ samples skipped") as warned:
        dataset = TarDataset({"d": path}, on_error="skip")
    assert f"{len(dataset.skipped)} samples skipped, the first in {path} at byte" in str(warned[0].message)
    assert all(skipped.shard == str(path) and skipped.offset <= path.stat().st_size for skipped in dataset.skipped)
    readable = as_webdataset(path, ignore_and_continue) if ask_webdataset else []
    contents = [{k: v for k, v in sample.items() if k != "__url__"} for sample in readable] or originals
    for sample in dataset:
        assert sample.pop("__url__") == str(path)
        assert sample.pop("__domain__") == "d"
        assert sample in contents
    return "refused"


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_mutated_shards_read_as_webdataset_reads_them_or_not_at_all(tmp_path, format):
    """Damaged shards, of samples of which some lack extensions or are empty, are read as by webdataset or refused."""
    names = [f"d/{i:03d}.{ext}" for i in range(12) for ext in ("txt", "cls", "json")[: 1 + i % 3]]
    names += [] if format == tarfile.USTAR_FORMAT else ["n" * 120 + ".txt", "m" * 300 + ".txt", "ü" * 99 + ".txt"]
    original = write_tar(
        tmp_path / "original.tar", [(n, n.encode() * (i % 5 * 9)) for i, n in enumerate(names)], format
    )
    samples = [{k: v for k, v in sample.items() if k != "__url__"} for sample in as_webdataset(original)]
    rng = random.Random(format)
    outcomes = collections.Counter()
    for i in range(27):
        for mutation in MUTATIONS:
            path = tmp_path / f"{mutation}{i}.tar"
            path.write_bytes(mutate(original.read_bytes(), rng, mutation))
            how = assert_read_as_webdataset_reads_it_or_refused(path, mutation != "size", samples)
            outcomes[mutation, how] += 1
    refused = {mutation for mutation, how in outcomes if how == "refused"}
    assert refused == set(MUTATIONS)
    assert sum(count for (_, how), count in outcomes.items() if how == "read") > 25, outcomes


@pytest.mark.parametrize("path", sorted(CORPUS.iterdir()), ids=lambda path: path.name)
def test_kept_inputs_of_the_fuzzer(tmp_path, path):
    """The corpus has every input that ever broke the scanner, and one of each kind of damage."""
    copy = Path(shutil.copy(path, tmp_path))  # a copy, so that no index file is left in the corpus
    huge = path.stem in ("huge_size", "negative_size")  # tarfile would read these for hours
    assert_read_as_webdataset_reads_it_or_refused(copy, ask_webdataset=not huge)


def test_missing_files_and_pipes_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="missing"):
        TarDataset({"d": tmp_path / "missing.tar"})
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="no regular file"):
        TarDataset({"d": tmp_path / "pipe"})
