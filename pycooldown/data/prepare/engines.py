"""Run one function over many parts: in this process, in a pool of processes, or on Ray."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import connection, get_context, parent_process
from typing import Any, TypeVar

from pycooldown._extras import require

P = TypeVar("P")
R = TypeVar("R")
# A worker is one core: no threads of its own.
ONE_THREAD = {"TOKENIZERS_PARALLELISM": "false", "RAYON_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
DIED = "finished shards are kept: run the same command again to go on, with fewer workers if memory is short"


def run_all(
    function: Callable[[P], R], parts: Sequence[P], *, workers: int, ray: str | None = None
) -> Iterator[tuple[int, R]]:
    """Yield the number and the result of `function(part)` for every part, as they are finished.

    Args:
        function: Can be pickled, as can the parts and the results.
        parts: Those that take longest first keep all workers busy to the end.
        workers: Processes; 1 is this process. On Ray, the parts in work at a time, a core each; 0 for all of the
            cluster's cores.
        ray: Address of a Ray cluster; "auto" for the one that runs here, "local" to start one.

    Raises:
        RuntimeError: If a process dies.
        Exception: Whatever the function raises, after which no further part is begun.
    """
    if ray is not None:
        yield from _on_ray(function, parts, workers, ray)
    elif workers == 1:
        with _environment(ONE_THREAD):
            for number, part in enumerate(parts):
                yield number, function(part)
    else:
        yield from _in_processes(function, parts, workers)


def _in_processes(function: Callable[[P], R], parts: Sequence[P], workers: int) -> Iterator[tuple[int, R]]:
    count = min(workers, max(len(parts), 1))
    pool = ProcessPoolExecutor(count, mp_context=get_context("spawn"), initializer=_start_worker)
    try:
        futures = {pool.submit(function, part): number for number, part in enumerate(parts)}
        for future in as_completed(futures):
            yield futures[future], future.result()
    except BrokenProcessPool as error:
        raise RuntimeError(f"a worker process was killed, perhaps for want of memory; {DIED}") from error
    finally:
        pool.shutdown(cancel_futures=True)


def _start_worker() -> None:
    os.environ.update(ONE_THREAD)

    def follow() -> None:
        """End with the parent, even if that is killed: it could start again while this process still writes."""
        parent = parent_process()
        if parent is not None:
            connection.wait([parent.sentinel])
            os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


def _on_ray(function: Callable[[P], R], parts: Sequence[P], workers: int, address: str) -> Iterator[tuple[int, R]]:
    require("ray", "ray")
    import ray

    started = not ray.is_initialized()
    if started:
        where: dict[str, Any] = {"num_cpus": workers or None} if address == "local" else {"address": address}
        ray.init(**where, include_dashboard=False if address == "local" else None, log_to_driver=False)
    try:
        remote = ray.remote(function).options(
            num_cpus=1, max_retries=3, retry_exceptions=False, runtime_env={"env_vars": ONE_THREAD}
        )
        limit = workers or max(int(ray.cluster_resources().get("CPU", 1)), 1)
        waiting = iter(enumerate(parts))
        running: dict[Any, int] = {}
        while True:
            for number, part in waiting:
                running[remote.remote(part)] = number
                if len(running) == limit:
                    break
            if not running:
                return
            done, _ = ray.wait(list(running))
            for reference in done:
                number = running.pop(reference)
                try:
                    result = ray.get(reference)
                except ray.exceptions.RayTaskError as error:
                    raise error.cause from error
                except (ray.exceptions.WorkerCrashedError, ray.exceptions.OutOfMemoryError) as error:
                    raise RuntimeError(f"a Ray worker died ({error}); {DIED}") from error
                yield number, result
    finally:
        if started:
            ray.shutdown()


@contextlib.contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
