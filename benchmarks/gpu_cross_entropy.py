"""Time the fused cross-entropy on a CUDA GPU against torch, torch.compile, Liger and cut-cross-entropy.

    python benchmarks/gpu_cross_entropy.py [--quick]     # on a machine with a GPU: check, then time
    python benchmarks/gpu_cross_entropy.py --check       # anywhere: only compare the numbers, at a small size

Forward and backward of a mean loss, in three tasks:

* mean: the mean over tokens of logits (N, V);
* domains: each token weighted by its domain, and the loss summed and the tokens counted by domain;
* linear: the logits are (N, D) @ (V, D).T, and both factors get a gradient.

ms is the median of interleaved runs between CUDA events, L2 flushed before each. GB/s counts one read and one write of
the logits, the least that forward and backward with a kept gradient can move, whatever was moved; % of copy relates it
to `Tensor.copy_` of the logits, measured likewise. MiB is peak memory above the inputs'. Linear is mostly products.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import importlib.util
import os
import statistics
import sys
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # for --check; read when triton is imported

from pycooldown.losses import cross_entropy, linear_cross_entropy

NUM_DOMAINS = 8
HIDDEN = 2048
SHAPES = [(8192, 32_768), (8192, 50_257), (4096, 151_936)]
CHECK_SHAPE = (24, 5_027)
RUNS = 30
PEERS = {"liger-kernel": "liger_kernel", "cut-cross-entropy": "cut_cross_entropy"}


class Problem(NamedTuple):
    """Inputs of every task; the first three require grad, and those that the task does not use are empty."""

    logits: torch.Tensor
    hidden: torch.Tensor
    classifier: torch.Tensor
    target: torch.Tensor
    domain_ids: torch.Tensor
    domain_weights: torch.Tensor


def problem(task: str, num_rows: int, num_classes: int, dtype: torch.dtype, device: str) -> Problem:
    torch.manual_seed(0)
    new = partial(torch.randn, device=device, dtype=dtype)
    is_linear = task == "linear"
    target = torch.randint(num_classes, (num_rows,), device=device)
    target[::10] = -100
    return Problem(
        new(0 if is_linear else num_rows, num_classes).mul_(3).requires_grad_(),
        new(num_rows if is_linear else 0, HIDDEN).requires_grad_(),
        new(num_classes if is_linear else 0, HIDDEN).mul_(3 * HIDDEN**-0.5).requires_grad_(),
        target,
        torch.randint(NUM_DOMAINS, (num_rows,), device=device),
        torch.linspace(0.2, 3, NUM_DOMAINS, device=device),
    )


class Logits(torch.autograd.Function):
    """Hands out a copy of the logits that may be overwritten, and keeps the gradient that comes back, at no cost."""

    gradient: torch.Tensor | None = None

    @staticmethod
    def forward(ctx: Any, logits: torch.Tensor) -> torch.Tensor:  # noqa: D102
        return logits.clone()

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> None:  # noqa: D102
        Logits.gradient = gradient


# A contender takes logits, or (hidden, classifier), and the problem, and returns the loss.
def torch_mean(logits: torch.Tensor, p: Problem) -> torch.Tensor:
    return F.cross_entropy(logits, p.target)


def torch_domains(logits: torch.Tensor, p: Problem) -> torch.Tensor:
    loss = F.cross_entropy(logits, p.target, reduction="none")
    valid = p.target != -100
    for values in (loss.detach().double(), valid.long()):
        torch.zeros(NUM_DOMAINS, dtype=values.dtype, device=loss.device).index_add_(0, p.domain_ids, values)
    return (loss * p.domain_weights[p.domain_ids]).sum() / valid.sum()


def torch_linear(hidden: torch.Tensor, classifier: torch.Tensor, p: Problem) -> torch.Tensor:
    return torch_mean(hidden @ classifier.T, p)


def ours_mean(logits: torch.Tensor, p: Problem, inplace: bool = False) -> torch.Tensor:
    return cross_entropy(logits, p.target, inplace=inplace, backend="triton")


def ours_domains(logits: torch.Tensor, p: Problem, inplace: bool = False) -> torch.Tensor:
    domains = {"domain_ids": p.domain_ids, "domain_weights": p.domain_weights, "return_stats": True}
    return cross_entropy(logits, p.target, inplace=inplace, backend="triton", **domains)[0]


def torch_chunked_linear(hidden: torch.Tensor, classifier: torch.Tensor, p: Problem) -> torch.Tensor:
    return F.linear_cross_entropy(hidden, classifier, p.target, options=torch.nn.LinearCrossEntropyOptions())


def ours_linear(hidden: torch.Tensor, classifier: torch.Tensor, p: Problem) -> torch.Tensor:
    return linear_cross_entropy(hidden, classifier, p.target, backend="triton")


def liger_mean(logits: torch.Tensor, p: Problem) -> torch.Tensor:
    from liger_kernel.transformers.functional import liger_cross_entropy

    return liger_cross_entropy(logits, p.target)


def liger_linear(hidden: torch.Tensor, classifier: torch.Tensor, p: Problem) -> torch.Tensor:
    from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy

    return liger_fused_linear_cross_entropy(hidden, classifier, p.target)


def cce_linear(hidden: torch.Tensor, classifier: torch.Tensor, p: Problem) -> torch.Tensor:
    from cut_cross_entropy import linear_cross_entropy

    return linear_cross_entropy(hidden, classifier, p.target)


CONTENDERS: dict[str, dict[str, Callable[..., torch.Tensor]]] = {
    "mean": {
        "torch": torch_mean,
        "torch.compile": torch.compile(torch_mean, dynamic=False),
        "liger-kernel": liger_mean,
        "pycooldown": ours_mean,
        "pycooldown, in place": partial(ours_mean, inplace=True),
    },
    "domains": {
        "torch": torch_domains,
        "torch.compile": torch.compile(torch_domains, dynamic=False),
        "pycooldown": ours_domains,
        "pycooldown, in place": partial(ours_domains, inplace=True),
    },
    "linear": {
        "torch": torch_linear,
        "torch.compile": torch.compile(torch_linear, dynamic=False),
        "torch, chunked": torch_chunked_linear,
        "liger-kernel": liger_linear,
        "cut-cross-entropy": cce_linear,
        "pycooldown": ours_linear,
    },
}


def inputs(task: str, p: Problem) -> tuple[torch.Tensor, ...]:
    """Fresh ones for one run, made outside of what is measured."""
    p.hidden.grad = p.classifier.grad = Logits.gradient = None
    return (p.hidden, p.classifier) if task == "linear" else (Logits.apply(p.logits),)


def step(contender: Callable[..., torch.Tensor], arguments: tuple[torch.Tensor, ...], p: Problem) -> torch.Tensor:
    loss = contender(*arguments, p)
    loss.backward()
    return loss.detach()


def results(task: str, contender: Callable[..., torch.Tensor], p: Problem) -> list[torch.Tensor]:
    """Loss and gradients."""
    loss = step(contender, inputs(task, p), p)
    return [loss, p.hidden.grad, p.classifier.grad] if task == "linear" else [loss, Logits.gradient]


def check(task: str, name: str, p: Problem) -> str:
    """How far loss and gradients are from float64, relative to the largest entry. Raises if that is too far."""
    exact = Problem(*(x.detach().double().requires_grad_() for x in p[:3]), *p[3:])
    want = results(task, CONTENDERS[task]["torch"], exact)
    got = results(task, CONTENDERS[task][name], p)
    errors = [((g - w).abs().max() / w.abs().max()).item() for g, w in zip(got, want)]
    limit = 1e-4 if p.hidden.dtype == torch.float32 else 5e-2
    if not max(errors) < limit:
        raise SystemExit(f"{task}, {name}: errors of loss and gradients {errors}, more than {limit}")
    return "errors of loss and gradients " + " ".join(f"{error:.1e}" for error in errors)


def missing(name: str) -> str | None:
    """Why a peer cannot run here."""
    if name in PEERS and importlib.util.find_spec(PEERS[name]) is None:
        return f"not installed: pip install {name}"
    if name == "cut-cross-entropy" and not torch.cuda.is_available():
        return "needs a GPU: it autotunes, which Triton's interpreter cannot"
    return None


def time_all(actions: dict[str, tuple[Callable[[], Any], Callable[[Any], Any]]], runs: int) -> dict[str, float]:
    """Median milliseconds of each (prepare, run), taking turns, with L2 flushed in between."""
    flush = torch.empty(512 << 20, dtype=torch.int8, device="cuda")
    times: dict[str, list[float]] = {name: [] for name in actions}
    for _ in range(runs):
        for name, (prepare, run) in actions.items():
            prepared = prepare()
            flush.zero_()
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            run(prepared)
            end.record()
            end.synchronize()
            times[name].append(start.elapsed_time(end))
    return {name: statistics.median(taken) for name, taken in times.items()}


def peak_memory(task: str, contender: Callable[..., torch.Tensor], p: Problem) -> float:
    """MiB above the inputs, at the second run: the first compiles."""
    step(contender, inputs(task, p), p)
    prepared = inputs(task, p)
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    step(contender, prepared, p)
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def benchmark(task: str, num_rows: int, num_classes: int, dtype: torch.dtype, runs: int) -> None:
    p = problem(task, num_rows, num_classes, dtype, "cuda")
    actions, memory, failed = {}, {}, {}
    for name, contender in CONTENDERS[task].items():
        failed[name] = missing(name)
        if failed[name] is None:
            try:
                memory[name] = peak_memory(task, contender, p)
                actions[name] = partial(inputs, task, p), partial(lambda c, a: step(c, a, p), contender)
            except torch.OutOfMemoryError:
                failed[name] = "out of memory"
    if task != "linear":
        actions["copy"] = lambda: torch.empty_like(p.logits), lambda out: out.copy_(p.logits.detach())
    times = time_all(actions, runs)
    print(table(task, num_rows, num_classes, dtype, times, memory, failed))


def table(
    task: str,
    num_rows: int,
    num_classes: int,
    dtype: torch.dtype,
    times: dict[str, float],
    memory: dict[str, float],
    failed: dict[str, str | None],
) -> str:
    nbytes = num_rows * num_classes * dtype.itemsize
    lines = [
        f"\n{task}, {num_rows} x {num_classes}, {str(dtype).removeprefix('torch.')}, logits {nbytes / 2**20:.0f} MiB",
        f"{'':22}{'ms':>10}{'GB/s':>8}{'% of copy':>11}{'MiB':>9}",
    ]
    for name in [*failed, *(["copy"] if "copy" in times else [])]:
        if failed.get(name):
            lines.append(f"{name:22}  {failed[name]}")
            continue
        speed = f"{2 * nbytes / times[name] / 1e6:8.0f}" if "copy" in times else f"{'':8}"
        share = f"{100 * times['copy'] / times[name]:11.1f}" if "copy" in times else f"{'':11}"
        lines.append(f"{name:22}{times[name]:10.3f}{speed}{share}{memory.get(name, 0):9.0f}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare the numbers with float64, time nothing")
    parser.add_argument("--quick", action="store_true", help="one shape and dtype, few runs")
    options = parser.parse_args()
    on_gpu = torch.cuda.is_available()
    if not on_gpu and not options.check:
        sys.exit(
            "gpu_cross_entropy: torch.cuda.is_available() is False, and timing needs a CUDA GPU. "
            "Without one, --check compares the numbers"
        )

    kind = (torch.bfloat16, "cuda") if on_gpu else (torch.float32, "cpu")
    versions = {name: importlib.metadata.version(name) for name in ("torch", "triton", *PEERS) if missing(name) is None}
    print(datetime.date.today(), torch.cuda.get_device_name() if on_gpu else "CPU, Triton interpreted", versions)
    for task in CONTENDERS:
        for name in CONTENDERS[task]:
            p = problem(task, *CHECK_SHAPE, *kind)
            print(f"check {task:8}{name:22}", missing(name) or check(task, name, p), flush=True)
    if options.check:
        return
    for dtype in (torch.bfloat16,) if options.quick else (torch.bfloat16, torch.float32):
        for task in CONTENDERS:
            for shape in SHAPES[:1] if options.quick else SHAPES:
                if task != "linear" or dtype == torch.bfloat16:
                    benchmark(task, *shape, dtype, runs=5 if options.quick else RUNS)


if __name__ == "__main__":
    main()
