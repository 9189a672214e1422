"""Open a data set of very many samples by its index: time, and resident memory of eight processes together.

10,000 shards of 10,000 samples; the disk holds 16 of them and their indexes, the others are further names of theirs.
The index of all takes 2.5 GB in a temporary folder. `PYCOOLDOWN_INDEX_SHARDS=100` makes a small run.
"""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1] / "tests/data"))
from linked_shards import write_linked_shards

from pycooldown.data.index import load_index
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
begin, cpu = time.perf_counter(), time.process_time()
dataset = TarDataset(sys.argv[1])
print(time.perf_counter() - begin, len(dataset), time.process_time() - cpu, flush=True)
sys.stdin.readline()
rng = np.random.default_rng(int(sys.argv[2]))
begin = time.perf_counter()
for _ in range(int(sys.argv[3])):
    dataset.__getitems__(rng.integers(0, len(dataset), int(sys.argv[4])).tolist())
print(time.perf_counter() - begin, flush=True)
sys.stdin.readline()
"""


def write_shards(folder):
    paths = write_linked_shards(folder, SHARDS, SAMPLES, min(DISTINCT, SHARDS), size=324)
    begin = time.perf_counter()
    for path in paths[:DISTINCT]:
        load_index(path)
    rate = DISTINCT * SAMPLES / (time.perf_counter() - begin)
    print(f"\na scan finds {rate:,.0f} samples/s on one core, from memory")
    for number, path in enumerate(paths[DISTINCT:]):
        os.link(f"{paths[number % DISTINCT]}.idx", f"{path}.idx")
    return {f"domain{d}": paths[d * SHARDS // DOMAINS : (d + 1) * SHARDS // DOMAINS] for d in range(DOMAINS)}


def resident(processes):
    """Return the memory of processes together in bytes; shared pages are counted once (PSS)."""
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
    print(f"{total:,} samples in {SHARDS:,} shards: index of all in {seconds:.1f} s, out of those of the shards")
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
        assert {int(samples) for _, samples, _ in opened} == {SHARDS * SAMPLES}
        seconds, memory = max(float(s) for s, _, _ in opened), resident(readers)
        cpu = max(float(s) for _, _, s in opened)
        alone = resident([bare])
        tell(readers)
        reading = [float(reader.stdout.readline()) for reader in readers]
        later = resident(readers)
    finally:
        for process in [*readers, bare]:
            process.kill()
            process.wait()
    scale = 1e9 / (SHARDS * SAMPLES)
    print(f"opened in {seconds:.3f} s by the slowest of {PROCESSES} ({cpu:.3f} s of a core)")
    print(f"together {memory / 1e6:.0f} MB resident")
    print(f"(a process that has loaded the package and opened nothing: {alone / 1e6:.0f} MB)")
    print(f"after {BATCHES} batches of {BATCH} each: {later / 1e6:.0f} MB with cached pages of index and shards")
    print(f"{PROCESSES * BATCHES * BATCH / max(reading):,.0f} samples/s from cold maps")
    print(f"10^9 samples in {SHARDS * scale:,.0f} such shards, by proportion:", end=" ")
    print(f"{seconds * scale:.2f} s ({cpu * scale:.2f} s of a core)")
    benchmark.extra_info.update(seconds=seconds, resident=memory, later=later, alone=alone)
    benchmark.pedantic(lambda: subprocess.run([*command, "0", "0", "0"], input="\n\n", text=True, check=True), rounds=3)
    assert seconds < 2
    assert memory < 200e6


def tell(processes):
    for process in processes:
        process.stdin.write("\n")
        process.stdin.flush()
