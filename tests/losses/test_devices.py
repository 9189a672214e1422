"""The devices that torch can use decide which tests run, not the drivers of the machine."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

FILES = ["contract", "cross_entropy", "derivatives", "linear_cross_entropy", "tracing", "triton", "vocabulary"]
HERE = Path(__file__).parent


def collected(plugin, tmp_path, *more):
    """Return the tests of losses, and more, that pytest collects where `plugin` changes what is installed."""
    (tmp_path / "changed.py").write_text(plugin)
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    environment["PATH"] = f"{tmp_path}:{environment['PATH']}"
    paths = [str(tmp_path), environment.get("PYTHONPATH", "")]
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, paths))  # an empty entry would mean the current folder
    files = [*(str(HERE / f"test_{name}.py") for name in FILES), *(str(HERE.parent / path) for path in more)]
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-p",
        "changed",
        "-p",
        "no:cacheprovider",
        "--collect-only",
        "-q",
        *files,
    ]
    result = subprocess.run(command, env=environment, cwd=HERE.parents[1], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    return [line for line in result.stdout.splitlines() if "::" in line]


def count(tests, name, part=""):
    return sum(f"test_{name}.py" in test and part in test for test in tests)


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
def test_a_gpu_is_seen_by_torch_alone(tmp_path):
    """Tests for GPUs are collected where `torch.cuda.is_available()` is true. A driver alone adds and removes none."""
    without = collected("import torch\ntorch.cuda.is_available = lambda: False\n", tmp_path)
    assert not [test for test in without if "cuda" in test]
    assert count(without, "contract", "triton") >= 50  # interpreted
    assert count(without, "triton") >= 80
    on_gpu = collected("import torch\ntorch.cuda.is_available = lambda: True\n", tmp_path)
    for name in ("contract", "triton"):  # the kernels, now on the device
        assert count(on_gpu, name) == count(without, name)
    for name in ("cross_entropy", "derivatives", "linear_cross_entropy", "tracing"):  # on both devices
        assert count(on_gpu, name, "cuda") >= 0.6 * count(without, name)
        assert count(on_gpu, name) == count(without, name) + count(on_gpu, name, "cuda")
    assert count(on_gpu, "vocabulary", "cuda") > 0  # ranks that share the classes


@pytest.mark.slow
def test_without_triton_only_its_tests_are_skipped(tmp_path):
    plugin = "import sys, importlib.util\nfind = importlib.util.find_spec\nsys.modules['triton'] = None\n"
    plugin += "importlib.util.find_spec = lambda name, *a: None if name == 'triton' else find(name, *a)\n"
    tests = collected(plugin, tmp_path)
    assert not [test for test in tests if "[triton" in test or "-triton" in test]  # as a backend
    assert count(tests, "contract", "cpp") >= 100


@pytest.mark.slow
@pytest.mark.parametrize("trainer", [False, True])
def test_without_other_packages_the_tests_of_the_gpu_suite_are_there(trainer, tmp_path):
    """Those of the trainer need accelerate and TensorBoard."""
    needed = ("accelerate", "tensorboard")
    for name in needed if trainer else ():
        pytest.importorskip(name)
    absent = "webdataset torchdata liger_kernel cut_cross_entropy scipy psutil matplotlib datasets peft lightning "
    absent += "pytorch_lightning moto sacrebleu sentencepiece typer rich pydantic obstore ray sklearn orjson"
    names = [*absent.split(), *(() if trainer else needed)]
    plugin = f"import sys\nfor name in {names}:\n    sys.modules[name] = None\n"
    tests = collected(plugin, tmp_path, "core/test_alias_table.py", "huggingface")
    assert count(tests, "alias_table") >= 50
    assert count(tests, "contract", "cpp") >= 100
    assert (count(tests, "trainer") >= 20) == trainer
