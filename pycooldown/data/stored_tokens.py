"""Find shards of tokens in object stores, and keep local copies of the sidecars with the ends of documents."""

from __future__ import annotations

import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from pycooldown._files import write_atomically
from pycooldown.data.dataset_index import cache_folder, digest
from pycooldown.data.shard_lists import find_shards
from pycooldown.data.stores import StoredObject, find_object, open_binary
from pycooldown.data.token_shards import ENDS_SUFFIX, scan_token_shard

__all__ = ["StoredShard", "fetch_manifest", "find_stored_shards"]

QUESTIONS = 16  # parallel requests to a store


class StoredShard(NamedTuple):
    """A shard in a store.

    Attributes:
        shard: The tar.
        sidecar: Path of the local copy of its sidecar.
    """

    shard: StoredObject
    sidecar: str


def find_stored_shards(lists: Mapping[str, list[str]]) -> dict[str, list[StoredShard]]:
    """Look up shards, and copy their sidecars into the user's cache folder unless they are there.

    If a store has no sidecar, it is made from the tar, which is read completely.

    Args:
        lists: URLs by domain, as `pycooldown.data.shard_lists.list_shards` returns them.

    Raises:
        OSError: If something is missing or cannot be read.
        ValueError: If an object is no shard of tokens.
    """
    found = find_shards(lists, workers=QUESTIONS)
    with ThreadPoolExecutor(QUESTIONS) as pool:
        return {
            domain: list(map(StoredShard, shards, pool.map(_fetch_sidecar, shards)))
            for domain, every in found.items()
            for shards in [[shard for shard in every if not shard.url.endswith(ENDS_SUFFIX)]]
        }


def _fetch_sidecar(shard: StoredObject) -> str:
    if not shard.url.endswith(".tar"):
        raise ValueError(f"{shard.url} is no .tar; in stores, expected only shards written by `pycooldown tokenize`")
    path = os.path.join(cache_folder("ends"), digest(f"{shard.url} {shard.version} {shard.size}") + ENDS_SUFFIX)
    if os.path.exists(path):
        return path
    url = shard.url + ENDS_SUFFIX
    if (found := find_object(url)) is None:
        content = scan_token_shard(shard.url)
    else:
        with open_binary(url, found.version) as stream:
            content = stream.read()
    write_atomically(path, content, durable=False)
    return path


def fetch_manifest(folder: str) -> Path:
    """Copy the manifest of a folder in a store, and return the local folder with the copy.

    Raises:
        OSError: If it is missing or cannot be read.
    """
    url = f"{folder}/manifest.json"
    if find_object(url) is None:
        raise FileNotFoundError(
            f"{url} is missing: no complete folder of tokens there; run `pycooldown tokenize` again"
        )
    with open_binary(url) as stream:
        content = stream.read()
    here = Path(cache_folder("manifests"), digest(folder))
    here.mkdir(exist_ok=True)
    write_atomically(here / "manifest.json", content, durable=False)
    return here
