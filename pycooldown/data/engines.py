"""Run one function over many parts: in this process, in a pool of processes, or on Ray."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from pycooldown._extras import require
from pycooldown.processes import run_all

# `run(function, parts)` yields the number and the result of `function(part)` for every part, in the order of
# completion. If the function raises, the error is raised and no further part is started.
RunParts = Callable[[Callable[[Any], Any], Sequence[Any]], Iterator[tuple[int, Any]]]
# A worker uses one core, so its libraries get no further threads.
ONE_THREAD = {"TOKENIZERS_PARALLELISM": "false", "RAYON_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
DIED = "run the same command again, with fewer workers if memory is short"


@contextmanager
def open_engine(*, workers: int, ray: str | None = None) -> Iterator[RunParts]:
    """Start the workers, yield the function that gives them work, and end them.

    Args:
        workers: Processes; 1 means this process. With Ray: number of parts in parallel, one core each; 0 for all cores.
        ray: Address of a Ray cluster, `"auto"` for the one of this machine, or `"local"` to start one.

    Raises:
        ValueError: If `workers` is out of range.
        RuntimeError: If a worker dies.
        ConnectionError: If there is no Ray cluster at the address.
    """
    if workers < (ray is None):
        raise ValueError(f"workers = {workers}; expected at least {int(ray is None)}")
    if ray is not None:
        with _ray(workers, ray) as run:
            yield run
    elif workers == 1:
        with _environment(ONE_THREAD):
            yield lambda function, parts: ((number, function(part)) for number, part in enumerate(parts))
    else:
        yield partial(run_all, workers=workers)


@contextmanager
def _ray(workers: int, address: str) -> Iterator[RunParts]:
    require("ray", "ray")
    import ray

    started = not ray.is_initialized()
    if started and address == "local":
        ray.init(num_cpus=workers or None, include_dashboard=False, log_to_driver=False)
    elif started:
        ray.init(address=address, log_to_driver=False)
    try:
        yield partial(_on_ray, ray, workers or max(int(ray.cluster_resources().get("CPU", 1)), 1))
    finally:
        if started:
            ray.shutdown()


def _on_ray(ray: Any, limit: int, function: Callable[[Any], Any], parts: Sequence[Any]) -> Iterator[tuple[int, Any]]:
    @ray.remote(num_cpus=1, max_retries=3, runtime_env={"env_vars": ONE_THREAD})  # type: ignore[untyped-decorator]
    def call(function: Callable[[Any], Any], part: Any) -> Any:
        return function(part)

    waiting = iter(enumerate(parts))
    running: dict[Any, int] = {}
    while True:
        while len(running) < limit and (following := next(waiting, None)) is not None:
            running[call.remote(function, following[1])] = following[0]
        if not running:
            return
        (finished,), _ = ray.wait(list(running))
        number = running.pop(finished)
        try:
            result = ray.get(finished)
        except ray.exceptions.RayTaskError as error:
            raise error.cause from error
        except ray.exceptions.RayError as error:
            raise RuntimeError(f"a Ray worker died ({error}); {DIED}") from error
        yield number, result


@contextmanager
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
