"""Forward and backward of the weighted cross-entropy on the CPU, as multiples of a copy of the logits and of torch.

    pytest benchmarks/test_cross_entropy.py --benchmark-enable --benchmark-json=out.json

Ours, torch's composition and the copy take turns in one process; extra_info has the medians and their ratios. "shared"
is ours in a process group of one: what a rank computes where ranks share the classes, without waiting for others. With
the default allocator each fresh buffer of this size is mapped anew, and page faults are a good part of the time. For
the kernels alone, let glibc keep the memory: MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=68719476736 MALLOC_TOP_PAD_=0.
"""

import ctypes
import statistics
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import process_memory
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F

from pycooldown.losses import cross_entropy

SHAPES = [(2048, 32768), (4096, 50257), (1024, 151936)]
ROUNDS = 7


@pytest.fixture(scope="session")
def stream_copy(tmp_path_factory):
    library = tmp_path_factory.mktemp("copy") / "stream_copy.so"
    source = Path(__file__).with_name("stream_copy.c")
    subprocess.run(["cc", "-O3", "-march=native", "-shared", "-fPIC", "-o", library, source], check=True)
    function = ctypes.CDLL(str(library)).stream_copy
    threads = torch.get_num_threads()
    pool = ThreadPoolExecutor(threads)

    def copy(to, source):
        size = source.numel() * source.element_size() // threads // 64 * 64
        parts = [
            pool.submit(
                function, *(ctypes.c_void_p(t.data_ptr() + i * size) for t in (to, source)), ctypes.c_size_t(size)
            )
            for i in range(threads)
        ]
        for part in parts:
            part.result()

    return copy


@pytest.fixture(scope="session")
def process_group(tmp_path_factory):
    store = tmp_path_factory.mktemp("group") / "store"
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=0, world_size=1)
    yield dist.group.WORLD
    dist.destroy_process_group()


def train(loss, logits):
    """Run forward and backward. The logits are no leaf, as in a model, so that their gradient is not accumulated."""
    gradient = torch.autograd.grad(loss(logits), logits)
    del gradient


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "x".join(map(str, shape)))
def test_cross_entropy(benchmark, stream_copy, process_group, shape, dtype):
    rows, classes = shape
    logits = (torch.randn(shape) * 3).to(dtype)
    target, ids, weights = torch.randint(classes, (rows,)), torch.randint(8, (rows,)), torch.linspace(0.5, 2, 8)
    to = torch.zeros_like(logits)
    leaf = torch.zeros((), requires_grad=True)

    def bare(x):
        return cross_entropy(x, target, backend="cpp")

    def weighted(x):
        return cross_entropy(x, target, domain_ids=ids, domain_weights=weights, backend="cpp")

    def shared(x):
        return cross_entropy(
            x, target, domain_ids=ids, domain_weights=weights, backend="cpp", process_group=process_group
        )

    def all_extras(x):
        loss, _ = cross_entropy(
            x, target, domain_ids=ids, domain_weights=weights, label_smoothing=0.1, z_loss=1e-4, return_stats=True
        )
        return loss

    def torch_weighted(x):
        return (F.cross_entropy(x, target, reduction="none") * weights[ids]).mean()

    def inplace():
        to.copy_(logits)  # not timed
        x = Passing.apply(to, leaf)
        begin = time.perf_counter()
        loss = cross_entropy(x, target, domain_ids=ids, domain_weights=weights, inplace=True)
        torch.autograd.grad(loss, leaf)
        return time.perf_counter() - begin

    def timed(function, *arguments):
        begin = time.perf_counter()
        function(*arguments)
        return time.perf_counter() - begin

    x = logits.requires_grad_()
    contenders = {
        "copy": lambda: timed(stream_copy, to, logits),
        "bare": lambda: timed(train, bare, x),
        "weighted": lambda: timed(train, weighted, x),
        "shared": lambda: timed(train, shared, x),
        "all_extras": lambda: timed(train, all_extras, x),
        "torch": lambda: timed(train, torch_weighted, x),
        "inplace": inplace,
    }
    times = {name: [] for name in contenders}

    def turn():
        for name, contender in contenders.items():
            times[name].append(contender())

    benchmark.pedantic(turn, rounds=ROUNDS, warmup_rounds=1)
    medians = {name: statistics.median(values[1:] or values) for name, values in times.items()}
    benchmark.extra_info.update({f"{name}_over_copy": time / medians["copy"] for name, time in medians.items()})
    benchmark.extra_info["torch_over_weighted"] = medians["torch"] / medians["weighted"]
    benchmark.extra_info["torch_over_inplace"] = medians["torch"] / medians["inplace"]
    benchmark.extra_info["shared_over_weighted"] = medians["shared"] / medians["weighted"]
    benchmark.extra_info["all_extras_over_bare"] = medians["all_extras"] / medians["bare"]
    benchmark.extra_info["copy_gigabytes_per_second"] = 2e-9 * logits.numel() * logits.element_size() / medians["copy"]


@pytest.mark.parametrize("way", ["ours", "ours in place", "torch"])
def test_peak_memory(benchmark, way):
    """Measure the peak memory above that of the inputs, as a multiple of the logits, in a separate process."""
    try:
        benchmark.extra_info["peak_over_logits"] = benchmark.pedantic(peak_over_logits, (way,), rounds=1)
    except process_memory.CannotMeasure as error:
        pytest.skip(str(error))


def peak_over_logits(way):
    rows, classes = SHAPES[0]
    return process_memory.peak_of(prepared, way) / (rows * classes * torch.float32.itemsize)


def prepared(way):
    """Return the call whose peak is measured."""
    rows, classes = SHAPES[0]
    target, ids, weights = torch.randint(classes, (rows,)), torch.randint(8, (rows,)), torch.linspace(0.5, 2, 8)
    leaf = torch.zeros((), requires_grad=True)
    x = Passing.apply(torch.randn(rows, classes), leaf)

    def run():
        if way == "torch":
            loss = (F.cross_entropy(x, target, reduction="none") * weights[ids]).mean()
        else:
            loss = cross_entropy(x, target, domain_ids=ids, domain_weights=weights, inplace=way == "ours in place")
        torch.autograd.grad(loss, leaf)

    cross_entropy(torch.randn(2, 8), target[:2] % 8)  # excludes what is imported and allocated only once
    torch.autograd.grad(F.cross_entropy(torch.randn(2, 8) + leaf, target[:2] % 8), leaf)
    return run


class Passing(torch.autograd.Function):
    """An operation that makes a tensor depend on another at no cost, as a model's last layer does for its logits."""

    @staticmethod
    def forward(ctx, value, leaf):
        """Return the value."""
        return value.view_as(value)

    @staticmethod
    def backward(ctx, grad):
        """Return some scalar of the gradient."""
        return None, grad.flatten()[0]
