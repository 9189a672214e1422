"""The fused backend for the CPU: torch tensors handed to the compiled kernel as NumPy views."""

from __future__ import annotations

from typing import Any

import numpy.typing as npt
import torch

from pycooldown import _core


def rows(
    logits: torch.Tensor,
    target: torch.Tensor,
    scale: torch.Tensor,
    domain_ids: torch.Tensor | None,
    num_domains: int,
    *,
    ignore_index: int,
    label_smoothing: float,
    z_loss: float,
    softcap: float,
    want_grad: bool,
    want_stats: bool,
    inplace: bool,
) -> tuple[torch.Tensor | None, ...]:
    """Loss, gradient and sums of rows; `_reference` has the meaning of each."""
    return _run(
        logits,
        target,
        scale,
        domain_ids,
        num_domains,
        want_grad=want_grad,
        inplace=inplace,
        want_stats=want_stats,
        ignore_index=ignore_index,
        label_smoothing=label_smoothing,
        z_loss=z_loss,
        softcap=softcap,
    )


def gradient(
    logits: torch.Tensor,
    target: torch.Tensor,
    scale: torch.Tensor,
    lse: torch.Tensor,
    num_whole_classes: torch.Tensor,
    *,
    ignore_index: int,
    label_smoothing: float,
    z_loss: float,
    softcap: float,
    inplace: bool,
) -> torch.Tensor:
    """Gradient of a slice of classes; `_reference` has the meaning of each."""
    _, _, grad, *_ = _run(
        logits,
        target,
        scale,
        None,
        1,
        want_grad=True,
        inplace=inplace,
        want_stats=False,
        ignore_index=ignore_index,
        label_smoothing=label_smoothing,
        z_loss=z_loss,
        softcap=softcap,
        whole_lse=lse.numpy(),
        num_whole_classes=int(num_whole_classes),
    )
    assert grad is not None
    return grad


def _run(
    logits: torch.Tensor,
    target: torch.Tensor,
    scale: torch.Tensor,
    domain_ids: torch.Tensor | None,
    num_domains: int,
    *,
    want_grad: bool,
    inplace: bool,
    **options: Any,
) -> tuple[torch.Tensor | None, ...]:
    rows = logits.detach()
    if rows.shape[1] > 1 and rows.stride(1) != 1:
        rows = rows.contiguous()
    grad = (rows if inplace else torch.empty_like(rows, memory_format=torch.contiguous_format)) if want_grad else None
    loss, lse, *sums = _core.cross_entropy(
        _array(rows),
        None if grad is None else _array(grad),
        target.numpy(),
        scale.numpy(),
        None if domain_ids is None else domain_ids.numpy(),
        num_domains,
        num_threads=torch.get_num_threads(),
        **options,
    )
    if grad is not None and inplace and grad.data_ptr() != logits.data_ptr():
        grad = logits.detach().copy_(grad)
    return torch.from_numpy(loss), torch.from_numpy(lse), grad, *(torch.from_numpy(array) for array in sums)


def scale_(grad: torch.Tensor, factor: torch.Tensor) -> None:
    """Multiply `grad` by a scalar in place, free if that is 1."""
    if factor != 1:
        grad.mul_(factor)


def _array(tensor: torch.Tensor) -> npt.NDArray[Any]:
    return tensor.view(torch.uint16).numpy() if tensor.dtype == torch.bfloat16 else tensor.numpy()
