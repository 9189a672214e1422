"""Benchmarks for GPUs are checked without one: dry runs, model of memory traffic, table of compiled kernels."""

import json
import os
import re
import subprocess
import sys
import time
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
    assert len(re.findall(r" passed, [\d.]+ s", result.stdout)) == len(statuses)  # besides what pytest prints
    written = {row["task"] for row in rows if "task" in row and "status" not in row}  # by the task itself
    import gpu_suite

    assert written == {task.name for task in gpu_suite.stages(tmp_path)[stage] if task.rows}
    if stage == 1:
        assert {row["tool"]: row["faults"] for row in rows if "tool" in row} == {"memcheck": 0, "racecheck": 0}
        assert sum(row.get("check") == "every kernel ran" for row in rows) == 2
        assert sum("variant" in row for row in rows) == 24
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
    for name, absent in (("no-program", {"program": "no-program"}), ("no_module", {"modules": ("json", "no_module")})):
        task = gpu_suite.Task("absent", ("false",), 60, rows=False, **absent)
        gpu_suite.perform(task, path, tmp_path / "none", dry=False, seconds=60)
        last = {"task": "absent", "status": 0, "skipped": f"{name} is not installed"}
        assert gpu_suite.read(path)[-1].items() >= last.items()
    task = gpu_suite.Task("late", ("python", "-c", "import time; time.sleep(60)"), 60, rows=False)
    gpu_suite.perform(task, path, tmp_path / "none", dry=True, seconds=0.1)
    assert gpu_suite.read(path)[-1]["status"] == 124


def test_a_task_that_is_late_ends_with_what_it_started(tmp_path):
    import gpu_suite

    psutil = pytest.importorskip("psutil")
    start = "import subprocess, sys; p = subprocess.Popen(['sleep', '600']); print(p.pid, flush=True); p.wait()"
    task = gpu_suite.Task("late", ("python", "-c", start), 60, rows=False)
    log = tmp_path / "late.log"
    for seconds in (1, 4, 16, 64):  # until it has come so far
        gpu_suite.perform(task, tmp_path / "stage1.jsonl", tmp_path / "none", dry=True, seconds=seconds)
        if log.read_text():
            break
    (started,) = map(int, log.read_text().split())

    def runs():
        try:
            return psutil.Process(started).status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False

    while runs():  # a signal takes a while; a process that gets none makes the test time out
        time.sleep(0.01)


SUMMARIES = {
    "========= ERROR SUMMARY: 0 errors": 0,
    "========= ERROR SUMMARY: 1 error": 1,
    "========= LEAK SUMMARY: 0 bytes leaked in 0 allocations\n========= ERROR SUMMARY: 12 errors": 12,
    "========= RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)": 0,
    "========= RACECHECK SUMMARY: 2 hazards displayed (1 error, 1 warning)": 2,
    "========= Error: Target application terminated before first instrumented API call": None,
}


@pytest.mark.parametrize(("summary", "faults"), SUMMARIES.items())
def test_what_a_sanitizer_finds_is_read(summary, faults, tmp_path, monkeypatch):
    """From its output and its exit status, of a program in its place."""
    monkeypatch.syspath_prepend(BENCHMARKS / "gpu")
    import sanitize
    from common import Run

    program = tmp_path / "compute-sanitizer"
    program.write_text(
        f"#!/bin/sh\ncat <<END\n========= COMPUTE-SANITIZER\nout\n{summary}\nEND\nexit {9 * bool(faults)}\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    run = Run(False, tmp_path / "rows.jsonl", "memcheck")
    if faults == 0:
        sanitize.sanitize(run, "memcheck")
    else:
        with pytest.raises(SystemExit, match="did not come to its summary" if faults is None else f"found {faults} "):
            sanitize.sanitize(run, "memcheck")
    row = {"task": "memcheck", "dry": False, "tool": "memcheck", "faults": faults, "exit_status": 9 * bool(faults)}
    assert json.loads(run.output.read_text()) == row


def test_a_contender_that_overwrites_the_logits_is_given_a_copy(tmp_path, monkeypatch):
    """Or those after it would be compared and timed on other logits."""
    monkeypatch.syspath_prepend(BENCHMARKS / "gpu")
    import cross_entropy
    import torch
    from common import Run

    class Overwriting(torch.autograd.Function):
        @staticmethod
        def forward(ctx, logits, target):
            with torch.enable_grad():
                leaf = logits.detach().clone().requires_grad_()
                loss = torch.nn.functional.cross_entropy(leaf, target)
            (gradient,) = torch.autograd.grad(loss, leaf)
            ctx.save_for_backward(logits.detach().copy_(gradient))
            return loss.detach()

        @staticmethod
        def backward(ctx, grad):
            return grad * ctx.saved_tensors[0], None

    for name in ("liger-kernel", "another"):

        def contenders(target, dry, name=name):
            plain = lambda x: torch.nn.functional.cross_entropy(x, target)  # noqa: E731
            return {name: lambda x: Overwriting.apply(x, target), "torch": plain}

        monkeypatch.setattr(cross_entropy, "contenders", contenders)
        run = Run(True, tmp_path / "rows.jsonl", "cross-entropy")
        if name == "another":
            with pytest.raises(SystemExit, match="another has overwritten the logits: add it to OVERWRITE"):
                cross_entropy.check(run)
        else:
            cross_entropy.check(run)
            rows = [json.loads(line) for line in run.output.read_text().splitlines()]
            assert [row["check"] for row in rows] == ["liger-kernel", "torch"] * 2


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


LAUNCHED = """
import torch, triton, triton_variants
from triton.runtime.jit import MockTensor
from pycooldown.losses.backends import triton_kernels

class Driver:  # of an H100
    get_current_target = lambda self: triton.backends.compiler.GPUTarget("cuda", 90, 32)
    get_current_device = get_current_stream = lambda self, *device: 0

triton.runtime.driver.set_active(Driver())
variant = next(v for v in triton_variants.variants(90) if v.kernel == "scale" and v.dtype == "bf16")
arguments = MockTensor(torch.bfloat16), MockTensor(torch.float32), 50_257, 50_257
options = {"num_warps": variant.num_warps, "maxnreg": triton_variants.launches.MAX_REGISTERS}
launched = triton_kernels.scale_kernel.warmup(*arguments, grid=(4,), **dict(variant.constants), **options)
compiled = triton_variants.compile_variant(variant, 90)
assert compiled.asm["cubin"] == launched.asm["cubin"]
assert compiled.hash == launched.hash
"""


@pytest.mark.slow
def test_the_gate_compiles_what_a_launch_compiles(tmp_path):
    """The same machine code, under the same name in Triton's cache."""
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    environment |= {"TRITON_CACHE_DIR": str(tmp_path)}
    environment["PYTHONPATH"] = os.pathsep.join([str(BENCHMARKS), *filter(None, [environment.get("PYTHONPATH")])])
    result = subprocess.run([sys.executable, "-c", LAUNCHED], env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
