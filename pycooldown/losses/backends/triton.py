"""The fused backend for GPUs, in Triton. See `contract` for its results and `triton_kernels` for its algorithm.

Nothing here waits for the device and nothing is tuned at run time. A target that is no class gives a loss and a
gradient of NaN. An id outside [0, num_domains) is counted in no domain. Logits whose last dimension is not contiguous
are copied.
"""

from __future__ import annotations

import warnings
from typing import NamedTuple

import torch

from pycooldown._extras import require

require("all", "triton")

import triton  # noqa: E402

from .contract import FUSED_DTYPES, KernelOptions, Outputs, empty_gradient  # noqa: E402
from .triton_kernels import rows_kernel, scale_kernel, slice_kernel  # noqa: E402
from .triton_stats import STATS_ROWS, STATS_TILE, stats_kernel  # noqa: E402

TESTED = (3, 6), (3, 7)  # versions of Triton; other versions may lay out tiles differently


def check_version(version: str) -> None:
    """Raise ImportError for a version of Triton older than those tested; warn about a newer one."""
    number = tuple(int(part) for part in version.split(".")[:2])
    oldest, newest = (".".join(map(str, tested)) for tested in (TESTED[0], TESTED[-1]))
    advice = f"install 'triton>={oldest},<{TESTED[-1][0]}.{TESTED[-1][1] + 1}', or use backend='reference'"
    if number < TESTED[0]:
        raise ImportError(f"triton is {version}, but the kernels need {oldest} or later; {advice}")
    if number > TESTED[-1]:
        warnings.warn(
            f"triton is {version}, but the kernels are tested with {oldest} to {newest}; if in doubt, {advice}",
            RuntimeWarning,
            stacklevel=2,
        )


check_version(triton.__version__)

INTERPRETED = not isinstance(rows_kernel, triton.runtime.JITFunction)  # TRITON_INTERPRET=1: runs on the CPU, slowly


class Variant(NamedTuple):
    """The constants of a kernel's compilation: threads of a row, and tiles of 16 bytes per thread, kept or loaded."""

    LANES: int
    TILES: int
    FLIGHT: int = 1


# By the bytes of a row. Up to 128 KiB (65,536 classes of 2 bytes) registers keep it; with 1,024 threads of 64 registers
# these are all that a multiprocessor has.
KEPT = {
    8 << 10: Variant(128, 4),
    32 << 10: Variant(512, 4),
    64 << 10: Variant(1024, 4),
    96 << 10: Variant(1024, 6),
    112 << 10: Variant(1024, 7),
    128 << 10: Variant(1024, 8),
}
READ_TWICE = Variant(1024, 0, 4)
# The most tiles that registers keep without spilling, by whether the device is of compute capability 10.0 or later and
# whether the loss is plain: smoothing and a soft cap need more registers, on such a device too many.
MAX_TILES = {(False, True): 8, (False, False): 6, (True, True): 4}
UNLIKE = Variant(512, 0, 2)  # logits are read one by one, because their rows are not aligned like the gradient's
MAX_REGISTERS = 64
MAX_THREADS = 65_536 // MAX_REGISTERS  # of a multiprocessor
# The interpreter's device has few processors, so that a program has several rows to read twice there too.
INTERPRETER = {"num_processors": 2, "l2_bytes": 1 << 20}
# Share of the L2 cache for rows between their first and second reading. Chosen by reasoning, not by tuning: stores use
# L2 too.
L2_SHARE = 0.6
STATS_WARPS = 8


def choose_variant(
    row_bytes: int,
    *,
    same_alignment: bool = True,
    plain: bool = True,
    grad: bool = True,
    capability: tuple[int, int] = (9, 0),
) -> Variant:
    """Return the variant for rows of this many bytes.

    Args:
        row_bytes: Bytes of a row of logits.
        same_alignment: Whether rows of logits and gradient begin at the same distance from a multiple of 16 bytes.
        plain: Whether there is neither label smoothing nor a soft cap.
        grad: Whether a gradient is wanted. Without one, no row is read twice, and none has to be kept.
        capability: The compute capability of the device.
    """
    if not same_alignment:
        return UNLIKE
    recent = capability >= (10, 0)
    kept = next((variant for limit, variant in KEPT.items() if row_bytes <= limit), READ_TWICE)
    if not (plain or (grad and not recent)):
        return Variant(kept.LANES, 0, 2 if grad or not recent else 1)
    return kept if 0 < kept.TILES <= MAX_TILES[recent, plain] else READ_TWICE


def rows_under_way(row_bytes: int, *, num_processors: int, l2_bytes: int, lanes: int = READ_TWICE.LANES) -> int:
    """Return how many rows a device should process at a time, so that a row is still in L2 for its second reading.

    Args:
        row_bytes: Bytes of a row of logits.
        num_processors: Multiprocessors of the device.
        l2_bytes: Size of its L2 cache.
        lanes: Threads of a row. The registers of a multiprocessor are enough for MAX_THREADS.
    """
    return min(max(int(L2_SHARE * l2_bytes) // row_bytes, 1), num_processors * (MAX_THREADS // lanes))


def _launch(x: torch.Tensor, variant: Variant) -> dict[str, int]:
    """Return the launch options for rows like those of x. A warp has 32 threads or, on some AMD GPUs, 64."""
    if not x.is_cuda:
        return variant._asdict()
    options = {**variant._asdict(), "num_warps": variant.LANES // torch.cuda.get_device_properties(x.device).warp_size}
    return options if torch.version.hip else {**options, "maxnreg": MAX_REGISTERS}


def _programs(x: torch.Tensor, variant: Variant, *, grad: bool) -> int:
    """Return the number of programs that share the rows of x: one per row, unless rows are read twice."""
    if variant.TILES or not grad:
        return len(x)
    device = INTERPRETER
    if x.is_cuda:
        properties = torch.cuda.get_device_properties(x.device)
        device = {"num_processors": properties.multi_processor_count, "l2_bytes": properties.L2_cache_size}
    return min(len(x), rows_under_way(x.size(1) * x.element_size(), lanes=variant.LANES, **device))


def _lanes(x: torch.Tensor) -> dict[str, int]:
    """Return the launch options of kernels that read a row once."""
    options = _launch(x, choose_variant(x.size(1) * x.element_size()))
    return {name: value for name, value in options.items() if name not in ("TILES", "FLIGHT")}


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
    grad = x if inplace else empty_gradient(x) if want_grad else None
    out = x if grad is None else grad
    target, scale = target.contiguous(), scale.contiguous()
    loss, lse = torch.empty_like(scale), torch.empty_like(scale)
    correct = target.new_empty(num_rows, dtype=torch.int8)
    with torch.cuda.device(x.get_device()):
        if num_rows:
            smoothing, capped, same = options.label_smoothing != 0, options.softcap != 0, _aligned_alike(x, out)
            variant = choose_variant(
                num_classes * x.element_size(),
                same_alignment=same,
                plain=not (smoothing or capped),
                grad=grad is not None,
                capability=torch.cuda.get_device_capability(x.device) if x.is_cuda else (9, 0),
            )
            rows_kernel[(_programs(x, variant, grad=grad is not None),)](
                x, target, scale, loss, lse, correct, out, x.stride(0), out.stride(0), num_rows, num_classes,
                options.ignore_index, int(want_stats), 0, options.label_smoothing, options.z_loss, options.softcap,
                SMOOTHING=smoothing, SOFTCAP=capped, GRAD=grad is not None, SAME_ALIGNMENT=same, **_launch(x, variant),
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
    grad = x if inplace else empty_gradient(x)
    if grad.numel():
        with torch.cuda.device(x.get_device()):
            slice_kernel[(len(x),)](
                x, target.contiguous(), scale.contiguous(), lse.contiguous(), num_whole_classes, grad,
                x.stride(0), grad.stride(0), x.size(1),
                options.ignore_index, options.label_smoothing, options.z_loss, options.softcap,
                SMOOTHING=options.label_smoothing != 0, SOFTCAP=options.softcap != 0,
                SAME_ALIGNMENT=_aligned_alike(x, grad), **_lanes(x),
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
    """Multiply (N, V) gradients by a 0-dimensional tensor on their device, without waiting; free if it is 1."""
    if grad.stride(1) != 1:
        grad.mul_(factor)
    elif grad.numel():
        with torch.cuda.device(grad.get_device()):
            scale_kernel[(len(grad),)](grad, factor.float(), grad.stride(0), grad.size(1), **_lanes(grad))
