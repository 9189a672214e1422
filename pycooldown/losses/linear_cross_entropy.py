"""`linear_cross_entropy`: a model's output layer and its loss, without the logits in memory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, overload

import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from ._checks import has_tangent
from ._linear_operator import Operands, Wanted, linear_cross_entropy_rows
from ._operator import LossRows
from ._options import CallKeywords, Layer, LossOptions, Normalizer, Reduction, Weights
from ._products import default_chunk_size
from ._rows import Rows, prepare
from ._statistics import DomainStats
from .backends import BackendName, reference
from .backends.reference import RowLosses

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup
    from typing_extensions import Unpack


class LinearKeywords(CallKeywords, total=False):
    """The keyword arguments of `linear_cross_entropy`, except for return_stats."""

    linear_bias: torch.Tensor | None
    weight: torch.Tensor | None
    ignore_index: int | None
    options: torch.nn.LinearCrossEntropyOptions | None
    chunk_size: int | None


@overload
def linear_cross_entropy(
    input: torch.Tensor,
    linear_weight: torch.Tensor,
    target: torch.Tensor,
    *,
    return_stats: Literal[False] = False,
    **options: Unpack[LinearKeywords],
) -> torch.Tensor: ...


@overload
def linear_cross_entropy(
    input: torch.Tensor,
    linear_weight: torch.Tensor,
    target: torch.Tensor,
    *,
    return_stats: Literal[True],
    **options: Unpack[LinearKeywords],
) -> tuple[torch.Tensor, DomainStats]: ...


@overload
def linear_cross_entropy(
    input: torch.Tensor,
    linear_weight: torch.Tensor,
    target: torch.Tensor,
    *,
    return_stats: bool,
    **options: Unpack[LinearKeywords],
) -> torch.Tensor | tuple[torch.Tensor, DomainStats]: ...


def linear_cross_entropy(
    input: torch.Tensor,
    linear_weight: torch.Tensor,
    target: torch.Tensor,
    *,
    linear_bias: torch.Tensor | None = None,
    weight: torch.Tensor | None = None,
    reduction: Reduction = "mean",
    ignore_index: int | None = -100,
    label_smoothing: float = 0.0,
    options: torch.nn.LinearCrossEntropyOptions | None = None,
    domain_ids: torch.Tensor | None = None,
    domain_weights: torch.Tensor | None = None,
    token_weights: torch.Tensor | None = None,
    z_loss: float = 0.0,
    softcap: float | None = None,
    normalizer: Normalizer = "count",
    return_stats: bool = False,
    backend: BackendName = "auto",
    chunk_size: int | None = None,
    process_group: ProcessGroup | None = None,
) -> torch.Tensor | tuple[torch.Tensor, DomainStats]:
    """Return `cross_entropy` of `F.linear(input, linear_weight, linear_bias)`, a chunk of rows at a time.

    The arguments are those of torch 2.13's `linear_cross_entropy` and of `pycooldown.losses.cross_entropy`. Gradients
    are formed in the forward pass, with 6·N·V·D operations for N rows that have a weight and are not ignored: others
    cost nothing, except that return_stats needs the losses of rows of weight 0. Those of input or of the layer are not
    computed if they do not require grad. Memory beyond the gradients is that of one chunk's logits and, unless all rows
    form one chunk, of at most D (D + 2,048) elements more (under autocast from float32 twice that); if linear_weight is
    bfloat16 or float16 and there are more than D such rows in several chunks, also that of its gradient in float32, in
    which they are summed.

    Under autocast the logits and products have autocast's dtype; without, input and layer must have one dtype.

    Args:
        input: (..., D), the hidden states.
        linear_weight: (V, D), e.g. a tied embedding. With (V, d1, ..., dK, D), as in torch, the logits
            are (N, V, d1, ..., dK), which take the reference backend.
        target: (...) int64 classes, or (..., V) class probabilities; followed by the K dimensions, if there are any.
        linear_bias: (V,), or (V, d1, ..., dK).
        weight: (V,) class weights in input's dtype.
        reduction: "mean", "sum" or "none". The gradient of unreduced losses is computed in the backward pass, with one
            more product.
        ignore_index: Target whose tokens have loss and gradient 0 and are not counted; None for -100.
        label_smoothing: Share of the uniform distribution in the target, in [0, 1].
        options: As in torch. Its batch_chunk_size is taken as chunk_size. Its other fields choose how torch computes
            and have no effect here.
        domain_ids: Integers of the shape of target, or of its leading dimension for one domain per sequence.
        domain_weights: (K,) weights, indexed by domain id; finite and not negative. If they are
            differentiated, "auto" takes the reference backend.
        token_weights: Weights of the shape of target, or of its leading dimension; with the same rules.
        z_loss: Coefficient of the squared log-sum-exp.
        softcap: Replace logits x by softcap * tanh(x / softcap) first.
        normalizer: What "mean" divides by, "count" or "weight_sum".
        return_stats: Also return the sums of each domain.
        backend: As in `cross_entropy`. "reference" computes the logits of each chunk again in the backward pass.
        chunk_size: Rows per chunk. The default is even chunks of at most 20 MiB of logits or, if that is more, of 96
            rows (on a GPU of 512), as fewer would wait for memory.
        process_group: Ranks that share the classes, as in `cross_entropy`: linear_weight and linear_bias have this
            rank's slice, and their gradients are of it. input is the same on all ranks, and so is its gradient: it is
            summed over the ranks here, so that no further all-reduce must be put before the layer (such as Megatron's
            `copy_to_tensor_model_parallel_region`). There are two small all-reduces for each chunk.
            Without chunk_size there is one more, which waits for the device, at the first call with a weight: keep the
            tensor that `to_local` gives, or pass chunk_size.

    Returns:
        The loss, a scalar or of the shape of target; with return_stats (loss, DomainStats).

    Raises:
        ValueError: For an option, shape, device or weight that is not accepted, or a backend that cannot serve.
        TypeError: For a dtype that is not accepted.
        IndexError: For a target or domain id out of range; on a GPU a device-side assertion or a loss of NaN instead.
        NotImplementedError: On differentiating the gradient of a fused backend; use "reference" for that.
    """
    weights = Weights(weight, domain_ids, domain_weights, token_weights)
    loss_options = LossOptions(
        ignore_index=-100 if ignore_index is None else ignore_index,
        reduction=reduction,
        label_smoothing=label_smoothing,
        z_loss=z_loss,
        softcap=softcap,
        normalizer=normalizer,
        backend=backend,
        process_group=process_group,
    )
    layer = Layer(linear_weight, linear_bias, check_chunk_size(chunk_size, options))
    rows = prepare(input, target, weights, loss_options, return_stats=return_stats, layer=layer)
    hidden = input.reshape(input.shape[:-1].numel(), input.shape[-1])
    if rows.by_reference:
        row_losses = _reference_losses(hidden, layer, rows, weight)
        loss = rows.reduce(row_losses, reduction)
        return (loss, rows.stats(row_losses)) if return_stats else loss

    operands = Operands(hidden, linear_weight, linear_bias)
    differentiated = reduction != "none" and torch.is_grad_enabled()
    wanted = Wanted(
        input_grad=differentiated and input.requires_grad,
        weight_grad=differentiated and linear_weight.requires_grad,
        bias_grad=differentiated and linear_bias is not None and linear_bias.requires_grad,
        stats=return_stats,
    )
    losses = linear_cross_entropy_rows(
        operands,
        LossRows(rows.target, rows.scale(reduction), rows.domain_ids, rows.num_domains),
        rows.options,
        wanted,
        dtype=rows.dtype,
        chunk_size=layer.chunk_size,
    )
    loss = rows.reduce_scaled(losses.total, losses.losses, reduction)
    return (loss, losses.stats) if return_stats else loss


def check_chunk_size(chunk_size: int | None, options: torch.nn.LinearCrossEntropyOptions | None) -> int | None:
    """Return the chunk size, which either of two arguments may set."""
    if options is not None:
        if chunk_size is not None:
            raise ValueError("options and chunk_size both give the rows of a chunk; use chunk_size alone")
        if not hasattr(options, "batch_chunk_size"):
            raise TypeError(f"options must be torch.nn.LinearCrossEntropyOptions or None, got {options!r}")
        chunk_size = options.batch_chunk_size
    if chunk_size is not None and chunk_size < 1:
        raise ValueError(f"chunk_size must be at least 1 row, or None to choose, got {chunk_size}")
    return chunk_size


def _reference_losses(hidden: torch.Tensor, layer: Layer, rows: Rows, weight: torch.Tensor | None) -> RowLosses:
    """Return `reference.losses` of the layer's logits, which autograd computes again instead of keeping them.

    Each of the hidden states (M, D) has as many rows as the layer has outputs of a class: one, or d1 * ... * dK.
    """
    num_classes, features = len(layer.weight), layer.weight.shape[-1]
    flat_weight = layer.weight.reshape(-1, features)
    flat_bias = None if layer.bias is None else layer.bias.reshape(-1)
    rows_each = layer.weight.shape[1:-1].numel()

    def chunk(hidden: torch.Tensor, target: torch.Tensor) -> RowLosses:
        logits = F.linear(hidden, flat_weight, flat_bias).reshape(len(hidden), num_classes, rows_each)
        return reference.losses(logits.movedim(1, -1).flatten(0, 1), target.flatten(0, 1), weight, rows.options)

    target = rows.target.reshape(len(hidden), rows_each, *rows.target.shape[1:])
    step = layer.chunk_size or default_chunk_size(len(hidden), len(flat_weight), hidden.dtype, hidden.device)
    if len(hidden) <= step:
        return chunk(hidden, target)
    chunks = zip(torch.split(hidden, step), torch.split(target, step), strict=True)
    if any(tensor is not None and has_tangent(tensor) for tensor in (hidden, layer.weight, layer.bias)):
        parts = [chunk(*pair) for pair in chunks]  # torch 2.11 has no forward mode through checkpoints
    else:
        parts = [checkpoint(chunk, *pair, use_reentrant=False, preserve_rng_state=False) for pair in chunks]
    return RowLosses(*(torch.cat(part) for part in zip(*parts, strict=True)))
