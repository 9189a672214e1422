"""Train several recipes over seeds, in this process or several, and combine their results."""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, as_completed
from contextlib import ExitStack
from pathlib import Path

from pycooldown.processes import process_pool
from pycooldown.recipes.grid import GridPoint
from pycooldown.recipes.history import Run
from pycooldown.recipes.report import compare
from pycooldown.recipes.schema import Recipe
from pycooldown.recipes.sweep_results import Sweep

TrainRun = Callable[[Recipe, Path], Run]


def train_or_resume(recipe: Recipe, folder: Path) -> Run:
    """Train a recipe, continuing the run in its folder if there is one."""
    from pycooldown.recipes.run import train

    return train(recipe, folder, resume=True, progress=multiprocessing.parent_process() is None)


def run_sweep(
    points: Mapping[str, GridPoint],
    seeds: Sequence[int],
    folder: str | Path,
    train: TrainRun = train_or_resume,
    *,
    workers: int = 1,
    executor: Executor | None = None,
    on_run: Callable[[Path], None] | None = None,
) -> Sweep:
    """Train every recipe with every seed in ``folder/seed-<seed>/<name>``, and compare and save the results.

    Finished runs are not trained again: an interrupted sweep continues where it stopped, and a sweep with additional
    recipes or seeds trains only those.

    Args:
        points: Recipes by name, on the same data; see `expand_grid`. The first is the baseline of the differences.
        seeds: Seeds of the models and the order of samples, the same for all recipes.
        folder: Where runs and results are written.
        train: Trains a recipe in a folder, continuing what is there; picklable if other processes call it.
        workers: Processes that train in parallel. They share the machine's threads and its accelerator.
        executor: Any `concurrent.futures.Executor` that runs `train` instead, for example on a cluster.
        on_run: Called with the folder of each finished run.

    Raises:
        ValueError: If there is no recipe or seed, a seed repeats, the recipes' data differ, or ``workers`` is below 1.
        RuntimeError: If runs failed, after all others have finished. The message names each with its error.
    """
    if not points or not seeds or len(set(seeds)) < len(seeds):
        raise ValueError(f"{len(points)} recipes, seeds {list(seeds)}; expected recipes and seeds, each seed once")
    if workers < 1:
        raise ValueError(f"workers = {workers}; expected at least 1")
    recipes = {name: point.recipe for name, point in points.items()}
    _check_comparable(recipes)
    folder = Path(folder)
    jobs: dict[Path, Recipe] = {}
    for seed in seeds:
        for name, recipe in recipes.items():
            training = dataclasses.replace(recipe.training, seed=seed)
            jobs[folder / f"seed-{seed}" / name] = dataclasses.replace(recipe, training=training)
    if workers == 1 and executor is None:
        failures = _train_here(jobs, train, on_run)
    else:
        with ExitStack() as stack:
            pool = executor or stack.enter_context(_processes(min(workers, len(jobs))))
            failures = _train_elsewhere(jobs, train, pool, on_run)
    if failures:
        lines = "".join(f"\n  {path}: {type(error).__name__}: {error}" for path, error in failures.items())
        raise RuntimeError(
            f"{len(failures)} of {len(jobs)} runs failed; the others are kept, and the same command continues the "
            f"sweep:{lines}"
        )
    comparisons = [compare([folder / f"seed-{seed}" / name for name in recipes]) for seed in seeds]
    sweep = Sweep.of(comparisons, seeds, {name: point.settings for name, point in points.items()})
    sweep.save(folder)
    return sweep


def _train_here(
    jobs: Mapping[Path, Recipe], train: TrainRun, on_run: Callable[[Path], None] | None
) -> dict[Path, Exception]:
    failures: dict[Path, Exception] = {}
    for path, recipe in jobs.items():
        try:
            train(recipe, path)
        except Exception as error:
            failures[path] = error
        else:
            if on_run is not None:
                on_run(path)
    return failures


def _train_elsewhere(
    jobs: Mapping[Path, Recipe], train: TrainRun, executor: Executor, on_run: Callable[[Path], None] | None
) -> dict[Path, Exception]:
    failures: dict[Path, Exception] = {}
    futures = {executor.submit(train, recipe, path): path for path, recipe in jobs.items()}
    try:
        for future in as_completed(futures):
            try:
                future.result()
            except Exception as error:
                failures[futures[future]] = error
            else:
                if on_run is not None:
                    on_run(futures[future])
    finally:
        for future in futures:
            future.cancel()  # has an effect only if the loop was interrupted
    return {path: failures[path] for path in jobs if path in failures}


def _processes(count: int) -> ProcessPoolExecutor:
    """Return a pool whose processes share the machine's threads, unless OMP_NUM_THREADS sets the number of each."""
    threads = os.environ.get("OMP_NUM_THREADS") or max(1, len(os.sched_getaffinity(0)) // count)
    return process_pool(count, threads=int(str(threads).partition(",")[0]))


def _check_comparable(recipes: Mapping[str, Recipe]) -> None:
    """Raise the errors of `compare` now, and not after hours of training."""
    first = next(iter(recipes))
    for name, recipe in recipes.items():
        pairs = {f"data.{f.name}": f.name for f in dataclasses.fields(recipe.data)}
        differ = [key for key, f in pairs.items() if getattr(recipe.data, f) != getattr(recipes[first].data, f)]
        families = [getattr(one.model, "family", None) for one in (recipe, recipes[first])]
        differ += ["model.family"] if None not in families and families[0] != families[1] else []
        differ += ["decoding"] if recipe.decoding != recipes[first].decoding else []
        if differ:
            raise ValueError(
                f"{name} and {first} differ in {differ[0]}, so their losses cannot be compared; leave one out"
            )
