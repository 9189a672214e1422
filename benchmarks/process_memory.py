"""Resident memory of this process in bytes, as Linux counts it, and the peak of a call in a process of its own."""

import ctypes
import gc
import multiprocessing
import os
import re
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

PROCESS = Path("/proc/self")
# With these an allocator keeps freed memory, and a call that takes it again does not raise the peak.
ALLOCATOR = ("MALLOC_MMAP_MAX_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_", "LD_PRELOAD")


class CannotMeasure(RuntimeError):
    """The peak does not show what a call takes."""


def peak_of(prepare, *arguments):
    """Peak memory of the call `prepare(*arguments)()` above that before it, in a fresh process.

    Args:
        prepare: Importable function that makes the inputs, loads what is loaded once, and returns the call.
        arguments: Of prepare.

    Raises:
        CannotMeasure: If the peak cannot be read, or the allocator kept the memory that the call took.
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
    ctypes.CDLL(None).malloc_trim(0)  # gives back what was freed before
    try:
        forget_peak()
    except OSError as error:
        raise CannotMeasure(f"the peak cannot be taken: {PROCESS}/clear_refs: {error.strerror}") from None
    before = resident()
    call()
    if peak() <= before:
        raise CannotMeasure("the peak cannot be taken: the allocator had kept the memory that the call took")
    return peak() - before


def resident():
    """Now."""
    return _status("VmRSS")


def peak():
    """At most, since the start or the last `forget_peak`."""
    return _status("VmHWM")


def forget_peak():
    """Lets the peak be counted from here on."""
    (PROCESS / "clear_refs").write_text("5")


def _status(field):
    return int(re.search(rf"{field}:\s+(\d+) kB", (PROCESS / "status").read_text())[1]) * 1024
