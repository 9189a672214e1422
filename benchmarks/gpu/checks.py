"""Checks that need a device: no waiting, CUDA graphs, side streams; and every kernel once, for sanitizers."""

from __future__ import annotations

import torch
from common import DEVICE, ON_GPU, Run, parse, synchronize

from pycooldown.losses import cross_entropy, linear_cross_entropy
from pycooldown.losses.backends import KernelOptions
from pycooldown.losses.backends import triton as kernels


def arguments(rows: int = 6, classes: int = 1003) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
    """Return logits, targets and domains."""
    torch.manual_seed(0)
    logits = torch.randn(rows, classes, device=DEVICE, dtype=torch.bfloat16, requires_grad=True)
    target = torch.arange(rows, device=DEVICE)
    target[1] = -100
    ids, weights = target.clamp(min=0) % 3, torch.tensor([0.5, 1.0, 2.0], device=DEVICE)
    return logits, target, {"domain_ids": ids, "domain_weights": weights}


def step() -> tuple[torch.Tensor, ...]:
    """Return a function over static tensors, as a CUDA graph needs it."""
    logits, target, domains = arguments()
    hidden = torch.randn(6, 64, device=DEVICE, dtype=torch.bfloat16, requires_grad=True)
    weight = torch.randn(1003, 64, device=DEVICE, dtype=torch.bfloat16, requires_grad=True)

    def run() -> tuple[torch.Tensor, ...]:
        loss, stats = cross_entropy(logits, target, return_stats=True, backend="triton", **domains)
        layer = linear_cross_entropy(hidden, weight, target, backend="triton", **domains)
        gradients = torch.autograd.grad(loss + layer, (logits, hidden, weight))
        return loss, layer, *stats, *gradients

    return run


def sync_debug(run: Run) -> None:
    """Check that the loss of logits never waits for the device."""
    logits, target, domains = arguments()

    def both() -> None:
        loss, _ = cross_entropy(logits, target, return_stats=True, backend="triton", **domains)
        torch.autograd.grad(loss, logits)

    both()
    if ON_GPU:
        torch.cuda.set_sync_debug_mode("error")
        try:
            both()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    run.write(check="cross_entropy waits for nothing", passed=True)


def graphs(run: Run) -> None:
    """Check that captured and replayed results equal those of eager calls."""
    function = step()
    expected = function()
    if ON_GPU:
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            function()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = function()
        for _ in range(3):
            graph.replay()
        synchronize()
        torch.testing.assert_close(captured, expected)
    run.write(check="CUDA graphs replay the losses", passed=True)


def side_streams(run: Run) -> None:
    """Check that results on another stream, while the first is busy, have the same bits."""
    function = step()
    expected = function()
    if ON_GPU:
        stream = torch.cuda.Stream()
        torch.cuda._sleep(100_000_000)
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            got = function()
        torch.cuda.current_stream().wait_stream(stream)
        synchronize()
        assert all(torch.equal(a, b) for a, b in zip(got, expected))
    run.write(check="the same bits on a side stream", passed=True)


def every_kernel(run: Run) -> None:
    """Run each variant once, with few rows, for compute-sanitizer, which slows kernels down a hundredfold."""
    plain = KernelOptions(ignore_index=-100, label_smoothing=0.0, z_loss=0.0, softcap=0.0, backend="triton")
    numbers = torch.ones(4, device=DEVICE), torch.tensor(2006, device=DEVICE)
    widths = [limit // 2 - 3 for limit in kernels.KEPT] + [70_001]
    for classes in widths[:1] if run.dry else widths:
        for options in ({}, {"label_smoothing": 0.1, "softcap": 5.0}):
            logits, target, domains = arguments(2 if run.dry else 4, classes)
            for inplace in (False, True):
                loss = cross_entropy(logits * 1, target, backend="triton", inplace=inplace, **domains, **options)
                torch.autograd.grad(loss * 2, logits)
            cross_entropy(logits.detach(), target, backend="triton", **domains, **options)  # without a gradient
        # A slice of the classes; and rows that are aligned otherwise than their gradient.
        whole, scale = logits.detach(), numbers[0][: len(logits)]
        for part in (whole, torch.empty(whole.numel() + 1, dtype=whole.dtype, device=DEVICE)[1:].view_as(whole)):
            for inplace in (False, True):
                values = part.copy_(whole) if part is not whole else part.clone()
                kernels.gradient(values, target, scale, 10 * scale, numbers[1], plain, inplace=inplace)
                want = {"want_grad": True, "want_stats": True, "inplace": inplace}
                values = part.copy_(whole) if part is not whole else part.clone()
                kernels.rows(values, target, scale, None, 1, plain, **want)
    synchronize()
    run.write(check="every kernel ran", passed=True)


def main() -> None:
    """Run all checks, or only the last one: `--kernels`."""
    run, rest = parse(__doc__.splitlines()[0])
    if "--kernels" not in rest:
        sync_debug(run)
        graphs(run)
        side_streams(run)
        if run.dry:  # the sanitizers' dry runs go through the kernels
            return
    every_kernel(run)


if __name__ == "__main__":
    main()
