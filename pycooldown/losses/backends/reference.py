"""Cross-entropy of rows in plain torch operations: every option, any dtype, any derivative.

The fused backends are tested against it. See `contract` for the formulas.
"""

from __future__ import annotations

import contextlib
from typing import NamedTuple

import torch
import torch.nn.functional as F

from .contract import KernelOptions, empty_gradient


class RowLosses(NamedTuple):
    """The plain losses of rows.

    Attributes:
        loss: (N,) float32 or float64.
        lse: (N,), log-sum-exp of the logits.
        correct: (N,) bool, whether the target has the largest logit.
    """

    loss: torch.Tensor
    lse: torch.Tensor
    correct: torch.Tensor


def losses(
    logits: torch.Tensor, target: torch.Tensor, weight: torch.Tensor | None, options: KernelOptions
) -> RowLosses:
    """Return the losses of rows, differentiable as often as torch's own operations.

    Args:
        logits: (N, V), any floating dtype; half precision is computed in float32.
        target: (N,) int64 classes, or (N, V) class probabilities, for which no row is ignored.
        weight: (V,) class weights or None.
        options: Those of the loss; z-loss is not part of the result.
    """
    x = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if options.softcap:
        x = options.softcap * torch.tanh(x / options.softcap)
    if weight is not None:
        weight = weight.to(x.dtype)
    if x.shape[1] == 0:  # all rows are ignored, because no target is in range
        return RowLosses(x.sum(1), x.logsumexp(1), torch.zeros(len(x), dtype=torch.bool, device=x.device))
    with without_autocast(x.device):
        if target.dim() == 1:
            loss = F.cross_entropy(
                x,
                target,
                weight,
                ignore_index=options.ignore_index,
                label_smoothing=options.label_smoothing,
                reduction="none",
            )
            valid = target != options.ignore_index
            at_target = x.detach().gather(1, target.where(valid, 0).unsqueeze(1)).squeeze(1)
        else:
            target = target.to(x.dtype)
            loss = F.cross_entropy(x, target, weight, label_smoothing=options.label_smoothing, reduction="none")
            valid = torch.ones(len(x), dtype=torch.bool, device=x.device)
            at_target = x.detach().gather(1, target.argmax(1, keepdim=True)).squeeze(1)
    correct = (at_target >= x.detach().amax(1)) & valid & ~loss.isnan()
    return RowLosses(loss, x.logsumexp(1), correct)


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
    """Return the gradient over a slice of the classes, computed in the dtype of lse; see `contract`."""
    x = logits.to(lse.dtype)
    if options.softcap:
        x = options.softcap * torch.tanh(x / options.softcap)
    grad = torch.exp(x - lse.unsqueeze(1)) * (scale * (1 + 2 * options.z_loss * lse)).unsqueeze(1)
    grad -= (options.label_smoothing * scale / num_whole_classes).unsqueeze(1)
    share = (1 - options.label_smoothing) * scale.where(target >= 0, 0)
    grad.scatter_add_(1, target.clamp(min=0).unsqueeze(1), -share.unsqueeze(1))
    if options.softcap:
        grad *= 1 - (x / options.softcap).square()
    grad.masked_fill_(((target == options.ignore_index) | (scale == 0)).unsqueeze(1), 0)
    return (logits if inplace else empty_gradient(logits)).copy_(grad)


def scale_(grad: torch.Tensor, factor: torch.Tensor) -> None:
    """Multiply grad by a scalar in place."""
    grad.mul_(factor)


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]  # torch 2.11 cannot trace the call
def has_autocast(device_type: str) -> bool:
    """Return whether a device type has autocast; some, such as meta, have none."""
    return bool(torch.amp.is_autocast_available(device_type))


def without_autocast(device: torch.device) -> contextlib.AbstractContextManager[object]:
    """Return a context in which autocast is off, on devices that have it."""
    if not has_autocast(device.type):
        return contextlib.nullcontext()
    return torch.autocast(device.type, enabled=False)
