"""Measure resident memory of this process in bytes, as counted by Linux, and the peak of a call in its own process."""

import ctypes
import gc
import multiprocessing
import os
import re
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

PROCESS = Path("/proc/self")
# With these settings an allocator keeps freed memory, and a call that reuses it does not raise the peak.
ALLOCATOR = ("MALLOC_MMAP_MAX_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_", "LD_PRELOAD")


class CannotMeasure(RuntimeError):
    """An error that says that the peak does not show the memory of a call."""


def peak_of(prepare, *arguments):
    """Return the peak memory of the call `prepare(*arguments)()` above the memory before it, in a new process.

    Args:
        prepare: Importable function that makes the inputs, loads everything that is loaded once, and returns the call.
        arguments: Arguments of `prepare`.

    Raises:
        CannotMeasure: If the peak cannot be read, or the allocator reused memory that it had kept.
    """
    kept = {name: os.environ.pop(name) for name in ALLOCATOR if name in os.environ}
    try:
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
            return pool.submit(_peak_here, prepare, arguments).result()
    finally:
        os.environ.update(kept)


def _peak_here(prepare, arguments):
    call = prepare(*arguments)
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # returns memory that was freed before
    try:
        forget_peak()
    except OSError as error:
        raise CannotMeasure(f"the peak cannot be measured: {PROCESS}/clear_refs: {error.strerror}") from None
    before = resident()
    call()
    if peak() <= before:
        raise CannotMeasure("the peak cannot be measured: the allocator reused memory that it had kept")
    return peak() - before


def resident():
    """Now."""
    return _status("VmRSS")


def peak():
    """Return the peak of resident memory since the start or the last `forget_peak`."""
    return _status("VmHWM")


def forget_peak():
    """Start a new measurement of the peak."""
    (PROCESS / "clear_refs").write_text("5")


def _status(field):
    return int(re.search(rf"{field}:\s+(\d+) kB", (PROCESS / "status").read_text())[1]) * 1024
