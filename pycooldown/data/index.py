"""Index files beside tar shards: found, checked, rebuilt."""

from __future__ import annotations

import contextlib
import errno
import os
import stat

from pycooldown._core import TarIndex, TarIndexWriter, TarReader
from pycooldown._files import read_bounded, write_atomically

__all__ = ["TarIndex", "TarIndexWriter", "TarReader", "count_samples", "load_index"]

_OURS = b"pycdidx"  # any version of it
_HEADER = 80  # bytes of an index file that say how many samples it lists


def load_index(shard: str, *, write: bool = True) -> TarIndex:
    """Return the index of a tar shard: that of `<shard>.idx` if it belongs to this shard, else a scan of its headers.

    A scan is written to `<shard>.idx` for the next time. It is written aside and renamed, so that a reader finds a
    whole index or none. An index of an older state of the shard is replaced: one of another size or modification time,
    or of other headers and data, of which some are compared. One that version 0.2 wrote is used, without that
    comparison; one of any other format version is replaced. What else has that name is left alone, be it a file of
    another tool or one that cannot be read, a folder or a pipe: the index is then kept in memory, and the next process
    scans again. The same holds where the folder cannot be written.

    Args:
        shard: Path of an uncompressed tar file.
        write: Leave a scan beside the shard.

    Returns:
        The index; `index.faults` lists `(0, offset, reason)` of what in the shard cannot be read.

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
            raise ValueError(f"{path}: {error}; delete it, and it will be made anew") from None
        if index is not None and index.has_fingerprint(0, os.fsencode(shard)):
            return index
    index = TarIndex.scan(os.fsencode(shard))
    if write and replaceable:
        # A read-only data folder is no reason to stop: the index in memory serves as well.
        with contextlib.suppress(OSError):
            write_atomically(path, index.to_bytes(), durable=False)
    return index


def count_samples(shard: str) -> int | None:
    """Return how many samples a tar shard has by the head of its index; `None` without an index, or with faults.

    Raises:
        OSError: If there is no such shard.
    """
    status = os.stat(shard)
    return TarIndex.count(_head(shard + ".idx"), status.st_size, status.st_mtime_ns)


def _largest_index(shard_size: int) -> int:
    """Bytes that no index of such a shard exceeds.

    A header of 512 bytes gives at most 300 bytes of rows and lengths; its name, which may be longer, stands in the
    shard as well and at most three times in the index: in a key, an extension and a fault.
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
