"""The environment of all tests, set before anything is imported, and what several of them read."""

import io
import os
import shutil
import sys
import tarfile
from pathlib import Path

import pytest
from hypothesis import settings

# Processes that tests start must import the installed package, not the source tree that they happen to start in.
os.environ["PYTHONSAFEPATH"] = "1"
sys.path.append(str(Path(__file__).parents[1]))  # `reproduction`, behind the installed package
# Without a GPU, Triton's kernels run in its interpreter.
if shutil.which("nvidia-smi") is None:
    os.environ.setdefault("TRITON_INTERPRET", "1")

# The same examples on every machine; `pytest --hypothesis-profile=default` looks for new ones.
settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.register_profile("fuzz", max_examples=20_000, deadline=None, print_blob=True)
settings.load_profile("repeatable")


@pytest.fixture
def write_shards(tmp_path):
    """Writes tar shards of so many samples each; the key of a sample, and its text, is domain/shard/number."""

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
