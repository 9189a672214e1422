"""When a mapped file loses its pages while it is read, an error names the file and no signal kills the process."""

import io
import os
import signal
import subprocess
import sys
import tarfile

import numpy as np
import pytest

from pycooldown.data import token_sources
from pycooldown.data.index_building import build_index
from pycooldown.data.token_shard_writer import write_token_shard

# Each case runs in a process of its own. Before the mapped file is truncated, it is renamed and another file takes its
# name. So the status of the file shows nothing, and only a read of the map meets the missing pages.
CASE = """
import os, sys
from pycooldown.data import TarDataset, TokenDataset, token_sources
from pycooldown.data.token_shards import open_token_shard

kind, path, lost = sys.argv[1:4]
if kind in ("items", "flat"):
    dataset = TarDataset({"a": path})
elif kind == "index":
    dataset = TarDataset(path)
else:
    source = token_sources.flat(path, "uint16") if kind == "tokens" else open_token_shard(path)
    dataset = TokenDataset({"a": source}, 64, mode="document" if kind == "ends" else "concat")
get = dataset.__getitems__
if kind == "flat":
    get = lambda indices: dataset.flat(indices, "bin")

def lose_pages():
    os.rename(lost, lost + ".mapped")
    open(lost, "wb").close()
    os.truncate(lost + ".mapped", 0)

def read():
    try:
        get(range(len(dataset)))
    except OSError as error:
        print(error)
    else:
        print("nothing was noticed")
"""


@pytest.fixture
def shard(tmp_path):
    path = tmp_path / "shard.tar"
    with tarfile.open(path, "w") as tar:
        for i in range(40):
            info = tarfile.TarInfo(f"{i}.bin")
            info.size = 5000
            tar.addfile(info, io.BytesIO(bytes([i]) * 5000))
    return str(path)


@pytest.fixture
def files(shard, tmp_path):
    """Return, for each kind of read, the file to open and the file that loses its pages."""
    tokens = str(tmp_path / "tokens.bin")
    np.arange(40_000, dtype="<u2").tofile(tokens)
    documents = str(tmp_path / "documents.tar")
    write_token_shard(documents, ([7] * (1 + i % 60) for i in range(3000)), 100)
    index = str(tmp_path / "dataset.idx")
    build_index({"a": shard}, index)
    return {
        "items": (shard, shard),
        "flat": (shard, shard),
        "tokens": (tokens, tokens),
        "ends": (documents, documents + ".ends"),
        "index": (index, index),
    }


def run(code, *arguments):
    command = [sys.executable, "-c", CASE + code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=100)


ALONE = """
get([0, 1])
lose_pages()
read()
read()  # and again: zeros are never handed out
"""
IN_A_THREAD = """
import threading
get([0, 1])
lose_pages()
for _ in range(2):
    thread = threading.Thread(target=read)
    thread.start()
    thread.join()
"""
BESIDE_A_LATER_HANDLER = """
import faulthandler
get([0, 1])
faulthandler.enable()  # replaces our handler
lose_pages()
read()
read()
"""


@pytest.mark.parametrize("kind", ["items", "flat", "tokens", "ends", "index"])
@pytest.mark.parametrize("code", [ALONE, IN_A_THREAD, BESIDE_A_LATER_HANDLER], ids=["alone", "thread", "handler"])
def test_lost_pages_are_an_error_that_names_the_file(files, kind, code):
    path, lost = files[kind]
    child = run(code, kind, path, lost)
    assert child.returncode == 0, child.stderr
    lines = child.stdout.splitlines()
    assert len(lines) == 2
    assert all(f"{lost} was truncated while it was mapped" in line for line in lines)


INDEX_ALONE = """
from pycooldown.data.index import TarIndex
from pycooldown._core import TarIndexWriter

index = TarIndex.map(path)
assert len(index) == 40
lose_pages()
for read in (
    lambda: len(index), lambda: index.num_shards, lambda: index.domains, lambda: index.faults, lambda: index.to_bytes(),
    lambda: index.path(0), lambda: index.version(0), lambda: index.samples(0), lambda: index.shard_size(0),
    lambda: index.shard_mtime_ns(0), lambda: index.verify(0), lambda: index.has_fingerprint(0, sys.argv[0]),
    lambda: TarIndexWriter().add(index, 0, path="x", version=""), lambda: dataset.locate([0]),
):
    try:
        read()
    except OSError as error:
        print(error)
"""


def test_every_method_of_a_mapped_index_notices(files):
    child = run(INDEX_ALONE, "index", *files["index"])
    assert child.returncode == 0, child.stderr
    lines = child.stdout.splitlines()
    assert len(lines) == 14
    assert all(f"{files['index'][1]} was truncated while it was mapped" in line for line in lines)


OPENED = """
import dataclasses
from pycooldown.data.token_file import MappedEnds

class Losing(MappedEnds):
    def array(self):
        mapped = super().array()
        lose_pages()
        return mapped

source = open_token_shard(path)
ends = Losing(source.ends.path, source.ends.size, source.ends.offset)
dataset = TokenDataset({"a": dataclasses.replace(source, ends=ends)}, 64, mode=sys.argv[4])
get = dataset.__getitems__
read()
"""


@pytest.mark.parametrize("mode", ["concat", "document"])
def test_a_sidecar_that_loses_its_pages_while_a_dataset_is_made(files, mode):
    path, lost = files["ends"]
    child = run(OPENED, "ends", path, lost, mode)
    assert child.returncode == 0, child.stderr
    assert f"{lost} was truncated while it was mapped" in child.stdout


NUMBERS = """
numbers = open_token_shard(path).ends.open()
assert numbers.copy(0, 2).tolist() == [1, 3]
assert [numbers.count_up_to(token) for token in (0, 1, 2, 3)] == [0, 1, 1, 2]
lose_pages()
for look_up in (lambda: numbers.count_up_to(5), lambda: numbers.copy(0, 2)):
    try:
        look_up()
    except OSError as error:
        print(error)
"""


def test_numbers_that_are_looked_up(files):
    path, lost = files["ends"]
    child = run(NUMBERS, "ends", path, lost)
    assert child.returncode == 0, child.stderr
    assert child.stdout.count(f"{lost} was truncated while it was mapped") == 2


@pytest.mark.parametrize("source", ["megatron", "flat", "datatrove"])
def test_a_source_that_is_cut_off_while_it_is_opened(tmp_path, monkeypatch, source):
    """Files that shrink after the check of their sizes raise an error that names them."""
    tokens, lengths = np.arange(1, 2001, dtype="<u2"), np.full(4, 500)
    path = tmp_path / "x.bin"
    tokens.tofile(path)
    head = b"MMIDIDX\0\0" + np.array([1], "<u8").tobytes() + b"\x08" + np.array([4, 5], "<u8").tobytes()
    parts = (lengths.astype("<i4"), (np.arange(4) * 1000).astype("<i8"), np.arange(5, dtype="<i8"))
    (tmp_path / "x.idx").write_bytes(head + b"".join(part.tobytes() for part in parts))
    np.cumsum(lengths).astype("<u8").tofile(tmp_path / "x.bin.index")
    opened = {
        "megatron": lambda: token_sources.megatron(tmp_path / "x"),
        "flat": lambda: token_sources.flat(path, "uint16", eos_id=7),
        "datatrove": lambda: token_sources.datatrove(path, "uint16"),
    }[source]
    assert opened().tokens == 2000
    sizes = {os.fspath(entry): entry.stat().st_size for entry in tmp_path.iterdir()}
    monkeypatch.setattr(token_sources, "regular_size", sizes.__getitem__)
    for name in ("x.bin", "x.idx", "x.bin.index"):
        os.truncate(tmp_path / name, 20)
    with pytest.raises(OSError, match=r"x\.(bin|idx|bin\.index) was truncated while it was read"):
        opened()


IN_A_WORKER = """
import torch

class Losing(torch.utils.data.Dataset):
    def __len__(self):
        return len(dataset)
    def __getitems__(self, indices):
        get([0, 1])
        lose_pages()
        return get(indices)

try:
    next(iter(torch.utils.data.DataLoader(Losing(), batch_size=len(dataset), num_workers=1)))
except OSError as error:
    print(error)
"""


@pytest.mark.slow  # starts a process that imports torch, and a worker
@pytest.mark.parametrize("kind", ["items", "tokens"])
def test_lost_pages_in_a_worker_of_a_loader_are_an_error(files, kind):
    pytest.importorskip("torch")
    path, lost = files[kind]
    child = run(IN_A_WORKER, kind, path, lost)
    assert child.returncode == 0, child.stderr
    assert f"{lost} was truncated while it was mapped" in child.stdout


FOREIGN = """
import faulthandler, mmap
if sys.argv[4] == "before":
    faulthandler.enable()
get([0, 1])
if sys.argv[4] == "after":
    faulthandler.enable()
    get([0, 1])
with open(lost, "rb") as file:
    other = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
os.truncate(lost, 0)
other[0]
"""


@pytest.mark.parametrize("handler", ["none", "before", "after"])
def test_other_bus_errors_go_to_the_previous_handler(shard, handler):
    child = run(FOREIGN, "items", shard, shard, handler)
    assert child.returncode == -signal.SIGBUS
    assert ("Bus error" in child.stderr) == (handler != "none")


SENT = """
import signal
signal.signal(signal.SIGBUS, lambda number, frame: print("got it"))
get([0, 1])
os.kill(os.getpid(), signal.SIGBUS)
lose_pages()
read()
"""


def test_a_signal_from_outside_reaches_pythons_handler(shard):
    child = run(SENT, "items", shard, shard)
    assert child.returncode == 0, child.stderr
    assert child.stdout.startswith(f"got it\n[Errno 5] {shard} was truncated while it was mapped")


@pytest.mark.parametrize("kind", ["items", "flat", "tokens", "ends", "index"])
def test_a_file_that_is_truncated_within_a_page_is_noticed(files, kind):
    """A cut within the last page is noticed, although the rest of this page reads as zeros without a signal."""
    path, lost = files[kind]
    size = os.path.getsize(lost)
    child = run(f"get([0, 1])\nos.truncate(lost, {size - 1})\nread()", kind, path, lost)
    assert child.returncode == 0, child.stderr
    assert f"{lost} has changed since it was" in child.stdout
