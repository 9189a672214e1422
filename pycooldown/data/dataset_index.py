"""Find and open the common index of all shards of a data set, `dataset.idx`."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from typing import Any, overload

from pycooldown.data.index import TarIndex
from pycooldown.data.stores import StoredObject, is_url

__all__ = [
    "INDEX_NAME",
    "IndexedObjects",
    "cache_folder",
    "default_path",
    "digest",
    "find_index",
    "locate_shard",
    "open_index",
]

INDEX_NAME = "dataset.idx"


def find_index(path: str | os.PathLike[str]) -> str:
    """Return the absolute path of an index: of the file itself, or of `dataset.idx` in a folder.

    Raises:
        FileNotFoundError: If there is none.
    """
    path = os.path.abspath(path)
    if os.path.isdir(path):
        path = os.path.join(path, INDEX_NAME)
    if not os.path.exists(path):
        raise FileNotFoundError(
            f"{path} is missing; make it with `pycooldown index`, or pass TarDataset a mapping from domains to shards"
        )
    return path


def open_index(path: str) -> TarIndex:
    """Map an index of a data set.

    Raises:
        OSError: If it cannot be mapped.
        ValueError: If it is damaged or no such index.
    """
    try:
        index = TarIndex.map(os.fsencode(path))
    except ValueError as error:
        raise ValueError(f"{error}; delete it, and make it again with `pycooldown index`") from None
    if index is None or not index.path(0):
        raise ValueError(f"{path} is no index of a data set; make one with `pycooldown index`")
    names = [name for name, _, _ in index.domains]
    if len(set(names)) < len(names):
        raise ValueError(f"{path} is damaged: a domain occurs twice; make it again with `pycooldown index`")
    return index


def default_path(lists: Mapping[str, list[str]]) -> str:
    """Return the default path of the index of these shards, in the user's cache folder."""
    return os.path.join(cache_folder("indexes"), f"{digest(json.dumps(lists))}.idx")


def cache_folder(name: str) -> str:
    """Return a folder among the user's caches (`$XDG_CACHE_HOME/pycooldown`), creating it if it is missing."""
    root = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    folder = os.path.join(root, "pycooldown", name)
    os.makedirs(folder, exist_ok=True)
    return folder


def digest(text: str) -> str:
    """Return a file name that identifies a text."""
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:32]


class IndexedObjects(Sequence[StoredObject]):
    """The shards listed by an index, by number. Each object is made on request.

    Args:
        path: The index.

    Attributes:
        tar_index: The index, mapped.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self.tar_index = open_index(path)

    def __len__(self) -> int:
        return self.tar_index.num_shards

    @overload
    def __getitem__(self, number: int) -> StoredObject: ...
    @overload
    def __getitem__(self, number: slice) -> list[StoredObject]: ...
    def __getitem__(self, number: int | slice) -> StoredObject | list[StoredObject]:
        if isinstance(number, slice):
            return [self[i] for i in range(*number.indices(len(self)))]
        if not -len(self) <= number < len(self):
            raise IndexError(f"object {number} is out of range; expected 0 to {len(self) - 1}")
        number %= len(self)
        version = self.tar_index.version(number) or str(self.tar_index.shard_mtime_ns(number))
        return StoredObject(
            locate_shard(self.tar_index.path(number), self._path), self.tar_index.shard_size(number), version
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return IndexedObjects, (self._path,)


def locate_shard(name: str, index: str) -> str:
    """Return the path or URL of a shard that an index lists by this name."""
    return name if is_url(name) else os.path.join(os.path.dirname(index), name)
