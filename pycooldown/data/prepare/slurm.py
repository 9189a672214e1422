"""Submit a run to Slurm: an array of tasks, and a job after it that finishes."""

from __future__ import annotations

import shlex
import subprocess
from collections.abc import Sequence
from pathlib import Path

from pycooldown._files import write_atomically


def submit(folder: Path, command: Sequence[str], *, jobs: int, options: str = "") -> tuple[str, str]:
    """Submit `command --task I/jobs` as an array, and `command` to run after the whole array has succeeded.

    Args:
        folder: Where to keep the scripts and the logs, on a file system that all nodes share.
        command: The command without `--task`; it runs in the current folder.
        jobs: The size of the array.
        options: Further options of `sbatch`, as in `"--partition=cpu --time=2:00:00 --cpus-per-task=4"`.

    Returns:
        The numbers of the array and of the job that finishes.

    Raises:
        RuntimeError: If `sbatch` is missing or refuses; the message has its output.
        ValueError: If `jobs` is not positive.
    """
    if jobs < 1:
        raise ValueError(f"jobs = {jobs}; expected at least 1")
    line = shlex.join(command)
    array, finish = folder / "tokenize.sh", folder / "finish.sh"
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(array, f'#!/bin/sh\nexec {line} --task "$SLURM_ARRAY_TASK_ID/{jobs}"\n')
    write_atomically(finish, f"#!/bin/sh\nexec {line}\n")
    common = [*shlex.split(options), "--parsable"]
    first = _sbatch([*common, f"--array=0-{jobs - 1}", f"--output={folder}/%A_%a.log", str(array)])
    last = _sbatch([*common, f"--dependency=afterok:{first}", f"--output={folder}/finish_%j.log", str(finish)])
    return first, last


def _sbatch(arguments: list[str]) -> str:
    try:
        result = subprocess.run(["sbatch", *arguments], capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise RuntimeError(
            "the command sbatch is missing; expected a machine from which Slurm jobs can be submitted"
        ) from error
    if result.returncode:
        raise RuntimeError(f"sbatch refused ({shlex.join(arguments)}): {result.stderr.strip()}")
    return result.stdout.strip().split(";")[0]
