"""The fused backend for GPUs, in Triton. See `contract` for what it computes and `triton_kernels` for how.

Nothing here waits for the device and nothing is tuned at run time. A target that is no class gives a loss and a
gradient of NaN; an id outside [0, num_domains) is counted in no domain. Logits whose last dimension is not contiguous
are copied.
"""

from __future__ import annotations

import torch

from pycooldown._extras import require

require("all", "triton")

import triton  # noqa: E402

from .contract import FUSED_DTYPES, KernelOptions, Outputs  # noqa: E402
from .triton_kernels import STATS_ROWS, STATS_TILE, rows_kernel, scale_kernel, slice_kernel, stats_kernel  # noqa: E402

INTERPRETED = not isinstance(rows_kernel, triton.runtime.JITFunction)  # TRITON_INTERPRET=1: runs on the CPU, slowly

# Threads per row, by the bytes of a row: wide blocks for long rows, so that the few rows under way fit into cache until
# their second pass. Reasoned from cache sizes (H100: 256 KiB per multiprocessor, 50 MiB in all), not tuned.
LANES = {8 << 10: 128, 64 << 10: 512, 1 << 62: 1024}
STATS_WARPS = 8


def _launch(tensor: torch.Tensor) -> dict[str, int]:
    """Threads for rows like the tensor's; a warp has 32 or, on some AMD GPUs, 64."""
    row_bytes = tensor.size(1) * tensor.element_size()
    lanes = next(lanes for limit, lanes in LANES.items() if row_bytes <= limit)
    warp_size = torch.cuda.get_device_properties(tensor.device).warp_size if tensor.is_cuda else 32
    return {"LANES": lanes, "num_warps": lanes // warp_size}


def rows(
    logits: torch.Tensor,
    target: torch.Tensor,
    scale: torch.Tensor,
    domain_ids: torch.Tensor | None,
    num_domains: int,
    options: KernelOptions,
    *,
    want_grad: bool,
    want_stats: bool,
    inplace: bool,
) -> Outputs:
    """Return loss, gradient and sums of rows; see `contract.Backend.rows`.

    Raises:
        TypeError: If the logits are not float32, bfloat16 or float16.
        ValueError: If they are on the CPU and the kernels are not interpreted.
        IndexError: If the kernels are interpreted and a target is out of range.
    """
    _check(logits)
    num_rows, num_classes = logits.shape
    if not logits.is_cuda:
        bad = ((target != options.ignore_index) & ((target < 0) | (target >= num_classes))).nonzero()
        if len(bad):
            n = int(bad[0])
            raise IndexError(f"target[{n}] is {int(target[n])}, out of range for {num_classes} classes")

    inplace = inplace and want_grad
    x = logits if logits.stride(1) == 1 else logits.contiguous()
    grad = x if inplace else torch.empty_like(x, memory_format=torch.contiguous_format) if want_grad else None
    out = x if grad is None else grad
    target, scale = target.contiguous(), scale.contiguous()
    loss, lse = torch.empty_like(scale), torch.empty_like(scale)
    correct = target.new_empty(num_rows, dtype=torch.int8)
    with torch.cuda.device(x.get_device()):
        if num_rows:
            rows_kernel[(num_rows,)](
                x, target, scale, loss, lse, correct, out, x.stride(0), out.stride(0), num_classes,
                options.ignore_index, int(want_stats), options.label_smoothing, options.z_loss, options.softcap,
                SMOOTHING=options.label_smoothing != 0, SOFTCAP=options.softcap != 0, GRAD=grad is not None,
                SAME_ALIGNMENT=_aligned_alike(x, out), **_launch(x),
            )  # fmt: skip
        stats = _stats(loss, correct, target, domain_ids, num_domains, options.ignore_index) if want_stats else ()
    if inplace and x is not logits:
        grad = logits.copy_(x)
    return Outputs(loss, lse, grad, *stats)


def gradient(
    logits: torch.Tensor,
    target: torch.Tensor,
    scale: torch.Tensor,
    lse: torch.Tensor,
    num_whole_classes: torch.Tensor,
    options: KernelOptions,
    *,
    inplace: bool,
) -> torch.Tensor:
    """Return the gradient over a slice of the classes; see `contract.SliceBackend.gradient`.

    Raises:
        TypeError: If the logits are not float32, bfloat16 or float16.
        ValueError: If they are on the CPU and the kernels are not interpreted.
    """
    _check(logits)
    x = logits if logits.stride(1) == 1 else logits.contiguous()
    grad = x if inplace else torch.empty_like(x, memory_format=torch.contiguous_format)
    if grad.numel():
        with torch.cuda.device(x.get_device()):
            slice_kernel[(len(x),)](
                x, target.contiguous(), scale.contiguous(), lse.contiguous(), num_whole_classes, grad,
                x.stride(0), grad.stride(0), x.size(1),
                options.ignore_index, options.label_smoothing, options.z_loss, options.softcap,
                SMOOTHING=options.label_smoothing != 0, SOFTCAP=options.softcap != 0,
                SAME_ALIGNMENT=_aligned_alike(x, grad), **_launch(x),
            )  # fmt: skip
    return logits.copy_(x) if inplace and x is not logits else grad


def _check(logits: torch.Tensor) -> None:
    if logits.dtype not in FUSED_DTYPES:
        raise TypeError(f"logits are {logits.dtype}; the Triton kernel takes float32, bfloat16 or float16")
    if not (logits.is_cuda or INTERPRETED):
        raise ValueError(
            f"logits are on {logits.device}; the Triton kernel needs a GPU, or TRITON_INTERPRET=1 set before import"
        )


def _aligned_alike(x: torch.Tensor, out: torch.Tensor) -> bool:
    """Return whether each row of x begins as far beyond a multiple of 16 bytes as that of out."""
    same_steps = len(x) == 1 or not (x.stride(0) - out.stride(0)) * x.element_size() % 16
    return same_steps and not (x.data_ptr() - out.data_ptr()) % 16


def _stats(
    loss: torch.Tensor,
    correct: torch.Tensor,
    target: torch.Tensor,
    domain_ids: torch.Tensor | None,
    num_domains: int,
    ignore_index: int,
) -> tuple[torch.Tensor, ...]:
    """Return the sums by domain, each (K,): of losses, of tokens and of correct ones."""
    num_rows = len(loss)
    chunks = triton.cdiv(num_rows, STATS_ROWS)
    loss_sum = loss.new_empty(chunks, num_domains, dtype=torch.float64)
    counts = target.new_empty(2, chunks, num_domains)
    if num_rows and num_domains:
        stats_kernel[(chunks, triton.cdiv(num_domains, STATS_TILE))](
            loss, correct, target, target if domain_ids is None else domain_ids.contiguous(), loss_sum, counts,
            num_rows, num_domains, ignore_index, HAS_DOMAINS=domain_ids is not None, num_warps=STATS_WARPS,
        )  # fmt: skip
    return loss_sum.sum(0), counts[0].sum(0), counts[1].sum(0)


def scale_(grad: torch.Tensor, factor: torch.Tensor) -> None:
    """Multiply (N, V) gradients by a 0-dimensional tensor on their device, without waiting for it; free if it is 1."""
    if grad.stride(1) != 1:
        grad.mul_(factor)
    elif grad.numel():
        with torch.cuda.device(grad.get_device()):
            scale_kernel[(len(grad),)](grad, factor.float(), grad.stride(0), grad.size(1), **_launch(grad))
