"""Forward and backward of a linear layer and weighted cross-entropy on the CPU, as multiples of the three products.

    pytest benchmarks/test_linear_cross_entropy.py --benchmark-enable --benchmark-json=out.json

The products (logits, gradient of the input, gradient of the weight, on all rows at once), torch's composition, the same
on chunks that are computed again in backward, torch's chunked linear_cross_entropy and ours take turns in one process;
extra_info has the medians' ratios. "half" is ours with every other token ignored. Peak memory is that above the inputs,
in MiB, in a process of its own. Errors are the largest of each gradient against float64, as a share of its largest.

"products" write into memory that is mapped already, which takes no time: the strictest of measures. "fresh_products"
allocate theirs, as all others do. With MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=68719476736 MALLOC_TOP_PAD_=0 glibc
keeps the memory of all, and none waits for pages.

bfloat16 is measured where the processor multiplies it. Elsewhere its products are emulated, many times slower than
those of float32: the ratios would be of the emulation, and a case could take longer than the limit of a test.
"""

import functools
import statistics
import time
import timeit

import process_memory
import pytest
import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from pycooldown.losses import linear_cross_entropy

pytestmark = pytest.mark.timeout(0)  # the suite's limit detects hangs, not slow machines
CASES = [(torch.float32, 1024, 512, 32768), (torch.bfloat16, 1024, 1024, 32768)]  # dtype, rows, features, classes
ROUNDS = 5
OPTIONS = torch.nn.LinearCrossEntropyOptions()
NATIVE_SLOWDOWN = 4  # of bfloat16's products over float32's, at most, where the processor has instructions for them


class Problem:
    """Inputs, and every way to compute the loss and both gradients."""

    def __init__(self, dtype, rows, features, classes):
        self.hidden = torch.randn(rows, features).to(dtype).requires_grad_()
        self.weight = (torch.randn(classes, features) / features**0.5).to(dtype).requires_grad_()
        self.target, self.ids = torch.randint(classes, (rows,)), torch.randint(8, (rows,))
        self.half = self.target.where(torch.arange(rows) % 2 == 0, -100)
        self.weights = torch.linspace(0.5, 2, 8)
        self.buffers = None

    def products(self, chunk_size=None):
        """Compute the products into memory that is already mapped, unlike that of the others."""
        hidden, weight = self.hidden.detach(), self.weight.detach()
        if self.buffers is None:
            self.buffers = hidden.new_empty(len(hidden), len(weight)), hidden.clone(), weight.clone()
        logits, grad_hidden, grad_weight = self.buffers
        chunks = zip(*(x.split(chunk_size or len(hidden)) for x in (hidden, logits, grad_hidden)), strict=True)
        for number, (rows, out, grad) in enumerate(chunks):
            torch.mm(rows, weight.t(), out=out)
            torch.mm(out, weight, out=grad)
            torch.addmm(grad_weight, out.t(), rows, beta=min(number, 1), out=grad_weight)

    def fresh_products(self):
        """Compute the products with plain calls, which allocate their results."""
        hidden, weight = self.hidden.detach(), self.weight.detach()
        logits = torch.mm(hidden, weight.t())
        return torch.mm(logits, weight), torch.mm(logits.t(), hidden)

    def torch(self):
        """Compute the loss with all logits in memory."""
        logits = F.linear(self.hidden, self.weight)
        self.backward((F.cross_entropy(logits, self.target, reduction="none") * self.weights[self.ids]).mean())

    def recomputed(self, chunk_size=256):
        """Compute the loss in chunks whose logits are dropped after forward."""

        def part(hidden, target, ids):
            logits = F.linear(hidden, self.weight)
            return (F.cross_entropy(logits, target, reduction="none") * self.weights[ids]).sum()

        chunks = zip(*(x.split(chunk_size) for x in (self.hidden, self.target, self.ids)), strict=True)
        losses = [checkpoint(part, *chunk, use_reentrant=False) for chunk in chunks]
        self.backward(torch.stack(losses).sum() / len(self.target))

    def torch_chunked(self):
        """Compute the loss without weights, which torch's function does not support."""
        self.backward(F.linear_cross_entropy(self.hidden, self.weight, self.target, options=OPTIONS))

    def ours(self, target=None, **options):
        """Compute the loss in chunks, with weights."""
        target = self.target if target is None else target
        loss = linear_cross_entropy(
            self.hidden, self.weight, target, domain_ids=self.ids, domain_weights=self.weights, **options
        )
        self.backward(loss)

    def backward(self, loss):
        """Run backward into .grad, which is then dropped."""
        loss.backward()
        self.hidden.grad = self.weight.grad = None


@functools.cache
def slowdown(dtype):
    """Return the time of a product over that in float32, the minimum of ten each."""
    times = []
    for each in (torch.float32, dtype):
        left, right = (torch.randn(shape).to(each) for shape in ((128, 512), (512, 4096)))
        torch.mm(left, right)
        times.append(min(timeit.repeat(lambda: torch.mm(left, right), number=1, repeat=10)))  # noqa: B023
    return times[1] / times[0]


@pytest.fixture(autouse=True)
def native(request):
    """Skip cases of a dtype whose products the processor emulates."""
    parameters = request.node.callspec.params
    dtype = parameters["case"][0] if "case" in parameters else parameters["dtype"]
    if dtype != torch.float32 and slowdown(dtype) > NATIVE_SLOWDOWN:
        pytest.skip(f"products in {dtype} take {slowdown(dtype):.0f} times as long as in float32: they are emulated")


@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(map(str, case)))
def test_time(benchmark, case):
    problem = Problem(*case)
    contenders = {
        "products": problem.products,
        "fresh_products": problem.fresh_products,
        "ours": problem.ours,
        "half": lambda: problem.ours(problem.half),
        "torch": problem.torch,
        "recomputed": problem.recomputed,
        "torch_chunked": problem.torch_chunked,
    }
    times = {name: [] for name in contenders}

    def turn():
        for name, contender in contenders.items():
            if name == "torch_chunked" and len(times[name]) > 1:
                continue  # many times slower than the rest
            begin = time.perf_counter()
            contender()
            times[name].append(time.perf_counter() - begin)

    benchmark.pedantic(turn, rounds=ROUNDS, warmup_rounds=1)
    medians = {name: statistics.median(values[1:] or values) for name, values in times.items()}
    benchmark.extra_info.update({f"{name}_over_products": t / medians["products"] for name, t in medians.items()})
    benchmark.extra_info["torch_chunked_over_ours"] = medians["torch_chunked"] / medians["ours"]
    benchmark.extra_info["ours_over_fresh_products"] = medians["ours"] / medians["fresh_products"]
    benchmark.extra_info["half_over_ours"] = medians["half"] / medians["ours"]
    benchmark.extra_info["products_seconds"] = medians["products"]


@pytest.mark.parametrize("chunk_size", [64, 128, 256, 512, 1024])
@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(map(str, case)))
def test_chunk_size(benchmark, case, chunk_size):
    """Measure the cost of smaller products, alone and with the loss between them."""
    problem = Problem(*case)
    contenders = {
        "products": problem.products,
        "products_in_chunks": lambda: problem.products(chunk_size),
        "ours": lambda: problem.ours(chunk_size=chunk_size),
    }
    times = {name: [] for name in contenders}

    def turn():
        for name, contender in contenders.items():
            begin = time.perf_counter()
            contender()
            times[name].append(time.perf_counter() - begin)

    benchmark.pedantic(turn, rounds=ROUNDS, warmup_rounds=1)
    medians = {name: statistics.median(values[1:] or values) for name, values in times.items()}
    for name in ("products_in_chunks", "ours"):
        benchmark.extra_info[f"{name}_over_products"] = medians[name] / medians["products"]


@pytest.mark.parametrize("way", ["ours", "torch", "recomputed", "torch_chunked"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(map(str, case)))
def test_peak_memory(benchmark, case, way):
    try:
        peak = benchmark.pedantic(process_memory.peak_of, (prepared, case, way), rounds=1)
    except process_memory.CannotMeasure as error:
        pytest.skip(str(error))
    dtype, rows, features, classes = case
    gradients = (rows + classes) * features * dtype.itemsize
    benchmark.extra_info["peak_mib"] = peak / 2**20
    benchmark.extra_info["peak_beyond_gradients_mib"] = (peak - gradients) / 2**20


def prepared(case, way):
    """Return the call whose peak is measured."""
    problem, small = Problem(*case), Problem(case[0], 8, 8, 8)
    getattr(small, way)()  # loads what is loaded once
    problem.products()  # allocates the buffers that the library of the products keeps
    problem.buffers = None
    return getattr(problem, way)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_error(benchmark, dtype):
    problem = Problem(dtype, 256, 256, 32768)
    exact = Problem(torch.float64, 1, 1, 1)
    exact.hidden, exact.weight = (t.detach().double().requires_grad_() for t in (problem.hidden, problem.weight))
    exact.target, exact.ids = problem.target, problem.ids
    expected = gradients(exact, "torch")
    found = {way: gradients(problem, way) for way in ("torch", "recomputed", "ours")}
    benchmark.pedantic(gradients, (problem, "ours"), rounds=1)
    for way, of_way in found.items():
        for side, got, want in zip(("hidden", "weight"), of_way, expected, strict=True):
            benchmark.extra_info[f"{way}_{side}_error"] = ((got - want).abs().max() / want.abs().max()).item()


def gradients(problem, way):
    """Return the gradients of hidden and weight."""
    kept = []
    problem.backward = lambda loss: kept.extend(torch.autograd.grad(loss, (problem.hidden, problem.weight)))
    getattr(problem, way)()
    del problem.backward
    return kept
