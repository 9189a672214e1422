"""All measurements that need a GPU, in three calls of less than ten minutes each.

    python benchmarks/gpu_suite.py --stage 1 [--output gpu-results]    # then 2 and 3
    python benchmarks/gpu_suite.py --stage 1 --dry-run                 # tiny shapes, no GPU: in CI

1. Builds from source, without network; machine code beside the gate's table; tests on the device; memcheck and
   racecheck; CUDA graphs, waiting, streams; the cross-entropy against its peers and around its choices; draws.
2. The output layer; feeding from tars and tokens; steps of training.
3. Gradient variance at batch 512; training under τ = 1, τ = 5 and Cooldown, 130 passes through the rarest domain.

Each task is a separate process, and every row is written at once, so nothing is lost if the machine is withdrawn. The
same command continues after the last finished task. Peers are measured if they are installed (gpu/peers.txt and
gpu/peers_quack.txt). A short table is printed at the end; stage<N>.jsonl has all numbers, with the names and versions
of hardware and software.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
MINUTES = 9.5  # limit of a stage; a call has ten
SANITIZERS = ("memcheck", "racecheck")  # tools of compute-sanitizer
PACKAGES = ("torch", "triton", "numpy", "transformers", "liger-kernel", "cut-cross-entropy", "quack-kernels")


class Task(NamedTuple):
    """A process of a stage.

    Attributes:
        name: Name in the rows.
        command: The command; "python" stands for this interpreter.
        seconds: Time limit on a GPU.
        program: A program that the task needs; without it the task is skipped.
        modules: Python modules that the task needs; without one of them the task is skipped.
        rows: Whether it takes --dry-run, --output and --task, and writes rows itself.
        dry: The command for a dry run, if it differs.
    """

    name: str
    command: tuple[str, ...]
    seconds: int
    program: str | None = None
    modules: tuple[str, ...] = ()
    rows: bool = True
    dry: tuple[str, ...] | None = None


def script(name: str, *arguments: str) -> tuple[str, ...]:
    """Return the command of a benchmark."""
    return ("python", str(HERE / "gpu" / f"{name}.py"), *arguments)


def pytest(*arguments: str) -> tuple[str, ...]:
    """Return the command of tests."""
    return (
        "python",
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "-o",
        "addopts=",
        *arguments,
    )  # independent of installed plugins


def stages(site: Path) -> dict[int, list[Task]]:
    """Return the tasks of each stage; builds go to a folder."""
    install = ("python", "-m", "pip", "install", "-q", "--no-build-isolation", "--no-deps", "--no-index", "--upgrade")
    build = (*install, "--target", str(site), "-C", "cmake.define.PYCOOLDOWN_CUDA=ON", str(ROOT))
    losses = str(ROOT / "tests/losses")
    imports = ("python", "-c", "import pycooldown")
    gate = ("env", "-u", "TRITON_INTERPRET", "python", str(HERE / "triton_aot.py"))
    return {
        1: [
            Task("build", build, 240, rows=False, dry=imports),
            # By all cores, into Triton's cache: the tasks after it need not compile the kernels.
            Task("machine code", gate, 120, rows=False, dry=(*gate, "--kernels", "scale")),
            Task("checks", script("checks"), 90),
            Task(
                "tests of the losses",
                pytest(losses, str(ROOT / "tests/core/test_alias_table.py"), "-k", "cuda or triton or device"),
                240,
                rows=False,
                dry=pytest(f"{losses}/test_triton.py", "-k", "scale"),
            ),
            Task("cross-entropy", script("cross_entropy"), 180),
            Task("draws", script("draws"), 30),
            *(Task(tool, script("sanitize", tool), 120, program="compute-sanitizer") for tool in SANITIZERS),
            Task(
                "tests of training",
                pytest(str(ROOT / "tests/huggingface"), "-m", "slow or not slow"),
                240,
                modules=("transformers", "accelerate", "tensorboard", "yaml"),
                rows=False,
                dry=pytest("--collect-only", str(ROOT / "tests/huggingface/test_trainer.py")),
            ),
            Task("sweep", script("cross_entropy", "--sweep"), 180),
        ],
        2: [
            Task("output layer", script("linear"), 180),
            Task("feeding", script("feeding"), 90),
            Task("training 125M", script("training", "125M"), 120),
            Task("training 1B", script("training", "1B"), 180),
        ],
        3: [
            Task("variance", script("variance", "--variance"), 240),
            Task("training", script("variance", "--training"), 330),
        ],
    }


def environment(site: Path) -> dict[str, str]:
    """Return an environment in which the build comes first. PYTHONSAFEPATH may hide a script's neighbours from it."""
    paths = [str(site)] if site.exists() else []
    paths += [str(HERE / "gpu"), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}


def read(path: Path) -> list[dict[str, object]]:
    """Return the rows of a stage so far."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def write(path: Path, **row: object) -> None:
    """Append a row."""
    with path.open("a") as file:
        file.write(json.dumps(row) + "\n")


def describe() -> dict[str, object]:
    """Return the device and the versions."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    query = ("nvidia-smi", "--query-gpu=name,driver_version,clocks.max.sm,clocks.max.memory", "--format=csv,noheader")
    found = subprocess.run(query, capture_output=True, text=True) if shutil.which(query[0]) else None
    commit = subprocess.run(("git", "rev-parse", "HEAD"), cwd=ROOT, capture_output=True, text=True).stdout.strip()
    return {"device": found.stdout.strip() if found else None, "versions": versions, "commit": commit}


def perform(task: Task, path: Path, site: Path, *, dry: bool, seconds: float) -> None:
    """Run a task and write its result."""
    command = task.dry if dry and task.dry else task.command
    absent = [name for name in task.modules if importlib.util.find_spec(name) is None]
    if task.program and not dry and shutil.which(task.program) is None:
        absent.append(task.program)
    if absent:
        write(path, task=task.name, dry=dry, status=0, skipped=f"{absent[0]} is not installed")
        return
    if task.rows and command != task.dry:
        command += ("--output", str(path), "--task", task.name, *(("--dry-run",) if dry else ()))
    command = tuple(sys.executable if part == "python" else part for part in command)
    log = path.with_name(f"{task.name.replace(' ', '-')}.log")
    began = time.monotonic()
    limit = seconds if dry else min(task.seconds, seconds)  # without a GPU nothing is timed
    with log.open("a") as file:
        process = subprocess.Popen(
            command, cwd=path.parent, env=environment(site), stdout=file, stderr=file, start_new_session=True
        )
        try:
            status = process.wait(limit)
        except subprocess.TimeoutExpired:
            status = 124
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # what it has started too: that would go on using the GPU
            process.wait()
    last = log.read_text().strip().splitlines()[-1:]
    write(
        path,
        task=task.name,
        dry=dry,
        status=status,
        seconds=round(time.monotonic() - began, 1),
        **({"log": last[0][:200]} if last and not task.rows else {}),
    )


def print_table(path: Path, *, dry: bool) -> None:
    """Print the results of tasks, and times."""
    for row in read(path):
        if row.get("dry") != dry or "task" not in row:
            continue
        if "status" in row:
            end = row.get("skipped") or ("passed" if row["status"] == 0 else f"FAILED with {row['status']}")
            print(f"{row['task']:22} {end}, {row.get('seconds', 0)} s {row.get('log', '')}")
            continue
        shown = {k: round(v, 3) if isinstance(v, float) else v for k, v in row.items() if k not in ("task", "dry")}
        print(f"  {'  '.join(f'{key} {value}' for key, value in shown.items() if value is not None)}")


def main() -> int:
    """Run a stage; the exit status tells whether every task has passed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stage", type=int, choices=(1, 2, 3), required=True)
    parser.add_argument("--dry-run", action="store_true", help="tiny shapes, on the interpreter")
    parser.add_argument("--output", type=Path, default=Path(os.environ.get("OUT", "gpu-results")))
    parser.add_argument("--minutes", type=float, default=MINUTES, help="time after which no task is started")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # after the task has been ended
    output = options.output.resolve()
    output.mkdir(parents=True, exist_ok=True)
    path, site, dry = output / f"stage{options.stage}.jsonl", ROOT / "build" / "gpu-site", options.dry_run
    end = time.monotonic() + 60 * options.minutes
    write(path, dry=dry, began=time.strftime("%Y-%m-%d %H:%M"), **describe())
    tasks = stages(site)[options.stage]
    if options.stage > 1 and not dry and not site.exists():
        tasks = [stages(site)[1][0], *tasks]
    for task in tasks:
        done = any(
            row.get("task") == task.name and row.get("dry") == dry and row.get("status") == 0 for row in read(path)
        )
        remaining = end - time.monotonic()
        if done and (dry or task.name != "build" or site.exists()):
            continue
        if remaining < 20:
            print(f"no time is left for {task.name}; the same command continues with it")
            break
        print(f"{task.name} ...", flush=True)
        perform(task, path, site, dry=dry, seconds=remaining)
    print_table(path, dry=dry)
    statuses = {row["task"]: row["status"] for row in read(path) if "status" in row and row.get("dry") == dry}
    return int(any(statuses.get(task.name) != 0 for task in tasks))


if __name__ == "__main__":
    sys.exit(main())
