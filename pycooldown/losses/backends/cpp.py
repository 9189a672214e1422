"""The fused backend for the CPU, which passes torch tensors to the compiled kernel as NumPy views. See `contract`."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from pycooldown import _core

from .contract import FUSED_OPTIONS, KernelOptions, Outputs, empty_gradient


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
    """Return loss, gradient and sums of rows; see `contract.Backend.rows`."""
    x, grad = _buffers(logits, want_grad, inplace)
    loss, lse, *sums = _core.cross_entropy(
        _array(x),
        None if grad is None else _array(grad),
        target.numpy(),
        scale.numpy(),
        None if domain_ids is None else domain_ids.numpy(),
        num_domains,
        want_stats=want_stats,
        **_keywords(options),
    )
    return Outputs(
        torch.from_numpy(loss),
        torch.from_numpy(lse),
        _placed(grad, logits, inplace),
        *(torch.from_numpy(total) for total in sums if want_stats),
    )


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
    """Return the gradient over a slice of the classes; see `contract.SliceBackend.gradient`."""
    x, grad = _buffers(logits, True, inplace)
    assert grad is not None
    _core.cross_entropy(
        _array(x),
        _array(grad),
        target.numpy(),
        scale.numpy(),
        None,
        1,
        want_stats=False,
        whole_lse=lse.numpy(),
        num_whole_classes=int(num_whole_classes),
        **_keywords(options),
    )
    placed = _placed(grad, logits, inplace)
    assert placed is not None
    return placed


def scale_(grad: torch.Tensor, factor: torch.Tensor) -> None:
    """Multiply grad by a scalar in place; a factor of 1 costs nothing."""
    if factor != 1:
        grad.mul_(factor)


def _keywords(options: KernelOptions) -> dict[str, Any]:
    """Return the kernel's options by name."""
    served = {name: getattr(options, name) for name in FUSED_OPTIONS}
    return {**served, "num_threads": torch.get_num_threads()}


def _buffers(logits: torch.Tensor, want_grad: bool, inplace: bool) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return the logits with contiguous rows, and the memory for their gradient."""
    x = logits.detach()
    if x.shape[1] > 1 and x.stride(1) != 1:
        x = x.contiguous()
    if not want_grad:
        return x, None
    return x, x if inplace else empty_gradient(logits)


def _placed(grad: torch.Tensor | None, logits: torch.Tensor, inplace: bool) -> torch.Tensor | None:
    """Return the gradient; if inplace, in the memory of the logits, which may have been copied for the kernel."""
    if grad is not None and inplace and grad.data_ptr() != logits.data_ptr():
        return logits.detach().copy_(grad)
    return grad


def _array(tensor: torch.Tensor) -> npt.NDArray[np.generic]:
    """Return a NumPy view; bfloat16, which NumPy lacks, as the bits of uint16."""
    return tensor.view(torch.uint16).numpy() if tensor.dtype == torch.bfloat16 else tensor.numpy()
