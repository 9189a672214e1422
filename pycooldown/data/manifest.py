"""The manifest of packed data: the shards of every domain, with counts and hashes."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

from pycooldown._extras import require
from pycooldown._files import read_bounded, sha256
from pycooldown.data.publish import MAX_MANIFEST, check_sealed
from pycooldown.data.shards import TarDataset

require("data", "pydantic")

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError  # noqa: E402

FORMAT = "pycooldown.packed/1"
FILENAME = "manifest.json"
AGAIN = "run `pycooldown pack` again: it rebuilds every file that differs from the record"

SplitName = Literal["train", "validation"]


@dataclass(frozen=True)
class Shard:
    """One tar file.

    Attributes:
        path: Where it is.
        samples: Number of samples in it.
        size: Its size in bytes.
        sha256: SHA-256 of the whole file, hexadecimal.
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
        path: The model file.
        vocabulary_size: Number of ids, special ones and bytes included.
        pad_id: An id that never occurs in the shards, for padding.
        bos_id: First id of every `src` and `tgt`.
        eos_id: Last id of every `src` and `tgt`.
        tag_ids: The id that follows BOS in `src`, by domain; empty if packed without tags.
    """

    path: Path
    vocabulary_size: int
    pad_id: int
    bos_id: int
    eos_id: int
    tag_ids: Mapping[str, int]


@dataclass(frozen=True)
class Manifest:
    """The contents of a folder of packed data.

    Attributes:
        folder: The folder.
        fingerprint: SHA-256 over the inputs and options that the shards were made from.
        tokenizer: The model they were encoded with.
        domains: The splits of each domain, `{domain: {"train": Split, "validation": Split}}`.
    """

    folder: Path
    fingerprint: str
    tokenizer: Tokenizer
    domains: Mapping[str, Mapping[str, Split]]

    def sizes(self, split: str = "train") -> dict[str, int]:
        """Return the number of samples of each domain."""
        return {domain: part.samples for domain, part in self._parts(split).items()}

    def tokens(self, split: str = "train") -> dict[str, int]:
        """Return the number of tokens of each domain, `src` and `tgt` together."""
        return {domain: part.src_tokens + part.tgt_tokens for domain, part in self._parts(split).items()}

    def shards(self, split: str = "train") -> dict[str, list[Path]]:
        """Return the tar files of each domain, in order."""
        return {domain: [shard.path for shard in part.shards] for domain, part in self._parts(split).items()}

    def dataset(self, split: str = "train", domains: Iterable[str] | None = None) -> TarDataset:
        """Open the shards of some domains.

        Args:
            split: `"train"` or `"validation"`.
            domains: Which domains, in this order; `None` for all.

        Raises:
            ValueError: If a domain is unknown, or a shard is damaged or has another number of samples than the
                manifest says; the message names it.
            OSError: If a shard cannot be read.
        """
        parts = self._parts(split)
        chosen = list(parts) if domains is None else list(domains)
        if unknown := [domain for domain in chosen if domain not in parts]:
            raise ValueError(f"{self.folder} has no domain {unknown[0]!r}; expected some of {', '.join(parts)}")
        dataset = TarDataset({domain: [shard.path for shard in parts[domain].shards] for domain in chosen})
        for domain in chosen:
            for shard, found in zip(parts[domain].shards, dataset.shard_sizes[domain], strict=True):
                if found != shard.samples:
                    raise ValueError(
                        f"{shard.path} has {found} samples; {self.folder / FILENAME} says {shard.samples}; {AGAIN}"
                    )
        return dataset

    def _parts(self, split: str) -> dict[str, Split]:
        if split not in ("train", "validation"):
            raise ValueError(f"split = {split!r}; expected 'train' or 'validation'")
        return {domain: splits[split] for domain, splits in self.domains.items()}


def load_manifest(folder: Path, *, verify_hashes: bool = False) -> Manifest:
    """Read `folder/manifest.json` and check that every file it names is there with the recorded size.

    Every value is checked: names of files stay inside the folder, counts are positive and agree with each other and
    with the sizes of the files, and all values agree with their checksum. `Manifest.dataset` compares the number of
    samples of each shard.

    Args:
        folder: A folder written by `pycooldown.data.pack.pack`.
        verify_hashes: Also read every file and compare its SHA-256, which finds damage that keeps the size.

    Raises:
        FileNotFoundError: If there is no manifest, as after an interrupted run, or a shard is missing.
        ValueError: If the manifest is malformed, of another format version or edited, or a file was truncated or
            changed; the message names the entry or the file.
    """
    path = folder / FILENAME
    try:
        raw = json.loads(read_bounded(path, MAX_MANIFEST).decode("utf-8"))
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{path} is missing: no complete packed data here; {AGAIN}") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not UTF-8 JSON ({error}); {AGAIN}") from error
    if not isinstance(raw, dict):
        raise ValueError(f"{path} holds a JSON {type(raw).__name__}; expected an object; {AGAIN}")
    recipe = raw.get("recipe")
    if isinstance(recipe, dict) and (found := recipe.get("format", FORMAT)) != FORMAT:
        raise ValueError(f"{path} has format {found!r:.200}; expected {FORMAT!r}; {AGAIN}")
    try:
        content = _Content.model_validate(raw)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(key) for key in first["loc"])
        value = "" if first["type"] == "missing" else f" = {first['input']!r:.200}"
        raise ValueError(f"{path}: {where}{value}: {first['msg']}; {AGAIN}") from None
    if fault := _disagreement(content):
        raise ValueError(f"{path}: {fault}; {AGAIN}")
    check_sealed(path, raw, AGAIN)
    for name, entry in content.files.items():
        _check_file(folder, name, entry, verify_hashes)
    return _manifest(folder, content)


def _inside(name: str) -> str:
    path = PurePosixPath(name)
    if not name or "\0" in name or path.is_absolute() or ".." in path.parts or str(path) != name:
        raise ValueError("expected the path of a file inside the folder")
    return name


FileCount = Annotated[int, Field(ge=0, lt=2**48)]
Id = Annotated[int, Field(ge=0, lt=2**31)]
FileName = Annotated[str, AfterValidator(_inside)]
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
DomainName = Annotated[str, Field(min_length=1)]


class _Strict(BaseModel):
    """A model whose numbers must be JSON integers, not strings or booleans. Entries of later versions are ignored."""

    model_config = ConfigDict(strict=True, frozen=True)


class _Recipe(_Strict):
    format: Literal["pycooldown.packed/1"]


class _File(_Strict):
    bytes: FileCount
    sha256: Sha256


class _Split(_Strict):
    samples: Annotated[FileCount, Field(ge=1)]
    src_tokens: FileCount
    tgt_tokens: FileCount
    shards: dict[FileName, Annotated[FileCount, Field(ge=1)]]


class _Splits(_Strict):
    train: _Split
    validation: _Split


class _Tokenizer(_Strict):
    file: FileName
    vocabulary_size: Annotated[Id, Field(ge=1)]
    pad_id: Id
    bos_id: Id
    eos_id: Id
    tag_ids: dict[str, Id]


class _Content(_Strict):
    recipe: _Recipe
    fingerprint: Sha256
    tokenizer: _Tokenizer
    domains: Annotated[dict[DomainName, _Splits], Field(min_length=1)]
    files: dict[FileName, _File]


def _disagreement(content: _Content) -> str | None:
    """Return the first entry that contradicts another one, with the reason."""
    tokenizer = content.tokenizer
    if tokenizer.file not in content.files:
        return f"tokenizer.file = {tokenizer.file!r} is not among files"
    ids = {"pad_id": tokenizer.pad_id, "bos_id": tokenizer.bos_id, "eos_id": tokenizer.eos_id}
    ids |= {f"tag_ids.{domain}": tag for domain, tag in tokenizer.tag_ids.items()}
    for name, value in ids.items():
        if value >= tokenizer.vocabulary_size:
            return f"tokenizer.{name} = {value}; expected an id below vocabulary_size = {tokenizer.vocabulary_size}"
    owners: dict[str, str] = {}
    for domain, splits in content.domains.items():
        for name, split in (("train", splits.train), ("validation", splits.validation)):
            entry = f"domains.{domain}.{name}"
            for shard, samples in split.shards.items():
                if shard not in content.files:
                    return f"{entry}.shards has {shard!r}, which is not among files"
                if shard in owners:
                    return f"{entry}.shards has {shard!r}, which {owners[shard]} has too"
                owners[shard] = entry
                # A sample has two members, and each of them a header of 512 bytes and data.
                if samples * 2048 > content.files[shard].bytes:
                    return f"{entry}.shards.{shard} = {samples} samples; more than fit into its bytes"
            if (total := sum(split.shards.values())) != split.samples:
                return f"{entry}.samples = {split.samples}; its shards have {total}"
            for side in ("src_tokens", "tgt_tokens"):
                if getattr(split, side) < 2 * split.samples:
                    return f"{entry}.{side} = {getattr(split, side)}; expected BOS and EOS in each of the samples"
    return None


def _check_file(folder: Path, name: str, entry: _File, verify_hash: bool) -> None:
    file = folder / name
    if not file.is_file():
        raise FileNotFoundError(f"{file} is missing; {AGAIN}")
    if not file.resolve().is_relative_to(folder.resolve()):
        raise ValueError(f"{file} is a link that leads out of the folder; {AGAIN}")
    if (size := file.stat().st_size) != entry.bytes:
        raise ValueError(f"{file} has {size} bytes; expected {entry.bytes}; {AGAIN}")
    if verify_hash and (digest := sha256(file)) != entry.sha256:
        raise ValueError(f"{file} has SHA-256 {digest}; expected {entry.sha256}; {AGAIN}")


def _manifest(folder: Path, content: _Content) -> Manifest:
    def split(entry: _Split) -> Split:
        shards = (
            Shard(folder / name, samples, content.files[name].bytes, content.files[name].sha256)
            for name, samples in entry.shards.items()
        )
        return Split(entry.samples, entry.src_tokens, entry.tgt_tokens, tuple(shards))

    domains = {
        domain: {"train": split(splits.train), "validation": split(splits.validation)}
        for domain, splits in content.domains.items()
    }
    fields: dict[str, Any] = content.tokenizer.model_dump()
    tokenizer = Tokenizer(path=folder / fields.pop("file"), **fields)
    return Manifest(folder, content.fingerprint, tokenizer, domains)
