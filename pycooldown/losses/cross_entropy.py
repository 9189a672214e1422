"""`cross_entropy`: torch's function, with weights and statistics by domain."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, overload

import torch

from . import _checks
from ._operator import InplaceCrossEntropy, Losses, LossRows, cross_entropy_rows
from ._options import CallKeywords, LossOptions, Normalizer, Reduction, Weights
from ._rows import prepare
from ._statistics import DomainStats
from .backends import BackendName, reference

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup
    from typing_extensions import Unpack


@overload
def cross_entropy(
    input: torch.Tensor,
    target: torch.Tensor,
    weight: torch.Tensor | None = None,
    *,
    return_stats: Literal[False] = False,
    ignore_index: int = -100,
    inplace: bool = False,
    **options: Unpack[CallKeywords],
) -> torch.Tensor: ...


@overload
def cross_entropy(
    input: torch.Tensor,
    target: torch.Tensor,
    weight: torch.Tensor | None = None,
    *,
    return_stats: Literal[True],
    ignore_index: int = -100,
    inplace: bool = False,
    **options: Unpack[CallKeywords],
) -> tuple[torch.Tensor, DomainStats]: ...


@overload
def cross_entropy(
    input: torch.Tensor,
    target: torch.Tensor,
    weight: torch.Tensor | None = None,
    *,
    return_stats: bool,
    ignore_index: int = -100,
    inplace: bool = False,
    **options: Unpack[CallKeywords],
) -> torch.Tensor | tuple[torch.Tensor, DomainStats]: ...


def cross_entropy(
    input: torch.Tensor,
    target: torch.Tensor,
    weight: torch.Tensor | None = None,
    *,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
    label_smoothing: float = 0.0,
    domain_ids: torch.Tensor | None = None,
    domain_weights: torch.Tensor | None = None,
    token_weights: torch.Tensor | None = None,
    z_loss: float = 0.0,
    softcap: float | None = None,
    normalizer: Normalizer = "count",
    return_stats: bool = False,
    inplace: bool = False,
    backend: BackendName = "auto",
    process_group: ProcessGroup | None = None,
) -> torch.Tensor | tuple[torch.Tensor, DomainStats]:
    """Return the cross-entropy of logits as `F.cross_entropy` does, with weights and statistics by domain.

    The loss of a token i of domain d is `domain_weights[d] * token_weights[i] * (ce + z_loss * lse²)`, where lse is the
    log-sum-exp of its logits and ce torch's loss of the token. Without the arguments that torch does not have, the
    result is torch's, except that the loss of bfloat16 and float16 logits is float32.

    Weights that are the ratio of a target to a sampling distribution (scalarization; Li et al., NAACL 2025) make the
    sum of losses an unbiased estimate; so does the mean, as it divides by the number of tokens. Dividing by the sum of
    the weights, torch's rule for class weights, gives a ratio estimator, which is biased.

    Args:
        input: Logits (V,), (N, V) or (N, V, d1, ...); float32, bfloat16 and float16 are computed in float32.
        target: Classes (), (N,) or (N, d1, ...) int64, or class probabilities of the shape of input.
        weight: (V,) class weights in input's dtype.
        ignore_index: Target whose tokens have loss and gradient 0 and are not counted.
        reduction: "mean", "sum" or "none".
        label_smoothing: Share of the uniform distribution in the target, in [0, 1].
        domain_ids: Integers of the shape of target, or (N,) for one domain per sequence.
        domain_weights: (K,) weights, indexed by domain id; finite and not negative. If they are
            differentiated, "auto" chooses the reference backend.
        token_weights: Weights of the shape of target, or (N,); with the same rules as domain_weights.
        z_loss: Coefficient of lse², which keeps the logits from drifting (Chowdhery et al., PaLM, 2022).
        softcap: Replace logits x by softcap * tanh(x / softcap) first (Gemma 2, 2024).
        normalizer: What "mean" divides by: "count", the number of tokens that are not ignored (with class weights: the
            sum of theirs, as torch does), or "weight_sum", the sum of all their weights.
        return_stats: Also return the sums of each domain; without domain_ids, all tokens are of one domain.
        inplace: Let the gradient overwrite the logits, so that no memory is needed. They must not be used afterwards;
            autograd raises if it has saved them for an earlier operation, or if they are written to before backward; a
            later operation that only reads them sees the gradient. Without effect on unreduced losses, while torch
            traces the call (torch.compile, make_fx, fake tensors) and on the reference backend.
        backend: "auto" takes the fused kernel of input's device if that covers the arguments, and "reference", plain
            torch operations, otherwise: for class weights, class probabilities, float64, other devices, torch.func
            transforms, forward-mode derivatives and derivatives by weights. A backend named here never falls back: what
            it does not cover raises an error. "cpp" is for the CPU, "triton" for GPUs.
        process_group: Ranks that share the classes, as after a tensor-parallel output layer: input has this rank's
            slice, of any size, in the order of ranks. All other arguments are the same on all ranks. target counts all
            classes, and loss and statistics are over all of them; the gradient is that of the slice. There are two
            all-reduces of a few numbers per row. On the CPU an all-gather of checksums shows whether the ranks agree.
            Arguments that need the reference backend (class weights, class probabilities, ...) raise an error.

    Returns:
        The loss, a scalar or of the shape of target; with return_stats (loss, DomainStats).

    Raises:
        ValueError: For an option, shape, device or weight that is not accepted, or a backend that cannot serve.
        TypeError: For a dtype that is not accepted.
        IndexError: For a target or domain id out of range; on a GPU a device-side assertion or a loss of NaN instead.
        NotImplementedError: On differentiating the gradient of a fused backend; use "reference" for that.
    """
    weights = Weights(weight, domain_ids, domain_weights, token_weights)
    options = LossOptions(
        ignore_index=ignore_index,
        reduction=reduction,
        label_smoothing=label_smoothing,
        z_loss=z_loss,
        softcap=softcap,
        normalizer=normalizer,
        backend=backend,
        process_group=process_group,
    )
    rows = prepare(input, target, weights, options, return_stats=return_stats)
    logits = _two_dimensional(input)
    if rows.by_reference:
        row_losses = reference.losses(logits, rows.target, weight, rows.options)
        loss = rows.reduce(row_losses, reduction)
        return (loss, rows.stats(row_losses)) if return_stats else loss

    of_rows = LossRows(rows.target, rows.scale(reduction), rows.domain_ids, rows.num_domains)
    want_grad = reduction != "none" and logits.requires_grad and torch.is_grad_enabled()
    if inplace and want_grad and not _checks.is_traced(input):
        _checks.check_inplace(input)
        losses = Losses(*InplaceCrossEntropy.apply(logits, of_rows, rows.options, return_stats))  # type: ignore[no-untyped-call]
    else:
        losses = cross_entropy_rows(logits, of_rows, rows.options, want_grad=want_grad, want_stats=return_stats)
    loss = rows.reduce_scaled(losses.total, losses.losses, reduction)
    return (loss, losses.stats) if return_stats else loss


def _two_dimensional(input: torch.Tensor) -> torch.Tensor:
    """Return logits (V,) or (N, V, ...) as (rows, V), a view if strides allow."""
    if input.dim() == 2:
        return input
    if input.dim() == 1:
        return input.unsqueeze(0)
    return input.movedim(1, -1).reshape(-1, input.shape[1])
