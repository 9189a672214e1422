"""Allow only one process at a time in a run's folder."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from pycooldown._files import lock_file

LOCK = "run.lock"


@contextmanager
def lock_run(folder: Path) -> Iterator[None]:
    """Hold the lock of a run's folder, which is created if it is missing. The lock ends with the process.

    Raises:
        ValueError: If another process, or another call in this one, holds the lock; the message names the process.
        OSError: If the folder cannot be created, or its file system has no locks.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        try:
            handle = stack.enter_context(lock_file(folder / LOCK, wait=False))
        except BlockingIOError:
            holder = (folder / LOCK).read_bytes()[:200].decode("utf-8", "replace").strip() or "another process"
            raise ValueError(
                f"{folder} is in use by {holder}, which is training there; wait until it ends, or choose another folder"
            ) from None
        os.ftruncate(handle, 0)
        os.pwrite(handle, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
        yield
