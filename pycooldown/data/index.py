"""Index files beside tar shards: found, checked, rebuilt."""

import contextlib
import os
import tempfile

from pycooldown._core import TarIndex, TarReader

__all__ = ["TarIndex", "TarReader", "load_index"]


def load_index(shard: str) -> TarIndex:
    """Index a tar shard, from `<shard>.idx` where that file is of this shard, else by scanning the headers.

    A scan is written to `<shard>.idx` for the next time: to a temporary file first, then renamed, so that a reader sees
    a whole index or none. An index of an older state of the shard (another size or modification time) or of another
    format version is replaced. A file of that name that some other tool wrote is left as it is, and where the folder
    cannot be written the index is kept in memory only; the next process then scans again.

    Args:
        shard: Path of an uncompressed tar file.

    Returns:
        The index; `index.faults` lists `(offset, reason)` of what in the shard cannot be read.

    Raises:
        OSError: If the shard cannot be read or changes while it is scanned.
        ValueError: If `<shard>.idx` belongs to this shard but is damaged.
    """
    path = shard + ".idx"
    status = os.stat(shard)
    stored = _read(path)
    if stored:
        try:
            index = TarIndex.from_bytes(stored, status.st_size, status.st_mtime_ns)
        except ValueError as error:
            raise ValueError(f"{path}: {error}; delete it, and it will be made anew") from None
        if index is not None:
            return index
    index = TarIndex.scan(os.fsencode(shard))
    if not stored or stored.startswith(_OURS):
        _write(path, index.to_bytes())
    return index


_OURS = b"pycdidx"  # any version of it


def _read(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except FileNotFoundError:
        return b""


def _write(path: str, content: bytes) -> None:
    # A read-only data folder is no reason to stop: the index in memory serves as well.
    with contextlib.suppress(OSError):
        descriptor, temporary = tempfile.mkstemp(dir=os.path.dirname(path) or ".", prefix=os.path.basename(path))
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
                os.fchmod(descriptor, 0o644)
            os.replace(temporary, path)
        except BaseException:
            os.unlink(temporary)
            raise
