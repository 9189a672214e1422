"""Cross-entropy of rows in plain torch operations: every option, any dtype, any derivative.

It is also what the fused backends are held to. Each of those (`_cpp`, `_triton`) has three functions:

    rows(logits, target, scale, domain_ids, num_domains, *, ignore_index, label_smoothing, z_loss, softcap,
         want_grad, want_stats, inplace) -> (loss, lse, grad, loss_sum, token_count, correct)
    gradient(logits, target, scale, lse, num_whole_classes, *, ignore_index, label_smoothing, z_loss, softcap,
             inplace) -> grad
    scale_(grad, factor) -> None

`rows` takes logits (N, V) float32, bfloat16 or float16 with any strides, target (N,) int64, scale (N,) float32,
domain_ids (N,) int64 or None (then all rows are of domain 0) and floats `z_loss` (0: off) and `softcap` (0: off). With
x = logits, or softcap * tanh(logits / softcap), it gives for each row whose target t is not `ignore_index`

    lse   (N,) float32  log Σ_j exp x_j
    loss  (N,) float32  lse - (1 - label_smoothing) x_t - label_smoothing * mean_j x_j; no z-loss, not scaled
    grad  (N, V) in the logits' dtype, or None unless want_grad; the logits themselves if inplace:
          scale * d(loss + z_loss * lse²)/d(logits)_j = scale * (p_j (1 + 2 z_loss lse) - (1 - label_smoothing) [j = t]
          - label_smoothing / V) * (1 - (x_j / softcap)²), with p = softmax(x)

and, if want_stats, sums over these rows by domain, reduced in a fixed order: loss_sum (K,) float64 of `loss`,
token_count (K,) int64, and correct (K,) int64, how often x_t is the largest of its row (ties
count, NaN does not). Otherwise None.

Ignored rows have loss 0, lse 0 and gradient 0, whatever their logits. So have rows of scale 0, except that with
want_stats their loss and lse are computed. A target out of range raises IndexError on the CPU and gives a loss and
gradient of NaN on a GPU, where raising would take a synchronization.

`gradient` is that over a slice of `num_whole_classes` classes, a 0-dimensional int64 tensor, whose lse (N,) float32 is
given: of logits (N, V of the slice), in their dtype. Targets number the slice's classes and are -1 where the row's is
none of them; `ignore_index` is another number. Rows ignored or of scale 0 have gradient 0.

`scale_` multiplies grad by a 0-dimensional tensor on the same device, without synchronization; free if that is 1.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F


def rows(
    logits: torch.Tensor,
    target: torch.Tensor,
    weight: torch.Tensor | None,
    *,
    ignore_index: int,
    label_smoothing: float,
    softcap: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Loss, log-sum-exp and correctness of each row, differentiable as often as torch's own operations.

    Args:
        logits: (N, V), any floating dtype; half precision is computed in float32.
        target: (N,) int64 classes, or (N, V) class probabilities.
        weight: (V,) class weights or None.
        ignore_index: the class whose rows have loss 0; of no effect for class probabilities.
        label_smoothing: in [0, 1].
        softcap: 0 for none.

    Returns:
        loss (N,), lse (N,) and correct (N,) bool, the first two float32 or float64.
    """
    x = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if softcap:
        x = softcap * torch.tanh(x / softcap)
    if weight is not None:
        weight = weight.to(x.dtype)
    if x.shape[1] == 0:  # all rows are ignored, as no target is in range
        return x.sum(1), x.logsumexp(1), torch.zeros(len(x), dtype=torch.bool, device=x.device)
    with torch.autocast(x.device.type, enabled=False):
        if target.dim() == 1:
            loss = F.cross_entropy(
                x, target, weight, ignore_index=ignore_index, label_smoothing=label_smoothing, reduction="none"
            )
            valid = target != ignore_index
            at_target = x.detach().gather(1, target.where(valid, 0).unsqueeze(1)).squeeze(1)
        else:
            target = target.to(x.dtype)
            loss = F.cross_entropy(x, target, weight, label_smoothing=label_smoothing, reduction="none")
            valid = torch.ones(len(x), dtype=torch.bool, device=x.device)
            at_target = x.detach().gather(1, target.argmax(1, keepdim=True)).squeeze(1)
    correct = (at_target >= x.detach().amax(1)) & valid & ~loss.isnan()
    return loss, x.logsumexp(1), correct


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
    """Scaled gradient of a slice of classes, computed in the dtype of lse; see above."""
    x = logits.to(lse.dtype)
    if softcap:
        x = softcap * torch.tanh(x / softcap)
    grad = torch.exp(x - lse.unsqueeze(1)) * (scale * (1 + 2 * z_loss * lse)).unsqueeze(1)
    grad -= (label_smoothing * scale / num_whole_classes).unsqueeze(1)
    share = (1 - label_smoothing) * scale.where(target >= 0, 0)
    grad.scatter_add_(1, target.clamp(min=0).unsqueeze(1), -share.unsqueeze(1))
    if softcap:
        grad *= 1 - (x / softcap).square()
    grad.masked_fill_(((target == ignore_index) | (scale == 0)).unsqueeze(1), 0)
    return logits.copy_(grad) if inplace else grad.to(logits.dtype)


def scale_(grad: torch.Tensor, factor: torch.Tensor) -> None:
    """Multiply `grad` by a scalar in place."""
    grad.mul_(factor)
