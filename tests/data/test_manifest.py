"""Every value of a manifest is checked against its type, the other values and the shards."""

import hashlib
import io
import json
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest

from pycooldown.data.manifest import load_manifest

COUNTS = {"de": {"train": [4, 3], "validation": [2]}, "fa": {"train": [5], "validation": [1]}}


def write_shard(path, count, first):
    path.parent.mkdir(exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for i in range(first, first + count):
            for side in ("src", "tgt"):
                array = io.BytesIO()
                np.save(array, np.arange(3, dtype=np.uint16))
                info = tarfile.TarInfo(f"{i}.{side}.npy")
                info.size = len(array.getvalue())
                tar.addfile(info, io.BytesIO(array.getvalue()))


@pytest.fixture
def packed(tmp_path):
    """Return a folder as `pack` writes it."""
    folder = tmp_path / "packed"
    folder.mkdir()
    (folder / "tokenizer.model").write_bytes(b"model")
    domains = {}
    for domain, splits in COUNTS.items():
        domains[domain] = {}
        for split, counts in splits.items():
            names = [f"{domain}/{split}-{i:06d}.tar" for i in range(len(counts))]
            for i, (name, count) in enumerate(zip(names, counts, strict=True)):
                write_shard(folder / name, count, 100 * i)
            total = sum(counts)
            shards = dict(zip(names, counts, strict=True))
            domains[domain][split] = {
                "samples": total,
                "src_tokens": 3 * total,
                "tgt_tokens": 3 * total,
                "shards": shards,
            }
    files = {
        str(path.relative_to(folder)): {
            "bytes": path.stat().st_size,
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        }
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    special = {"pad_id": 3, "bos_id": 1, "eos_id": 2, "tag_ids": {"de": 4, "fa": 5}}
    manifest = {
        "fingerprint": "0" * 64,
        "recipe": {"format": "pycooldown.packed/1"},
        "tokenizer": {"file": "tokenizer.model", "vocabulary_size": 300, **special},
        "domains": domains,
        "files": files,
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def edit(folder, place, value):
    """Set the entry at a place. The value `None` removes it."""
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    *parents, last = place
    entry = manifest
    for key in parents:
        entry = entry[key]
    if value is None:
        del entry[last]
    else:
        entry[last] = value
    path.write_text(json.dumps(manifest))


TRAIN = ("domains", "de", "train")
FIRST, SECOND = "de/train-000000.tar", "de/train-000001.tar"


def test_a_sound_folder_is_loaded(packed):
    manifest = load_manifest(packed, verify_hashes=True)
    assert manifest.sizes() == {"de": 7, "fa": 5}
    assert manifest.tokens("validation") == {"de": 12, "fa": 6}
    assert manifest.tokenizer.tag_ids == {"de": 4, "fa": 5}
    dataset = manifest.dataset("train", ["fa", "de"])
    assert dataset.sizes == {"fa": 5, "de": 7}
    assert manifest.dataset().domains == ("de", "fa")
    with pytest.raises(ValueError, match="has no domain 'xx'; expected some of de, fa"):
        manifest.dataset("train", ["xx"])


def test_samples_are_compared_shard_by_shard(packed):
    """Counts are compared per shard: one sample more here and one fewer there is found, although totals agree."""
    edit(packed, (*TRAIN, "shards"), {FIRST: 3, SECOND: 4})
    manifest = load_manifest(packed)
    with pytest.raises(ValueError, match=r"de/train-000000\.tar has 4 samples; .*manifest\.json says 3; run"):
        manifest.dataset()
    assert len(manifest.dataset("validation")) == 3


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (("files",), None, "files: Field required"),
        (("fingerprint",), "abc", "fingerprint = 'abc'"),
        (("domains",), {}, r"domains = \{\}"),
        (("domains", "de"), {}, "domains.de.train: Field required"),
        (("domains", ""), {}, "domains"),
        ((*TRAIN, "samples"), 0, "domains.de.train.samples = 0"),
        ((*TRAIN, "samples"), -7, "domains.de.train.samples = -7"),
        ((*TRAIN, "samples"), 8, "domains.de.train.samples = 8; its shards have 7"),
        ((*TRAIN, "samples"), 7.0, "domains.de.train.samples = 7.0"),
        ((*TRAIN, "samples"), "7", "domains.de.train.samples = '7'"),
        ((*TRAIN, "samples"), True, "domains.de.train.samples = True"),
        ((*TRAIN, "samples"), 10**40, "domains.de.train.samples = 1000000000"),
        ((*TRAIN, "src_tokens"), 0, "domains.de.train.src_tokens = 0; expected BOS and EOS"),
        ((*TRAIN, "tgt_tokens"), -1, "domains.de.train.tgt_tokens = -1"),
        ((*TRAIN, "shards"), {}, "domains.de.train.samples = 7; its shards have 0"),
        ((*TRAIN, "shards", FIRST), 0, "domains.de.train.shards.de/train-000000.tar = 0"),
        ((*TRAIN, "shards", FIRST), 10**9, "de/train-000000.tar = 1000000000 samples; more than fit into its bytes"),
        ((*TRAIN, "shards", "de/other.tar"), 3, "domains.de.train.shards has 'de/other.tar', which is not among files"),
        ((*TRAIN, "shards", "fa/train-000000.tar"), 5, "its shards have 12"),
        ((*TRAIN, "shards", "../outside.tar"), 3, "outside.tar.*expected the path of a file inside the folder"),
        (("files", "/etc/passwd"), {"bytes": 3, "sha256": "0" * 64}, "expected the path of a file inside the folder"),
        (("files", "de/../../x"), {"bytes": 3, "sha256": "0" * 64}, "expected the path of a file inside the folder"),
        (("files", "a\0b"), {"bytes": 3, "sha256": "0" * 64}, "expected the path of a file inside the folder"),
        (("files", FIRST, "bytes"), -1, "files.de/train-000000.tar.bytes = -1"),
        (("files", FIRST, "sha256"), "XYZ", "files.de/train-000000.tar.sha256 = 'XYZ'"),
        (("tokenizer", "file"), "other.model", "tokenizer.file = 'other.model' is not among files"),
        (("tokenizer", "vocabulary_size"), 0, "tokenizer.vocabulary_size = 0"),
        (("tokenizer", "pad_id"), 300, "tokenizer.pad_id = 300; expected an id below vocabulary_size = 300"),
        (("tokenizer", "tag_ids", "de"), 999, "tokenizer.tag_ids.de = 999; expected an id below"),
        (("tokenizer", "tag_ids"), [], r"tokenizer.tag_ids = \[\]"),
        (("recipe",), {}, "recipe.format: Field required"),
        (("recipe",), [], "recipe"),
    ],
)
def test_wrong_entries_are_named(packed, place, value, message):
    edit(packed, place, value)
    with pytest.raises(ValueError, match=message) as caught:
        load_manifest(packed)
    assert "run `pycooldown pack` again" in str(caught.value)
    assert len(str(caught.value)) < 2000


def test_one_shard_belongs_to_one_split(packed):
    shards = {FIRST: 4, SECOND: 3, "fa/train-000000.tar": 5}
    edit(packed, TRAIN, {"samples": 12, "src_tokens": 36, "tgt_tokens": 36, "shards": shards})
    with pytest.raises(ValueError, match=r"fa\.train\.shards has 'fa/train-000000\.tar', which domains\.de\.train has"):
        load_manifest(packed)


def test_a_link_out_of_the_folder_is_refused(packed, tmp_path):
    os.replace(packed / FIRST, tmp_path / "outside.tar")
    (packed / FIRST).symlink_to(tmp_path / "outside.tar")
    with pytest.raises(ValueError, match=r"train-000000\.tar is a link that leads out of the folder"):
        load_manifest(packed)


@pytest.mark.parametrize("content", ["[" * 200_000, '{"a":' * 200_000, '{"a": NaN', "1" * 10_000])
def test_hostile_json_is_an_error(packed, content):
    (packed / "manifest.json").write_text(content)
    with pytest.raises(ValueError, match=r"manifest\.json is not UTF-8 JSON"):
        load_manifest(packed)


def test_what_is_no_file_is_refused(packed):
    path = packed / "manifest.json"
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(OSError, match="no regular file"):
        load_manifest(packed)
    path.unlink()
    Path(path).touch()
    os.truncate(path, 1 << 40)
    with pytest.raises(OSError, match="expected at most"):
        load_manifest(packed)
