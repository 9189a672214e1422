"""The package's process pool: one function over many parts, a process for each core."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import connection, get_context, parent_process
from typing import TypeVar

P = TypeVar("P")
R = TypeVar("R")


def run_all(function: Callable[[P], R], parts: Sequence[P], *, workers: int) -> Iterator[tuple[int, R]]:
    """Yield the number and the result of ``function(part)`` for every part, in the order in which they finish.

    Args:
        function: A function that can be pickled, as can the parts and the results.
        parts: The arguments. Putting those that take longest first keeps all workers busy to the end.
        workers: Number of processes, each with one thread; 1 is this process, with its own number of threads.

    Raises:
        ValueError: If ``workers`` is not positive.
        RuntimeError: If a process was killed.
        Exception: Any error of the function; no further part is begun then.
    """
    if workers < 1:
        raise ValueError(f"workers = {workers}; expected at least 1 process")
    if workers == 1:
        yield from ((number, function(part)) for number, part in enumerate(parts))
        return
    pool = process_pool(min(workers, max(len(parts), 1)))
    try:
        futures = {pool.submit(function, part): number for number, part in enumerate(parts)}
        for future in as_completed(futures):
            yield futures[future], future.result()
    except BrokenProcessPool as error:
        raise RuntimeError(
            "a worker process was killed, perhaps because memory ran out; run it again to continue with the unfinished "
            "parts, with fewer workers if memory is short"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def process_pool(workers: int, *, threads: int = 1) -> ProcessPoolExecutor:
    """Return a pool of processes that end with this one, even if it is killed.

    They are spawned, because the threads of torch do not survive a fork.

    Args:
        workers: Number of processes.
        threads: Number of threads that the libraries in each of them use.
    """
    return ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_start_worker, initargs=(threads,))


def _start_worker(threads: int) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    # Libraries read these when they are loaded.
    os.environ.update(OMP_NUM_THREADS=str(threads), RAYON_NUM_THREADS=str(threads))
    if threads == 1:
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
    if "torch" in sys.modules:  # the main module of the caller has loaded it already
        sys.modules["torch"].set_num_threads(threads)


def _end_with_parent() -> None:
    """End this process with its parent, even a killed one: otherwise a new run could start while this one writes."""
    if (parent := parent_process()) is not None:
        connection.wait([parent.sentinel])
        os._exit(1)
