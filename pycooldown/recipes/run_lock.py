"""One process at a time in a run's folder."""

from __future__ import annotations

import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

LOCK = "run.lock"

_held: set[int] = set()


def _close_in_child() -> None:
    for handle in _held:
        os.close(handle)
    _held.clear()


# A lock lasts until every process that has its file open has ended. Workers that read data outlive a killed run for a
# while, so they must not keep it.
os.register_at_fork(after_in_child=_close_in_child)


@contextmanager
def lock_run(folder: Path) -> Iterator[None]:
    """Hold the lock of a run's folder, which is made if it is missing. The lock ends with the process.

    Raises:
        ValueError: If another process, or another call in this one, holds the lock; the message names the process.
    """
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    _held.add(handle)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(handle, 200, 0).decode("utf-8", "replace").strip() or "another process"
            raise ValueError(
                f"{folder} is in use by {holder}, which trains there now; wait for its end, or choose another folder"
            ) from None
        os.ftruncate(handle, 0)
        os.pwrite(handle, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
        yield
    finally:
        _held.discard(handle)
        os.close(handle)
