"""A lock for one user at a time: threads wait, forked processes start with it free, signal handlers are refused."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager


class Exclusive:
    """A lock that lets one thread at a time into the blocks under `hold`.

    Unpickling gives a new one that is free. A process forks only while no other thread holds one, so that in the child
    all of them are free and the objects that they guard are in order.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._held = False
        _ALL.add(self)

    def __reduce__(self) -> tuple[type[Exclusive], tuple[()]]:
        return Exclusive, ()

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Wait for other threads, and keep them out until the block ends.

        Raises:
            RuntimeError: If this thread already holds it, which can only happen in a signal handler or a finalizer.
        """
        with self._lock:
            if self._held:
                raise RuntimeError(
                    "a signal handler or a finalizer used a sampler while its own thread was using it; let the handler "
                    "set a flag, and check the flag between steps"
                )
            self._held = True
            try:
                yield
            finally:
                self._held = False

    def acquire_for_fork(self) -> None:
        """Wait until no other thread holds it."""
        self._lock.acquire()

    def release_after_fork(self) -> None:
        """Undo `acquire_for_fork`."""
        self._lock.release()


_ALL: weakref.WeakSet[Exclusive] = weakref.WeakSet()
_acquired: list[Exclusive] = []  # acquired by the forking thread
_forking = threading.RLock()  # one thread at a time


def _before_fork() -> None:
    _forking.acquire()
    for exclusive in list(_ALL):
        exclusive.acquire_for_fork()
        _acquired.append(exclusive)


def _after_fork() -> None:
    while _acquired:
        _acquired.pop().release_after_fork()
    _forking.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork)
