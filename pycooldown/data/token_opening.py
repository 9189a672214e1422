"""Open the files of each domain of a `TokenDataset`, on this machine or in stores."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from pycooldown.data.shard_lists import list_shards
from pycooldown.data.stored_tokens import StoredShard, fetch_manifest, find_stored_shards
from pycooldown.data.stores import is_url
from pycooldown.data.subprocess_call import call_apart
from pycooldown.data.token_file import TokenFile
from pycooldown.data.token_manifest import load_token_manifest, read_token_manifest
from pycooldown.data.token_shards import open_stored_shard, open_token_shard

__all__ = ["Source", "open_sources"]

Source = str | os.PathLike[str] | TokenFile


def open_sources(
    sources: str | os.PathLike[str] | Mapping[str, Source | Iterable[Source]],
    split: str,
    domains: Collection[str] | None,
    vocabulary_size: int | None,
) -> tuple[dict[str, list[TokenFile]], int | None]:
    """Return the files of each domain, and the number of token ids if it is known.

    Stores are asked in a separate process, so that this one can still fork workers that read from them.
    """
    if isinstance(sources, Mapping):
        if split != "train":
            raise ValueError(f"split = {split!r}: sources by domain have no splits; pass the sources of that split")
        given = {domain: _listed(one) for domain, one in _chosen(sources, domains).items()}
        return _open(given), vocabulary_size
    remote = is_url(sources) and not os.path.exists(sources)
    folder = os.fspath(sources).rstrip("/") if remote else os.fspath(sources)
    manifest = read_token_manifest(call_apart(fetch_manifest, folder)) if remote else load_token_manifest(Path(folder))
    known = manifest.tokenizer["vocabulary_size"]
    if vocabulary_size is not None and vocabulary_size < known:
        raise ValueError(f"vocabulary_size = {vocabulary_size}, but the tokenizer of {sources} has {known} ids")
    entries = {}
    for domain, splits in _chosen(manifest.domains, domains).items():
        if split not in splits:
            raise ValueError(f"split = {split!r}; {sources} has {', '.join(splits)} of {domain!r}")
        entries[domain] = splits[split].shards
    if not remote:
        return {domain: [entry.open() for entry in shards] for domain, shards in entries.items()}, known
    urls = {
        domain: [f"{folder}/{entry.path.relative_to(manifest.folder).as_posix()}" for entry in shards]
        for domain, shards in entries.items()
    }
    files = _open(urls)
    for domain, shards in entries.items():
        for entry, file in zip(shards, files[domain]):
            entry.check(file)
    return files, known


def _chosen(every: Mapping[str, Any], domains: Collection[str] | None) -> dict[str, Any]:
    names = list(every if domains is None else domains)
    if not names or isinstance(domains, str) or not set(names) <= every.keys() or len(set(names)) < len(names):
        raise ValueError(f"domains = {domains!r}; expected some of {', '.join(every)}, each once")
    return {name: every[name] for name in names}


def _listed(given: Source | Iterable[Source]) -> list[Source]:
    return [given] if isinstance(given, str | os.PathLike | TokenFile) else list(given)


def _open(given: Mapping[str, list[Any]]) -> dict[str, list[TokenFile]]:
    """Open the sources of each domain, which are either all local or all in stores."""
    remote = {
        isinstance(one, str) and is_url(one) and not os.path.exists(one) for many in given.values() for one in many
    }
    if remote == {True}:
        found: dict[str, list[StoredShard]] = call_apart(find_stored_shards, list_shards(given))
        return {domain: [open_stored_shard(*one) for one in shards] for domain, shards in found.items()}
    if True in remote:
        raise ValueError(
            "some sources are in stores and others are local files; copy one kind to the other place, or leave it out"
        )
    return {domain: [_file(one) for one in many] for domain, many in given.items()}


def _file(source: Source) -> TokenFile:
    if isinstance(source, TokenFile):
        return source
    if not os.fspath(source).endswith(".tar"):
        raise ValueError(
            f"{os.fspath(source)} is no .tar; open files of other projects by pycooldown.data.token_sources first, "
            "for example token_sources.megatron(prefix)"
        )
    return open_token_shard(source)
