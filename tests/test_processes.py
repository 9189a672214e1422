"""The process pool returns results with their numbers, stops at errors, and runs one thread per process."""

import math
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pycooldown.processes import run_all


def refuse(part):
    raise ValueError(f"part {part} is bad")


@pytest.mark.parametrize("workers", [1, 2])
def test_results_come_with_their_numbers(workers):
    assert dict(run_all(math.sqrt, [9.0, 16.0, 25.0], workers=workers)) == {0: 3, 1: 4, 2: 5}
    assert list(run_all(math.sqrt, [], workers=workers)) == []
    with pytest.raises(ValueError, match="part 7 is bad"):
        list(run_all(refuse, [7], workers=workers))


def test_workers_have_one_thread():
    assert dict(run_all(os.getenv, ["OMP_NUM_THREADS"], workers=2)) == {0: "1"}


def test_a_killed_worker_is_an_error():
    with pytest.raises(RuntimeError, match="a worker process was killed"):
        list(run_all(os._exit, [3], workers=2))


def test_no_workers_is_an_error():
    with pytest.raises(ValueError, match="workers = 0; expected at least 1"):
        list(run_all(math.sqrt, [1.0], workers=0))


def test_workers_end_with_a_killed_parent(tmp_path):
    (tmp_path / "wait.py").write_text(
        "import os, pathlib, sys, time\nfrom pycooldown.processes import run_all\n"
        "def wait(folder):\n    pathlib.Path(folder, str(os.getpid())).touch()\n    time.sleep(600)\n"
        "if __name__ == '__main__':\n    list(run_all(wait, [sys.argv[1]] * 2, workers=2))\n"
    )
    folder = tmp_path / "workers"
    folder.mkdir()
    parent = subprocess.Popen([sys.executable, str(tmp_path / "wait.py"), str(folder)])
    while len(list(folder.iterdir())) < 2:
        assert parent.poll() is None
        time.sleep(0.01)
    parent.kill()
    parent.wait()
    while any(is_running(path.name) for path in folder.iterdir()):
        time.sleep(0.01)  # the test's time limit ends this loop if a worker stays


def is_running(pid):
    try:
        return Path("/proc", pid, "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
