"""Benchmarks for GPUs are checked without one: dry runs, model of memory traffic, table of compiled kernels."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("triton")
ROOT = Path(__file__).parents[1]
BENCHMARKS = ROOT / "benchmarks"


@pytest.fixture(autouse=True)
def benchmarks(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)


def run_stage(stage, output):
    command = [sys.executable, str(BENCHMARKS / "gpu_suite.py"), "--stage", str(stage), "--dry-run"]
    result = subprocess.run([*command, "--output", str(output)], capture_output=True, text=True)
    rows = [json.loads(line) for line in (output / f"stage{stage}.jsonl").read_text().splitlines()]
    return result, {row["task"]: row["status"] for row in rows if "status" in row}, rows


@pytest.mark.slow
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_dry_run(stage, tmp_path):
    """Every task runs, and a second call of the same command has nothing left to do."""
    pytest.importorskip("transformers")
    result, statuses, rows = run_stage(stage, tmp_path)
    logs = "".join(path.read_text()[-3000:] for path in tmp_path.glob("*.log"))
    assert result.returncode == 0, result.stdout + result.stderr + logs
    assert statuses
    assert not any(statuses.values())
    assert result.stdout.count(" passed, ") == len(statuses)
    again, _, more = run_stage(stage, tmp_path)
    assert again.returncode == 0
    assert len(more) == len(rows) + 1  # the row of its start


def test_a_task_that_fails_is_seen_and_tried_again(tmp_path):
    import gpu_suite

    path = tmp_path / "stage1.jsonl"
    for code in (3, 0):
        task = gpu_suite.Task("one", ("python", "-c", f"print('out'); exit({code})"), 60, rows=False)
        gpu_suite.perform(task, path, tmp_path / "none", dry=True, seconds=60)
        assert gpu_suite.read(path)[-1].items() >= {"task": "one", "status": code, "log": "out"}.items()
    task = gpu_suite.Task("late", ("python", "-c", "import time; time.sleep(60)"), 60, rows=False)
    gpu_suite.perform(task, path, tmp_path / "none", dry=True, seconds=0.1)
    assert gpu_suite.read(path)[-1]["status"] == 124


def test_model_of_memory_traffic():
    """The model's table is that of the page, and shows the accesses for which the kernels are designed."""
    import gpu_traffic

    assert gpu_traffic.table(["H100", "B200"]) in (ROOT / "docs" / "gpu.md").read_text()
    for name, device in gpu_traffic.DEVICES.items():
        kept = 32_768 if name == "B200" else 65_536  # number of 2-byte classes that registers keep
        for num_classes in (1, 1000, 32_768, 50_257, 65_536, 70_000, 98_304, 128_256, 151_936, 262_144):
            for itemsize in (2, 4):
                hinted, lru = (gpu_traffic.accesses(num_classes, itemsize, device, lru=lru) for lru in (False, True))
                assert 2 <= hinted <= min(lru, 2.2)
                assert lru <= 2.75
                if num_classes * itemsize <= 2 * kept:
                    assert lru == 2
    few = gpu_traffic.accesses(262_144, 2, gpu_traffic.DEVICES["H100"], num_rows=4, lru=True)
    assert few == 2  # all rows fit into L2


@pytest.mark.parametrize("version", ["3.6.0", "3.7.1"])
def test_the_gates_table(version, monkeypatch):
    """The table has every variant of every target, each within its budget. The gate compares it with new builds."""
    import triton_aot

    monkeypatch.setattr(triton_aot.triton, "__version__", version)
    table = triton_aot.read_table()
    seen = set()
    for target in triton_aot.MULTIPROCESSOR:
        for variant in triton_aot.variants(target):
            key = variant.row(target)
            figures = triton_aot.Figures(*map(int, table[key]))
            assert not triton_aot.violations(variant, target, figures), key
            seen.add(key)
    assert seen == {key for key in table if key[0] == version}
