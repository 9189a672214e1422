"""One process at a time may train in a run's folder, and stored runs are recognised by their recipe."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("pydantic")

from pycooldown.recipes.methods.static import TemperatureOptions
from pycooldown.recipes.run_folder import folder_state
from pycooldown.recipes.run_lock import lock_run
from pycooldown.recipes.schema import Data, Recipe, Training

RECIPE = Recipe(Data("packed"), Training(steps=10, batch_size=4), TemperatureOptions(float("inf")))
RESOLVED = {**RECIPE.to_dict(), "fingerprint": "f", "sizes": {"a": 1}}


def test_a_lock_is_for_one_call_at_a_time(tmp_path):
    with lock_run(tmp_path / "run"):
        refused = pytest.raises(ValueError, match=f"in use by process {os.getpid()} on .*choose another folder")
        with refused, lock_run(tmp_path / "run"):
            pass
        with lock_run(tmp_path / "other"):
            pass
    with lock_run(tmp_path / "run"):
        pass


def test_children_that_outlive_a_killed_process_do_not_keep_its_lock(tmp_path):
    code = (
        "import os, sys, time; from pathlib import Path; from pycooldown.recipes.run_lock import lock_run\n"
        "with lock_run(Path(sys.argv[1])):\n"
        "    child = os.fork()\n"
        "    if not child: print(os.getpid(), flush=True)\n"
        "    time.sleep(60)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE)
    child = int(process.stdout.readline())
    try:
        with pytest.raises(ValueError, match="in use"), lock_run(tmp_path):
            pass
        process.kill()
        process.wait()
        assert Path(f"/proc/{child}").exists()
        with lock_run(tmp_path):
            pass
    finally:
        os.kill(child, signal.SIGKILL)


def store(folder, recipe, summary=None):
    folder.mkdir(exist_ok=True)
    (folder / "recipe.json").write_text(json.dumps(recipe))
    if summary is not None:
        (folder / "summary.json").write_text(json.dumps(summary))


def test_states_of_a_folder(tmp_path):
    assert folder_state(tmp_path / "none", RECIPE, RESOLVED) == "new"
    with lock_run(tmp_path / "run"):
        assert folder_state(tmp_path / "run", RECIPE, RESOLVED) == "new"
    store(tmp_path / "run", RESOLVED)
    assert folder_state(tmp_path / "run", RECIPE, RESOLVED) == "interrupted"
    store(tmp_path / "run", RESOLVED, {"domains": {"a": {"loss": 1.0}}})
    assert folder_state(tmp_path / "run", RECIPE, RESOLVED) == "finished"
    for loss in (None, float("nan")):
        store(tmp_path / "run", RESOLVED, {"domains": {"a": {"loss": loss}}})
        with pytest.raises(ValueError, match=r"not finite \(a\)"):
            folder_state(tmp_path / "run", RECIPE, RESOLVED)
    with pytest.raises(ValueError, match="is not empty and holds no run"):
        folder_state(tmp_path, RECIPE, RESOLVED)


def test_runs_of_earlier_versions_are_the_recipes(tmp_path):
    """Older runs are recognised, although they lack newer keys and hold infinite numbers as `Infinity`."""
    training = {key: value for key, value in RESOLVED["training"].items() if key != "epsilon"}
    stored = {**RESOLVED, "training": training, "mixture": {"method": "temperature", "tau": float("inf")}}
    store(tmp_path / "run", stored)
    assert folder_state(tmp_path / "run", RECIPE, RESOLVED) == "interrupted"
    store(tmp_path / "run", {**stored, "training": {**training, "epsilon": 1.0}})
    with pytest.raises(ValueError, match=r"training.epsilon is 1.0 there and 1e-08 here"):
        folder_state(tmp_path / "run", RECIPE, RESOLVED)
