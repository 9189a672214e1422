"""Find, check and rebuild index files beside tar shards."""

from __future__ import annotations

import contextlib
import errno
import os
import stat

from pycooldown._core import TarIndex, TarIndexWriter, TarReader
from pycooldown._files import read_bounded, write_atomically

__all__ = ["TarIndex", "TarIndexWriter", "TarReader", "count_samples", "load_index"]

_OURS = b"pycdidx"  # every version begins with it
_HEADER = 80  # bytes of an index file that include its number of samples


def load_index(shard: str, *, write: bool = True) -> TarIndex:
    """Return the index of a tar shard: `<shard>.idx` if it belongs to this shard, or else a scan of its headers.

    A scan is written to `<shard>.idx` for the next time. The file is renamed into place, so a reader finds a complete
    index or none. An index of an older state of the shard is replaced. It is older if size or modification time differ,
    or if one of the compared headers or data differs. An index written by version 0.2 is used without that comparison;
    other format versions are replaced.

    Other things with that name are left alone: a file of another tool or one that cannot be read, a folder, a pipe.
    Then the index is kept in memory, and the next process scans again. The same happens if the folder is not writable.

    Args:
        shard: Path of an uncompressed tar file.
        write: Whether to write a scan beside the shard.

    Returns:
        The index; `index.faults` lists `(0, offset, reason)` for each part of the shard that cannot be read.

    Raises:
        OSError: If the shard cannot be read or changes while it is scanned.
        ValueError: If `<shard>.idx` belongs to this shard but is damaged.
    """
    path = shard + ".idx"
    status = os.stat(shard)
    try:
        stored = read_bounded(path, _largest_index(status.st_size))
        replaceable = not stored or stored.startswith(_OURS)
    except OSError as error:
        stored, replaceable = b"", error.errno == errno.ENOENT or (error.errno == errno.EFBIG and _is_ours(path))
    if stored:
        try:
            index = TarIndex.from_bytes(stored, status.st_size, status.st_mtime_ns)
        except ValueError as error:
            raise ValueError(f"{path}: {error}; delete this file, and it will be made again") from None
        if index is not None and index.has_fingerprint(0, os.fsencode(shard)):
            return index
    index = TarIndex.scan(os.fsencode(shard))
    if write and replaceable:
        # With a read-only data folder, the index in memory is enough.
        with contextlib.suppress(OSError):
            write_atomically(path, index.to_bytes(), durable=False)
    return index


def count_samples(shard: str) -> int | None:
    """Return a tar shard's number of samples from the head of its index; `None` without an index or with faults.

    Raises:
        OSError: If there is no such shard.
    """
    status = os.stat(shard)
    return TarIndex.count(_head(shard + ".idx"), status.st_size, status.st_mtime_ns)


def _largest_index(shard_size: int) -> int:
    """Return an upper bound on the bytes of an index of such a shard.

    A header of 512 bytes gives at most 300 bytes of rows and lengths. Its name may be longer, but it is in the shard
    too and at most three times in the index: in a key, an extension and a fault.
    """
    return 4096 + 4 * shard_size


def _head(path: str) -> bytes:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return b""
    try:
        return os.read(descriptor, _HEADER) if stat.S_ISREG(os.fstat(descriptor).st_mode) else b""
    finally:
        os.close(descriptor)


def _is_ours(path: str) -> bool:
    return _head(path).startswith(_OURS)
