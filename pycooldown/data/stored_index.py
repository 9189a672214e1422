"""Copy an index of a data set from an object store to this machine."""

from __future__ import annotations

import os
import shutil

from pycooldown._files import open_atomically
from pycooldown.data.dataset_index import INDEX_NAME, cache_folder, digest, open_index
from pycooldown.data.index_building import locked
from pycooldown.data.stores import find_object, is_url, open_binary

__all__ = ["fetch_index"]


def fetch_index(url: str) -> str:
    """Copy an index into the user's cache folder, unless it has this version already; return its path.

    Args:
        url: URL of the index, or of a folder with a `dataset.idx`.

    Raises:
        OSError: If there is none, or it cannot be copied.
        ValueError: If it is damaged, or lists files instead of objects.
    """
    found = find_object(url) or find_object(url := f"{url.rstrip('/')}/{INDEX_NAME}")
    if found is None:
        raise FileNotFoundError(
            f"there is no index {url!r}; make one with `pycooldown index` and copy it there, or pass TarDataset a "
            "mapping from domains to shards"
        )
    path = os.path.join(cache_folder("indexes"), digest(f"{found.url} {found.version} {found.size}") + ".idx")
    with locked(os.path.dirname(path)):
        if not os.path.exists(path):
            with open_binary(url, found.version) as stream, open_atomically(path, durable=False) as file:
                shutil.copyfileobj(stream, file, 8 << 20)
    index = open_index(path)
    for shard in range(index.num_shards):
        if not is_url(index.path(shard)):
            raise ValueError(
                f"{url} lists the file {index.path(shard)!r}; an index in a store must list URLs: make it from the "
                "URLs of the objects"
            )
    return path
