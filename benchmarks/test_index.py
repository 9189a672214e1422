"""Opening a data set of very many samples by its index: time, and resident memory of eight processes together.

10,000 shards of 10,000 samples; the disk holds 16 of them, the others are further names of theirs. The index takes
about 3 GB in a temporary folder, and building it reads every header. `PYCOOLDOWN_INDEX_SHARDS=100` makes a small run.
"""

import os
import re
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest

from pycooldown.data.index_building import build_index

SHARDS, SAMPLES, DISTINCT = int(os.environ.get("PYCOOLDOWN_INDEX_SHARDS", "10000")), 10_000, 16
DOMAINS = 8
PROCESSES = 8
BATCH, BATCHES = 256, 20

# Opens the data set, says how long that took, waits, reads batches at random, and waits again.
READER = """
import sys, time
from pycooldown.data import TarDataset
import numpy as np
import pycooldown.data.shards
begin = time.perf_counter()
dataset = TarDataset(sys.argv[1])
print(time.perf_counter() - begin, len(dataset), flush=True)
sys.stdin.readline()
rng = np.random.default_rng(int(sys.argv[2]))
begin = time.perf_counter()
for _ in range(int(sys.argv[3])):
    dataset.__getitems__(rng.integers(0, len(dataset), int(sys.argv[4])).tolist())
print(time.perf_counter() - begin, flush=True)
sys.stdin.readline()
"""


def write_shards(folder):
    for number in range(DISTINCT):
        with open(folder / f"{number:05d}.tar", "wb") as file:
            for i in range(SAMPLES):
                info = tarfile.TarInfo(f"{number:05d}/{i:06d}.txt")
                info.size = 324
                file.write(info.tobuf(tarfile.USTAR_FORMAT) + f"{number}/{i}".encode().ljust(512, b"."))
            file.write(bytes(1024))
    for number in range(DISTINCT, SHARDS):
        os.link(folder / f"{number % DISTINCT:05d}.tar", folder / f"{number:05d}.tar")
    paths = [str(folder / f"{number:05d}.tar") for number in range(SHARDS)]
    return {f"domain{d}": paths[d * SHARDS // DOMAINS : (d + 1) * SHARDS // DOMAINS] for d in range(DOMAINS)}


def resident(processes):
    """Memory of processes together in bytes: pages that several have are counted once (PSS)."""
    rollups = (Path(f"/proc/{process.pid}/smaps_rollup").read_text() for process in processes)
    return sum(int(re.search(r"^Pss:\s+(\d+) kB", rollup, re.MULTILINE)[1]) * 1024 for rollup in rollups)


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards")
    shards = write_shards(folder)
    begin = time.perf_counter()
    build_index(shards, folder / "dataset.idx", workers=os.cpu_count())
    seconds, size = time.perf_counter() - begin, (folder / "dataset.idx").stat().st_size
    total = SHARDS * SAMPLES
    print(
        f"\n{total:,} samples in {SHARDS:,} shards: index built in {seconds:.1f} s ({total / seconds:,.0f} samples/s)"
    )
    print(f"{size / total:.1f} bytes a sample, {size / total - len('00000/000000'):.1f} of them beside its key")
    yield folder / "dataset.idx"
    for path in folder.iterdir():
        path.unlink()


def test_eight_processes(index, benchmark):
    command = [sys.executable, "-c", READER, str(index)]
    numbers = (str(n) for n in range(PROCESSES))
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}

    def start(number):
        return subprocess.Popen([*command, number, str(BATCHES), str(BATCH)], **pipes)

    without = READER.replace("TarDataset(sys.argv[1])", "[]")
    bare = subprocess.Popen([sys.executable, "-c", without, "", "0", "0", "1"], **pipes)
    bare.stdout.readline()
    readers = [start(number) for number in numbers]
    try:
        opened = [reader.stdout.readline().split() for reader in readers]
        assert {int(samples) for _, samples in opened} == {SHARDS * SAMPLES}
        seconds, memory = max(float(s) for s, _ in opened), resident(readers)
        alone = resident([bare])
        tell(readers)
        reading = [float(reader.stdout.readline()) for reader in readers]
        later = resident(readers)
    finally:
        for process in [*readers, bare]:
            process.kill()
            process.wait()
    scale = 1e9 / (SHARDS * SAMPLES)
    print(f"opened in {seconds:.3f} s by the slowest of {PROCESSES}; together {memory / 1e6:.0f} MB resident")
    print(f"(a process that has loaded the package and opened nothing: {alone / 1e6:.0f} MB)")
    print(
        f"after {BATCHES} batches of {BATCH} each: {later / 1e6:.0f} MB, pages of index and shards among them; ", end=""
    )
    print(f"{PROCESSES * BATCHES * BATCH / max(reading):,.0f} samples/s from cold maps")
    print(f"10^9 samples in {SHARDS * scale:,.0f} such shards, by proportion: {seconds * scale:.2f} s at most")
    benchmark.extra_info.update(seconds=seconds, resident=memory, later=later, alone=alone)
    benchmark.pedantic(lambda: subprocess.run([*command, "0", "0", "0"], input="\n\n", text=True, check=True), rounds=3)
    assert seconds < 2
    assert memory < 200e6


def tell(processes):
    for process in processes:
        process.stdin.write("\n")
        process.stdin.flush()
