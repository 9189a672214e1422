"""Find the fetcher of a folder, or start it."""

from __future__ import annotations

import errno
import json
import os
import pickle
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from pycooldown._files import lock_file, read_bounded
from pycooldown.data.cache.job import CacheJob
from pycooldown.data.cache.messages import receive, send

__all__ = ["connect", "join_fetcher", "states_path"]

_ENDING = 30.0  # seconds that a fetcher needs at most to end after its ranks
_PROGRAM = "from pycooldown.data.cache.fetcher import main; main()"


def join_fetcher(job: CacheJob, start: int) -> tuple[str, socket.socket, dict[str, Any]]:
    """Join a folder's fetcher, starting it if needed; return its address, a connection and its answer.

    It is a new program, so that nothing of this process, its threads or its locks is copied into it.

    Raises:
        OSError: If it cannot be started, or another machine uses the folder.
        TypeError: If the job cannot be pickled for another process.
    """
    folder = Path(job.folder)
    deadline = time.monotonic() + _ENDING
    with lock_file(folder / "starting.lock"):  # one rank at a time
        while True:
            address = _address(folder)
            try:
                connection = connect(address)
            except OSError:  # it has ended
                pass
            else:
                try:
                    send(connection, {"kind": "join", "identity": job.identity(), "start": start})
                    answer, _ = receive(connection)
                    return address, connection, answer
                except OSError:  # it is ending, because all its ranks have disconnected
                    connection.close()
            try:
                _start(job, start)
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.05)


def connect(address: str) -> socket.socket:
    """Connect to a fetcher.

    Raises:
        OSError: If it has ended.
    """
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.connect(address)
    except OSError:
        connection.close()
        raise
    return connection


def states_path(address: str) -> str:
    """Return the path of the fetcher's `BlockStates`, which lies beside its socket."""
    return f"{address}.states"


def _address(folder: Path) -> str:
    try:
        return str(json.loads(read_bounded(folder / "fetcher.json", 4_096))["socket"])
    except (OSError, ValueError, KeyError):
        return os.fspath(folder / "no fetcher")


def _start(job: CacheJob, start: int) -> None:
    try:
        content = pickle.dumps((job, start))
    except (pickle.PicklingError, AttributeError) as error:
        raise TypeError(f"the sampler or the data set cannot be pickled for the fetcher: {error}") from error
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)}
    process = subprocess.Popen(
        [sys.executable, "-c", _PROGRAM],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment,
        start_new_session=True,  # Ctrl-C ends the job, and the fetcher notices that
    )
    assert process.stdin is not None
    assert process.stdout is not None
    with process.stdin, process.stdout:
        try:
            process.stdin.write(content)
            process.stdin.close()
        except BrokenPipeError:
            pass  # its messages state the reason
        answer = process.stdout.readline().strip()
    if answer == b"ready":
        return
    process.wait()
    if answer == b"locked":
        raise BlockingIOError(
            errno.EWOULDBLOCK, "the folder is in use by another job; use another folder for each job", job.folder
        )
    raise OSError(errno.EIO, "the fetcher could not start; see its messages on standard error", job.folder)
