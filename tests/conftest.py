"""The environment of all tests, set before other imports, and the fixtures that several folders of tests share."""

import importlib.util
import io
import os
import random
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings

# Processes that tests start must import the installed package, not the source tree that they happen to start in.
os.environ["PYTHONSAFEPATH"] = "1"
os.environ["COLUMNS"] = "160"  # tables have the same width on every terminal, and without a terminal
# Processes of pytest-xdist share the cores. Each of them would start a thread for every core.
if "PYTEST_XDIST_WORKER_COUNT" in os.environ:
    threads = max(1, (os.cpu_count() or 1) // int(os.environ["PYTEST_XDIST_WORKER_COUNT"]))
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))
sys.path.append(str(Path(__file__).parents[1]))  # `reproduction`, behind the installed package

# The devices that torch can use. Tests that take `device` run on each.
DEVICES = ["cpu"]
if importlib.util.find_spec("torch"):
    import torch

    if torch.cuda.is_available():
        DEVICES.append("cuda")
# Without a GPU, Triton's kernels run in its interpreter. Triton reads this variable when it is imported.
if "cuda" not in DEVICES:
    os.environ.setdefault("TRITON_INTERPRET", "1")

# Hypothesis tries the same examples on every machine. `pytest --hypothesis-profile=default` looks for new ones.
settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.register_profile("fuzz", max_examples=20_000, deadline=None, print_blob=True)
settings.load_profile("repeatable")


def pytest_generate_tests(metafunc):
    if "device" in metafunc.fixturenames:
        on_host = metafunc.definition.get_closest_marker("host") is not None
        metafunc.parametrize("device", DEVICES[:1] if on_host else DEVICES, indirect=True)


def leaves_slow_tests_out(config):
    """Return True unless the command line picks tests: by `-m`, by `-k`, or by the name of a file or of a test."""
    paths = [argument.split("::")[0] for argument in config.args]
    return not (config.option.markexpr or config.option.keyword or any(path.endswith(".py") for path in paths))


def pytest_report_header(config):
    return "slow tests are left out: run them by `pytest -m slow`" if leaves_slow_tests_out(config) else None


def pytest_collection_modifyitems(config, items):
    if leaves_slow_tests_out(config):
        config.hook.pytest_deselected(items=[item for item in items if item.get_closest_marker("slow")])
        items[:] = [item for item in items if not item.get_closest_marker("slow")]


def seed_generators():
    """Seed the global random generators."""
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)


@pytest.hookimpl(tryfirst=True)
def pytest_fixture_setup():
    """Seed before each fixture. A fixture of a module or session draws the same numbers in whichever test it starts."""
    seed_generators()


@pytest.fixture(autouse=True)
def seeded():
    """Seed before each test. It draws the same numbers alone as after other tests."""
    seed_generators()


@pytest.fixture(autouse=True)
def settings_of_accelerate():
    """Restore Accelerate's environment variables after each test.

    In some versions of transformers the arguments of Trainer set them for the whole process, bfloat16 for example.
    """
    before = {name: value for name, value in os.environ.items() if name.startswith("ACCELERATE_")}
    yield
    for name in [name for name in os.environ if name.startswith("ACCELERATE_")]:
        del os.environ[name]
    os.environ.update(before)


@pytest.fixture
def device(request, monkeypatch):
    """Return one of `DEVICES`. New tensors are made on it, and tensors that the test's module defines move to it."""
    device = torch.device(request.param)
    if device.type == "cpu":
        yield device
        return
    for name, value in list(vars(request.module).items()):
        if isinstance(value, torch.Tensor):
            monkeypatch.setattr(request.module, name, value.to(device))
    with device:
        yield device


@pytest.fixture
def fused(device):
    """Return the name of the device's fused backend."""
    return {"cpu": "cpp", "cuda": "triton"}[device.type]


@pytest.fixture(scope="session")
def kernel_device():
    """Return the device on which Triton's kernels run: a GPU, or the CPU, where they are interpreted."""
    return DEVICES[-1]


@pytest.fixture
def write_shards(tmp_path):
    """Return a function that writes tar shards with the given numbers of samples.

    The key of a sample is domain/shard/number, and so is its text.
    """

    def write(counts):
        shards = {}
        for domain, sizes in counts.items():
            shards[domain] = [str(tmp_path / f"{domain}-{number}.tar") for number in range(len(sizes))]
            for number, (path, size) in enumerate(zip(shards[domain], sizes, strict=True)):
                with tarfile.open(path, "w") as tar:
                    for i in range(size):
                        text = f"{domain}/{number}/{i}".encode()
                        info = tarfile.TarInfo(f"{text.decode()}.txt")
                        info.size = len(text)
                        tar.addfile(info, io.BytesIO(text))
        return shards

    return write
