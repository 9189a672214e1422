"""Shards of tokens have the same bytes for the same documents. They are written whole, and damage is noticed."""

import dataclasses
import io
import json
import os
import re
import tarfile

import numpy as np
import pytest
import webdataset
from token_files import make_documents, write_folder

from pycooldown.data import TarDataset, TokenDataset
from pycooldown.data.token_manifest import load_token_manifest
from pycooldown.data.token_shard_writer import write_token_shard
from pycooldown.data.token_shards import open_token_shard

GOLDEN = {7: ("7e120be3ddedd1db", "c03135ded7f3ec11"), 70_000: ("ed569dbda7aea85a", "5e363af690f25ac2")}
LENGTHS = [5, 60, 1, 300, 44, 7]


@pytest.fixture
def shard(tmp_path):
    path = tmp_path / "en-000000.tar"
    record = write_token_shard(path, make_documents(LENGTHS), 128, block_tokens=50)
    return path, record


def sidecar_of(path):
    return path.with_name(path.name + ".ends")


def test_blocks_are_samples_of_webdataset(shard):
    path, _ = shard
    samples = list(webdataset.WebDataset(str(path), shardshuffle=False))
    assert [sample["__key__"] for sample in samples] == ["00000000", "00000001", "00000002"]
    assert [np.frombuffer(s["ends.u32"], "<u4").tolist() for s in samples] == [[5, 65], [1, 301], [44, 51]]
    tokens = [np.frombuffer(sample["tokens.u16"], "<u2") for sample in samples]
    np.testing.assert_array_equal(np.concatenate(tokens), np.concatenate(make_documents(LENGTHS)))
    assert len(TarDataset({"en": [path]})) == 3  # a stricter reader


def test_sidecar(shard):
    path, record = shard
    numbers = np.fromfile(sidecar_of(path), "<u8")
    assert numbers[0].tobytes() == b"pycdends"
    assert numbers[1:8].tolist() == [1, 2, 3, 6, 417, os.path.getsize(path), 0]
    assert numbers[8:14].reshape(3, 2)[:, 1].tolist() == [65, 366, 417]
    content = path.read_bytes()
    starts = np.split(np.concatenate(make_documents(LENGTHS)), [65, 366])
    for offset, tokens in zip(numbers[8:14:2].tolist(), starts):
        assert content[offset : offset + 2 * len(tokens)] == tokens.astype("<u2").tobytes()
    assert numbers[14:].tolist() == np.cumsum(LENGTHS).tolist()
    assert (record.documents, record.tokens) == (6, 417)
    assert (record.bytes, record.ends_bytes) == (os.path.getsize(path), 8 * len(numbers))


def test_storage(tmp_path):
    """From a million tokens on, a shard takes at most 5 % more than its tokens, and 16 bytes for each document."""
    documents = make_documents(np.random.default_rng(0).integers(1, 700, 3000))
    record = write_token_shard(tmp_path / "a.tar", documents, 50_000)
    assert record.tokens > 1_000_000
    assert record.bytes + record.ends_bytes < 1.05 * 2 * record.tokens
    assert record.ends_bytes <= 16 * record.documents


def test_the_same_documents_give_the_same_bytes(shard, tmp_path):
    path, record = shard
    again = tmp_path / "again.tar"
    documents = (document.astype(np.int32).tolist() for document in make_documents(LENGTHS))
    assert write_token_shard(again, documents, 128, block_tokens=50) == record
    assert again.read_bytes() == path.read_bytes()
    assert sidecar_of(again).read_bytes() == sidecar_of(path).read_bytes()


def test_the_format_does_not_change(tmp_path):
    """All releases write these bytes. If this fails, users' files are affected, and the format needs a new version."""
    for vocabulary_size, digests in GOLDEN.items():
        record = write_token_shard(tmp_path / "a.tar", [[1, 2, 3], [4], [5, 6]], vocabulary_size, block_tokens=4)
        assert (record.sha256[:16], record.ends_sha256[:16]) == digests


def test_documents_without_tokens_are_left_out_and_counted(tmp_path):
    record = write_token_shard(tmp_path / "a.tar", [[], [1, 2], [], np.empty(0), [3]], 128)
    assert (record.documents, record.tokens, record.empty_documents) == (2, 3, 3)
    assert open_token_shard(tmp_path / "a.tar").document_ends().tolist() == [2, 3]


@pytest.mark.parametrize("vocabulary_size", [128, 70_000])
@pytest.mark.parametrize("documents", [[], [[1]], [[4, 5], [6]]], ids=["none", "one", "two"])
def test_a_missing_sidecar_is_made_again(tmp_path, documents, vocabulary_size):
    path = tmp_path / "a.tar"
    record = write_token_shard(path, documents, vocabulary_size)
    before = sidecar_of(path).read_bytes()
    sidecar_of(path).unlink()
    file = open_token_shard(path)
    assert (file.tokens, len(file.document_ends())) == (record.tokens, record.documents)
    assert sidecar_of(path).read_bytes() == before
    assert sorted(os.listdir(tmp_path)) == ["a.tar", "a.tar.ends"]


def test_ids_of_16_and_32_bits(tmp_path):
    for vocabulary_size, dtype in ((65_536, "uint16"), (65_537, "uint32")):
        write_token_shard(tmp_path / "a.tar", [[0, vocabulary_size - 1]], vocabulary_size)
        assert open_token_shard(tmp_path / "a.tar").dtype == dtype
        dataset = TokenDataset({"a": tmp_path / "a.tar"}, 2)
        assert dataset[0]["input_ids"].tolist() == [0, vocabulary_size - 1]


@pytest.mark.parametrize(
    ("documents", "message"),
    [
        ([[1], [2, 128]], r"document 1 has token id 128; expected ids in \[0, 128\)"),
        ([[-1]], r"document 0 has token id -1; expected ids in \[0, 128\)"),
        ([[1], np.array([2**63], np.uint64)], "document 1 has token id -?[0-9]+; expected ids"),
        ([[1.0]], "document 0 is 1-dimensional with dtype float64; expected a vector of integers"),
        ([[True]], "document 0 is 1-dimensional with dtype bool"),
        ([[[1]]], "document 0 is 2-dimensional"),
        (["text"], "document 0 is 0-dimensional"),
    ],
)
def test_wrong_documents_leave_the_old_shard(shard, documents, message):
    path, _ = shard
    before = {name: (path.parent / name).read_bytes() for name in os.listdir(path.parent)}
    with pytest.raises(ValueError, match=message):
        write_token_shard(path, documents, 128)
    assert {name: (path.parent / name).read_bytes() for name in os.listdir(path.parent)} == before


def test_an_interrupted_writer_leaves_nothing(tmp_path):
    def documents():
        yield from make_documents([5] * 100)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_token_shard(tmp_path / "a.tar", documents(), 128, block_tokens=50)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("options", [{"vocabulary_size": 0}, {"vocabulary_size": 128, "block_tokens": 0}])
def test_options_out_of_range(tmp_path, options):
    with pytest.raises(ValueError, match=r"= 0; expected 1 to"):
        write_token_shard(tmp_path / "a.tar", [[1]], **options)


def members(path):
    with tarfile.open(path) as tar:
        return [(info, tar.extractfile(info).read()) for info in tar]


def rewrite(path, entries):
    with tarfile.open(path, "w") as tar:
        for info, content in entries:
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def drop_last(path):
    rewrite(path, members(path)[:-1])


def swap(path):
    entries = members(path)
    rewrite(path, [*entries[2:], *entries[:2]])


def ends_beyond_tokens(path):
    entries = members(path)
    entries[1] = entries[1][0], np.array([5, 66], "<u4").tobytes()
    rewrite(path, entries)


def ends_fall(path):
    entries = members(path)
    entries[1] = entries[1][0], np.array([70, 65], "<u4").tobytes()
    rewrite(path, entries)


def a_document_of_no_tokens(path):
    entries = members(path)
    entries[1] = entries[1][0], np.array([5, 5, 65], "<u4").tobytes()
    rewrite(path, entries)


def other_member(path):
    rewrite(path, [*members(path), (tarfile.TarInfo("a.txt"), b"")])


def two_widths(path):
    entries = members(path)
    entries[2][0].name = "00000001.tokens.u32"
    entries[2] = entries[2][0], np.frombuffer(entries[2][1], "<u2").astype("<u4").tobytes()
    rewrite(path, entries)


def cut(size):
    def cut_to(path):
        os.truncate(path, size)

    cut_to.__name__ = f"cut_to_{size}"
    return cut_to


def overwrite(path):
    path.write_bytes(b"x" * 4096)


DAMAGES = [drop_last, swap, ends_beyond_tokens, ends_fall, a_document_of_no_tokens, other_member, two_widths]
# Cuts within the first member, between samples, within the last padding and before the end of the tar; another file.
OTHER_SIZES = [*(cut(size) for size in (0, 600, 2048, 5000, 5632)), overwrite]


@pytest.mark.parametrize("damage", DAMAGES + OTHER_SIZES, ids=lambda damage: damage.__name__)
def test_no_sidecar_is_made_for_a_damaged_tar(shard, damage):
    path, _ = shard
    damage(path)
    sidecar_of(path).unlink()
    with pytest.raises(ValueError, match=re.escape(f"{path} is no complete shard of tokens")):
        open_token_shard(path)
    assert not sidecar_of(path).exists()


@pytest.mark.parametrize("damage", OTHER_SIZES, ids=lambda damage: damage.__name__)
def test_a_sidecar_of_a_tar_of_another_size_is_refused(shard, damage):
    path, _ = shard
    damage(path)
    with pytest.raises(ValueError, match=r"it was cut off or replaced; if the tar is whole, delete this file"):
        open_token_shard(path)


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (0, 7),  # magic
        (1, 2),  # version
        (2, 3),  # bytes of a token
        (3, 2),  # blocks
        (3, 2**60),
        (4, 2**61),  # documents
        (5, 418),  # tokens
        (6, 10239),  # bytes of the tar
        (8, 10240),  # the start of a block
        (8, 2**64 - 2),
        (9, 366),  # the end of a block
        (9, 2**63),
        (13, 416),
        (15, 4),  # the end of a document
        (-1, 418),
    ],
)
def test_damaged_sidecars_are_refused(shard, place, value):
    path, _ = shard
    numbers = np.fromfile(sidecar_of(path), "<u8")
    numbers[place] = value
    numbers.tofile(sidecar_of(path))
    with pytest.raises(ValueError, match=r"en-000000\.tar"):
        TokenDataset({"en": path}, 8)


@pytest.mark.parametrize("size", [0, 8, 63, 64, 100, 120])
def test_sidecars_that_were_cut_off_are_refused(shard, size):
    path, _ = shard
    os.truncate(sidecar_of(path), size)
    with pytest.raises(ValueError, match="delete this file, and it is made again"):
        open_token_shard(path)


def test_a_tar_that_is_cut_off_after_it_was_opened_is_refused(shard):
    path, _ = shard
    file = open_token_shard(path)
    os.truncate(path, 1000)
    with pytest.raises(OSError, match=rf"{path} is no longer a file of {file.size} bytes"):
        TokenDataset({"en": file}, 8)


class TestManifest:
    @pytest.fixture
    def folder(self, tmp_path):
        return write_folder(tmp_path, {"en": {"train": [make_documents([5, 4]), make_documents([8])]}})

    def change(self, folder, *keys, value):
        manifest = json.loads((folder / "manifest.json").read_text())
        entry = manifest
        for key in keys[:-1]:
            entry = entry[key]
        if value is None:
            del entry[keys[-1]]
        else:
            entry[keys[-1]] = value
        (folder / "manifest.json").write_text(json.dumps(manifest))

    def test_counts_and_hashes(self, folder):
        manifest = load_token_manifest(folder, verify_hashes=True)
        train = manifest.domains["en"]["train"]
        assert (train.documents, train.tokens) == (3, 17)
        assert [dataclasses.asdict(shard)["tokens"] for shard in train.shards] == [9, 8]
        assert manifest.tokenizer["file"] == folder / "tokenizer.json"

    @pytest.mark.parametrize(
        ("keys", "value", "message"),
        [
            (("format",), "pycooldown.packed/1", r"format 'pycooldown\.packed/1'; expected 'pycooldown\.tokens/1'"),
            (("tokenizer",), None, "lacks an entry"),
            (("tokenizer", "vocabulary_size"), -1, "vocabulary_size = -1"),
            (("tokenizer", "eos_id"), 128, "eos_id = 128, but 128 ids"),
            (("tokenizer", "file"), "../tokenizer.json", "leads out of the folder"),
            (("domains",), [], "lacks an entry"),
            (("domains", "en", "train", "tokens"), 18, "has 18 tokens, but its shards have 17"),
            (("domains", "en", "train", "documents"), True, "documents = True"),
            (("domains", "en", "train", "shards", "en/train-000000.tar", "tokens"), "9", "tokens = '9'"),
            (("domains", "en", "train", "shards", "en/train-000000.tar", "bytes"), 5, r"has 10240 bytes; expected 5"),
            (("domains", "en", "train", "shards", "de/train-000000.tar"), {}, "expected en/train-000000.tar and so on"),
            (("domains", "en", "train", "shards", "en/train-/../../../x.tar"), {}, "lacks an entry or has a wrong one"),
        ],
    )
    def test_wrong_entries_are_refused(self, folder, keys, value, message):
        self.change(folder, *keys, value=value)
        with pytest.raises(ValueError, match=message):
            TokenDataset(folder, 8)

    def test_counts_are_those_of_the_shards(self, folder):
        shards = ("domains", "en", "train", "shards")
        self.change(folder, *shards, "en/train-000000.tar", "tokens", value=8)
        self.change(folder, *shards, "en/train-000001.tar", "tokens", value=9)
        with pytest.raises(ValueError, match="has 2 documents and 9 tokens; the manifest says 2 and 8"):
            TokenDataset(folder, 8)

    def test_missing_files(self, folder):
        os.unlink(folder / "en" / "train-000001.tar.ends")
        assert TokenDataset(folder, 8).tokens == {"en": 17}  # the missing sidecar is made again
        os.unlink(folder / "en" / "train-000001.tar")
        with pytest.raises(FileNotFoundError, match=r"train-000001\.tar is missing"):
            TokenDataset(folder, 8)
        os.unlink(folder / "manifest.json")
        with pytest.raises(FileNotFoundError, match=r"manifest\.json is missing: no complete folder of tokens"):
            TokenDataset(folder, 8)

    def test_damage_that_keeps_the_size_is_found_by_hashes(self, folder):
        path = folder / "en" / "train-000000.tar"
        content = bytearray(path.read_bytes())
        content[512] ^= 1  # a bit of a token
        path.write_bytes(content)
        with pytest.raises(ValueError, match="has SHA-256"):
            load_token_manifest(folder, verify_hashes=True)

    @pytest.mark.parametrize("content", [b"", b"[]", b"\xff", b"[" * 100_000, b'{"format": 1}'])
    def test_files_that_are_no_manifest_are_refused(self, folder, content):
        (folder / "manifest.json").write_bytes(content)
        with pytest.raises(ValueError, match=r"manifest\.json (is not UTF-8 JSON|has format)"):
            load_token_manifest(folder)
