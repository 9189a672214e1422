"""Read and check the manifest of a folder of tokens; `pycooldown.data.token_shards` describes its content."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pycooldown._files import read_bounded
from pycooldown.data.publish import MAX_MANIFEST, check_sealed, sha256
from pycooldown.data.token_file import TokenFile
from pycooldown.data.token_shards import ENDS_SUFFIX, FORMAT, open_token_shard

__all__ = ["ShardEntry", "TokenManifest", "TokenSplit", "load_token_manifest", "read_token_manifest"]

_AGAIN = "run `pycooldown tokenize` again: it makes missing or altered files"


@dataclass(frozen=True)
class ShardEntry:
    """One shard as recorded; `TokenShardRecord` describes the numbers."""

    path: Path
    documents: int
    tokens: int
    bytes: int
    sha256: str
    ends_bytes: int
    ends_sha256: str

    def open(self) -> TokenFile:
        """Open the shard and check its counts.

        Raises:
            OSError: If it cannot be read.
            ValueError: If it is damaged or not what was recorded.
        """
        file = open_token_shard(self.path)
        self.check(file)
        return file

    def check(self, file: TokenFile) -> None:
        """Compare an opened shard with what was recorded.

        Raises:
            ValueError: If it is not that.
        """
        if file.size != self.bytes:
            raise ValueError(f"{file.path} has {file.size} bytes; expected {self.bytes}; {_AGAIN}")
        if (found := (file.documents, file.tokens)) != (self.documents, self.tokens):
            raise ValueError(
                f"{file.path} has {found[0]} documents and {found[1]} tokens; the manifest says {self.documents} and "
                f"{self.tokens}; {_AGAIN}"
            )


@dataclass(frozen=True)
class TokenSplit:
    """One domain for training or validation; `characters` and `bytes` are those of its text."""

    documents: int
    tokens: int
    characters: int
    bytes: int
    shards: tuple[ShardEntry, ...]


@dataclass(frozen=True)
class TokenManifest:
    """The contents of a folder of tokens.

    Attributes:
        folder: The folder.
        tokenizer: As in the manifest; `file` is the path of the tokenizer, `vocabulary_size` its number of ids.
        domains: Splits by domain and name of the split.
    """

    folder: Path
    tokenizer: Mapping[str, Any]
    domains: Mapping[str, Mapping[str, TokenSplit]]


def load_token_manifest(folder: Path, *, verify_hashes: bool = False) -> TokenManifest:
    """Read `folder/manifest.json`, and check that every shard it names is there with the recorded size.

    Args:
        folder: A folder written by `pycooldown tokenize`.
        verify_hashes: Also read every file and compare its SHA-256, which finds damage that keeps the size.

    Raises:
        FileNotFoundError: If there is no manifest, or a shard is missing. A missing sidecar is made again.
        OSError: If the manifest cannot be read or is no regular file.
        ValueError: If the manifest is malformed, of another format, edited or refers to files outside the folder, its
            sums are wrong, or a file is not as recorded.
    """
    manifest = read_token_manifest(folder)
    for splits in manifest.domains.values():
        for part in splits.values():
            for shard in part.shards:
                _check_files(shard, verify_hashes)
    return manifest


def read_token_manifest(folder: Path) -> TokenManifest:
    """Read `folder/manifest.json`, without checking the files that it names.

    Raises:
        FileNotFoundError: If there is no manifest.
        OSError: If the manifest cannot be read or is no regular file.
        ValueError: If the manifest is malformed, of another format, edited or refers to files outside the folder, or
            its sums are wrong.
    """
    path = folder / "manifest.json"
    try:
        raw = json.loads(read_bounded(path, MAX_MANIFEST).decode("utf-8"))
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{path} is missing: no complete folder of tokens here; {_AGAIN}") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not UTF-8 JSON ({error}); {_AGAIN}") from error
    if not isinstance(raw, dict) or raw.get("format") != FORMAT:
        found = repr(raw.get("format")) if isinstance(raw, dict) else f"a JSON {type(raw).__name__}"
        raise ValueError(f"{path} has format {found}; expected {FORMAT!r}; {_AGAIN}")
    try:
        manifest = TokenManifest(
            folder,
            _tokenizer(folder, raw["tokenizer"]),
            {
                domain: {split: _split(folder, domain, split, entry) for split, entry in splits.items()}
                for domain, splits in raw["domains"].items()
            },
        )
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"{path} lacks an entry or has a wrong one ({error!r}); {_AGAIN}") from error
    check_sealed(path, raw, _AGAIN)
    return manifest


def _check_files(shard: ShardEntry, verify_hashes: bool) -> None:
    sidecar = Path(f"{shard.path}{ENDS_SUFFIX}")
    for path, size, digest in (
        (shard.path, shard.bytes, shard.sha256),
        (sidecar, shard.ends_bytes, shard.ends_sha256),
    ):
        if path == sidecar and not path.exists():
            continue
        if not path.is_file():
            raise FileNotFoundError(f"{path} is missing; {_AGAIN}")
        if (found := path.stat().st_size) != size:
            raise ValueError(f"{path} has {found} bytes; expected {size}; {_AGAIN}")
        if verify_hashes and (found_digest := sha256(path)) != digest:
            raise ValueError(f"{path} has SHA-256 {found_digest}; expected {digest}; {_AGAIN}")


def _tokenizer(folder: Path, raw: Mapping[str, Any]) -> dict[str, Any]:
    size = _count(raw, "vocabulary_size")
    for name in ("eos_id", "bos_id"):
        if raw.get(name) is not None and not 0 <= _count(raw, name) < size:
            raise ValueError(f"tokenizer has {name} = {raw[name]}, but {size} ids")
    return {**raw, "file": _inside(folder, raw["file"])}


def _split(folder: Path, domain: str, split: str, raw: Mapping[str, Any]) -> TokenSplit:
    shards = []
    for name, entry in sorted(raw["shards"].items()):
        if not name.startswith(f"{domain}/{split}-") or not name.endswith(".tar"):
            raise ValueError(f"shard {name!r} of {domain!r}; expected {domain}/{split}-000000.tar and so on")
        shards.append(
            ShardEntry(
                path=_inside(folder, name),
                documents=_count(entry, "documents"),
                tokens=_count(entry, "tokens"),
                bytes=_count(entry, "bytes"),
                sha256=str(entry["sha256"]),
                ends_bytes=_count(entry, "ends_bytes"),
                ends_sha256=str(entry["ends_sha256"]),
            )
        )
    counts = {key: _count(raw, key) for key in ("documents", "tokens", "characters", "bytes")}
    for key in ("documents", "tokens"):
        if (total := sum(getattr(shard, key) for shard in shards)) != counts[key]:
            raise ValueError(f"{split} of {domain!r} has {counts[key]} {key}, but its shards have {total}")
    return TokenSplit(**counts, shards=tuple(shards))


def _count(raw: Mapping[str, Any], key: str) -> int:
    value = raw[key]
    if type(value) is not int or value < 0:
        raise ValueError(f"{key} = {value!r}; expected a whole number >= 0")
    return value


def _inside(folder: Path, name: str) -> Path:
    path = folder / name
    if not path.resolve().is_relative_to(folder.resolve()):
        raise ValueError(f"{name!r} leads out of the folder")
    return path
