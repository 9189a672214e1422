"""The process pool: results with their numbers, errors that stop it, and one thread in each process."""

import math
import os

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


def test_no_workers():
    with pytest.raises(ValueError, match="workers = 0; expected at least 1"):
        list(run_all(math.sqrt, [1.0], workers=0))
