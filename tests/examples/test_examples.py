"""Every example runs as its page says, in a process of its own, and resumes exactly if the page says so."""

import ast
import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")

FOLDER = Path(__file__).parents[2] / "examples"
NEEDS = {
    "plain_pytorch_ddp": (),
    "fsdp2_llama": ("transformers",),
    "loss_in_a_loop": (),
    "megatron_tokens": (),
    "accelerate_loop": ("accelerate", "transformers"),
    "trainer_on_datasets": ("transformers", "datasets"),
    "trl_sft": ("trl",),
    "lightning_module": ("pytorch_lightning",),
    "webdataset_stream": ("webdataset",),
    "torchtitan_loader": ("torchtitan",),
    "olmo_core_loader": ("olmo_core",),
    "litgpt_data": ("litgpt",),
    "megatron_external": ("megatron",),
}
RESUMES = (
    "accelerate_loop",
    "trainer_on_datasets",
    "lightning_module",
    "webdataset_stream",
    "torchtitan_loader",
    "olmo_core_loader",
    "litgpt_data",
    "megatron_external",
)


def run(name, *arguments, folder):
    """Return what an example prints."""
    for module in NEEDS[name]:
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"{module} is not installed")
    finished = subprocess.run(
        [sys.executable, FOLDER / f"{name}.py", *map(str, arguments)],
        cwd=folder,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


def sources():
    return sorted(FOLDER.glob("*.py"))


def test_every_example_is_run():
    assert {path.stem for path in sources()} == set(NEEDS)


@pytest.mark.parametrize("path", sources(), ids=lambda path: path.stem)
def test_examples_are_short_and_use_public_names(path):
    text = path.read_text()
    assert text.count("\n") < 120
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "pycooldown":
            module = importlib.import_module(node.module)
            for alias in node.names:
                submodule = (
                    importlib.util.find_spec(f"{node.module}.{alias.name}") if hasattr(module, "__path__") else None
                )
                assert alias.name in module.__all__ or submodule is not None, f"{alias.name} is not public"
            assert node.module.count(".") <= 1


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in NEEDS if name not in ("plain_pytorch_ddp", "fsdp2_llama")])
def test_example(name, tmp_path):
    printed = run(name, folder=tmp_path)
    assert re.search(r"\d\.\d+", printed), "no line with a loss was printed"
    assert "nan" not in printed
    assert ("goes on exactly: True" in printed) == (name in RESUMES), printed


@pytest.mark.slow  # starts two processes, three times
def test_plain_pytorch_goes_on_exactly_with_the_same_and_another_number_of_processes(tmp_path):
    whole, rest = (run("plain_pytorch_ddp", "run", folder=tmp_path).splitlines() for _ in range(2))
    assert [line.split(":")[0] for line in whole] == [f"step {step}" for step in range(1, 13)]
    assert rest == whole[8:]
    # The samples are the same, but sums are added in another order.
    alone = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=1"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    finished = subprocess.run(
        [*alone, FOLDER / "plain_pytorch_ddp.py", "run"],
        cwd=tmp_path, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert finished.returncode == 0, finished.stderr

    def numbers(lines):
        return [float(number) for line in lines for number in re.findall(r"\d+\.\d+", line)]

    assert numbers(finished.stdout.splitlines()) == pytest.approx(numbers(rest), rel=1e-5)
