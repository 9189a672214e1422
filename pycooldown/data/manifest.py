"""The manifest of packed data: which shards every domain has, with counts and hashes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pycooldown.data.publish import sha256

FORMAT = "pycooldown.packed/1"
FILENAME = "manifest.json"
AGAIN = "run `pycooldown pack` again: it rebuilds whatever is not as recorded"


@dataclass(frozen=True)
class Shard:
    """One tar file.

    Attributes:
        path: where it is.
        samples: number of samples in it.
        size: bytes.
        sha256: of the whole file, hexadecimal.
    """

    path: Path
    samples: int
    size: int
    sha256: str


@dataclass(frozen=True)
class Split:
    """The shards of one domain for training or validation, with the tokens in them (BOS, EOS and tags included)."""

    samples: int
    src_tokens: int
    tgt_tokens: int
    shards: tuple[Shard, ...]


@dataclass(frozen=True)
class Tokenizer:
    """The SentencePiece model that the shards were encoded with.

    Attributes:
        path: the model file.
        vocabulary_size: number of ids, special ones and bytes included.
        pad_id: an id that never occurs in the shards, for padding.
        bos_id: first id of every ``src`` and ``tgt``.
        eos_id: last id of every ``src`` and ``tgt``.
        tag_ids: id that follows BOS in ``src``, by domain; empty if packed without tags.
    """

    path: Path
    vocabulary_size: int
    pad_id: int
    bos_id: int
    eos_id: int
    tag_ids: Mapping[str, int]


@dataclass(frozen=True)
class Manifest:
    """What a folder of packed data holds.

    Attributes:
        folder: the folder.
        fingerprint: SHA-256 over the inputs and options that the shards were made from.
        tokenizer: the model they were encoded with.
        domains: ``{domain: {"train": Split, "validation": Split}}``.
    """

    folder: Path
    fingerprint: str
    tokenizer: Tokenizer
    domains: Mapping[str, Mapping[str, Split]]

    def sizes(self, split: str = "train") -> dict[str, int]:
        """Number of samples of each domain."""
        return {domain: part.samples for domain, part in self._parts(split).items()}

    def tokens(self, split: str = "train") -> dict[str, int]:
        """Number of tokens of each domain, ``src`` and ``tgt`` together."""
        return {domain: part.src_tokens + part.tgt_tokens for domain, part in self._parts(split).items()}

    def shards(self, split: str = "train") -> dict[str, list[Path]]:
        """Tar files of each domain, in order."""
        return {domain: [shard.path for shard in part.shards] for domain, part in self._parts(split).items()}

    def _parts(self, split: str) -> dict[str, Split]:
        if split not in ("train", "validation"):
            raise ValueError(f"split = {split!r}; expected 'train' or 'validation'")
        return {domain: splits[split] for domain, splits in self.domains.items()}


def load_manifest(folder: Path, *, verify_hashes: bool = False) -> Manifest:
    """Read ``folder/manifest.json`` and check that every file it names is there with the recorded size.

    Args:
        folder: a folder that :func:`pycooldown.data.pack.pack` wrote.
        verify_hashes: also read every file and compare its SHA-256, which finds damage that keeps the size.

    Raises:
        FileNotFoundError: if there is no manifest, as after an interrupted run, or a shard is missing.
        ValueError: if the manifest is malformed or of another format version, or a file was truncated or changed.
    """
    path = folder / FILENAME
    try:
        raw = json.loads(path.read_bytes().decode("utf-8"))
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{path} is missing: no complete packed data here; {AGAIN}") from error
    except ValueError as error:
        raise ValueError(f"{path} is not UTF-8 JSON ({error}); {AGAIN}") from error
    if not isinstance(raw, dict):
        raise ValueError(f"{path} holds a JSON {type(raw).__name__}; expected an object; {AGAIN}")
    try:
        if (found := raw["recipe"]["format"]) != FORMAT:
            raise ValueError(f"{path} has format {found!r}; expected {FORMAT!r}; {AGAIN}")
        manifest = _parse(folder, raw)
        files = {folder / name: (int(entry["bytes"]), str(entry["sha256"])) for name, entry in raw["files"].items()}
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} lacks an entry or has one of the wrong type ({error!r}); {AGAIN}") from error
    for file, (size, digest) in files.items():
        if not file.is_file():
            raise FileNotFoundError(f"{file} is missing; {AGAIN}")
        if (found := file.stat().st_size) != size:
            raise ValueError(f"{file} has {found} bytes; expected {size}; {AGAIN}")
        if verify_hashes and (found := sha256(file)) != digest:
            raise ValueError(f"{file} has SHA-256 {found}; expected {digest}; {AGAIN}")
    return manifest


def _parse(folder: Path, raw: dict[str, Any]) -> Manifest:
    def split(entry: dict[str, Any]) -> Split:
        shards = (
            Shard(folder / name, int(samples), raw["files"][name]["bytes"], raw["files"][name]["sha256"])
            for name, samples in entry["shards"].items()
        )
        return Split(int(entry["samples"]), int(entry["src_tokens"]), int(entry["tgt_tokens"]), tuple(shards))

    domains = {
        domain: {"train": split(splits["train"]), "validation": split(splits["validation"])}
        for domain, splits in raw["domains"].items()
    }
    tokenizer = dict(raw["tokenizer"])
    tokenizer["path"] = folder / tokenizer.pop("file")
    return Manifest(folder, str(raw["fingerprint"]), Tokenizer(**tokenizer), domains)
