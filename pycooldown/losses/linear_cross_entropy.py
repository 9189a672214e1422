"""`linear_cross_entropy`: a model's output layer and its loss, without the logits in memory."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from . import _arguments, _linear, _reference
from ._rows import DomainStats, Rows, choose_backend, prepare


def linear_cross_entropy(
    input: torch.Tensor,
    linear_weight: torch.Tensor,
    target: torch.Tensor,
    *,
    linear_bias: torch.Tensor | None = None,
    weight: torch.Tensor | None = None,
    reduction: str = "mean",
    ignore_index: int | None = -100,
    label_smoothing: float = 0.0,
    options: torch.nn.LinearCrossEntropyOptions | None = None,
    domain_ids: torch.Tensor | None = None,
    domain_weights: torch.Tensor | None = None,
    token_weights: torch.Tensor | None = None,
    z_loss: float = 0.0,
    softcap: float | None = None,
    normalizer: str = "count",
    return_stats: bool = False,
    backend: str = "auto",
    chunk_size: int | None = None,
    process_group: torch.distributed.ProcessGroup | None = None,
) -> torch.Tensor | tuple[torch.Tensor, DomainStats]:
    """`cross_entropy` of `torch.nn.functional.linear(input, linear_weight, linear_bias)`, a chunk of rows at a time.

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
        linear_weight: (V, D), e.g. a tied embedding.
        target: (...) int64 classes, or (..., V) class probabilities.
        linear_bias: (V,).
        weight: (V,) class weights in input's dtype.
        reduction: "mean", "sum" or "none". The gradient of unreduced losses is computed in the backward pass, with one
            more product.
        ignore_index: Target whose tokens have loss and gradient 0 and are not counted; None for -100.
        label_smoothing: Share of the uniform distribution in the target, in [0, 1].
        options: For torch's sake: its batch_chunk_size is taken as chunk_size. The rest chooses among torch's ways to
            compute, and is without effect.
        domain_ids: Integers of the shape of target, or of its leading dimension for one domain per sequence.
        domain_weights: (K,) weights, indexed by domain id; finite and not negative, constants for autograd.
        token_weights: Weights of the shape of target, or of its leading dimension, constants for autograd.
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

    Returns:
        The loss, a scalar or of the shape of target; with return_stats (loss, DomainStats).

    Raises:
        ValueError: For an option, shape, device or weight that is not accepted, or a backend that cannot serve.
        TypeError: For a dtype that is not accepted.
        IndexError: For a target or domain id out of range; on a GPU a device-side assertion or a loss of NaN instead.
        NotImplementedError: On differentiating the gradient of a fused backend; use "reference" for that.
    """
    _arguments.check_options(reduction, label_smoothing, z_loss, softcap, normalizer, backend)
    chunk_size = check_chunk_size(chunk_size, options)
    dtype = _check_layer(input, linear_weight, linear_bias)
    ignore_index = -100 if ignore_index is None else ignore_index
    shape = input.shape[:-1]
    rows = prepare(
        input,
        target,
        weight,
        ignore_index,
        domain_ids,
        domain_weights,
        token_weights,
        normalizer,
        shape=shape,
        class_dim=len(shape),
        num_classes=len(linear_weight),
        process_group=process_group,
        options=(reduction, label_smoothing, z_loss, softcap, return_stats, torch.is_grad_enabled(), chunk_size),
    )
    hidden = input.reshape(shape.numel(), input.shape[-1])
    if rows.shard.sizes is not None and chunk_size is None:  # the same on all ranks, though their slices differ
        chunk_size = _linear.default_chunk_size(len(hidden), int(rows.shard.sizes.max()), dtype, hidden.device)

    chosen = choose_backend(backend, input.device, dtype, weight, rows.target)
    cap = softcap or 0.0
    if chosen == "reference" and not rows.shard.group:
        loss, lse, correct = _reference_rows(
            hidden, linear_weight, linear_bias, rows, weight, ignore_index, label_smoothing, cap, chunk_size
        )
        result = rows.reduce(loss, lse, z_loss, reduction)
        return (result, rows.stats(loss, correct)) if return_stats else result

    differentiated = reduction != "none" and torch.is_grad_enabled()
    total, losses, _, _, _, *sums = _linear.linear_cross_entropy(
        hidden,
        linear_weight,
        linear_bias,
        rows.target,
        rows.scale(reduction),
        rows.domain_ids,
        rows.num_domains,
        ignore_index,
        label_smoothing,
        z_loss,
        cap,
        chosen,
        rows.shard.group,
        rows.shard.position,
        dtype,
        chunk_size,
        differentiated and input.requires_grad,
        differentiated and linear_weight.requires_grad,
        differentiated and linear_bias is not None and linear_bias.requires_grad,
        return_stats,
    )
    result = rows.reduce_scaled(total, losses, reduction)
    return (result, DomainStats(*sums)) if return_stats else result


def check_chunk_size(chunk_size: int | None, options: torch.nn.LinearCrossEntropyOptions | None) -> int | None:
    """The chunk size of the two arguments that may say it."""
    if options is not None:
        if chunk_size is not None:
            raise ValueError("options and chunk_size both say how to cut chunks; use chunk_size alone")
        if not hasattr(options, "batch_chunk_size"):
            raise TypeError(f"options must be torch.nn.LinearCrossEntropyOptions or None, got {options!r}")
        chunk_size = options.batch_chunk_size
    if chunk_size is not None and chunk_size < 1:
        raise ValueError(f"chunk_size must be at least 1 row, or None to choose, got {chunk_size}")
    return chunk_size


def _check_layer(input: torch.Tensor, linear_weight: torch.Tensor, linear_bias: torch.Tensor | None) -> torch.dtype:
    """The dtype of the logits; raise unless input (..., D), weight (V, D) and bias (V,) fit together."""
    for name, tensor in (("input", input), ("linear_weight", linear_weight), ("linear_bias", linear_bias)):
        if tensor is not None:
            _arguments.check_whole(name, tensor)
    if input.dim() == 0 or linear_weight.dim() != 2 or input.shape[-1] != linear_weight.shape[1]:
        raise ValueError(
            f"input must be (..., D) and linear_weight (V, D), got {tuple(input.shape)} and "
            f"{tuple(linear_weight.shape)}; a weight of torch.nn.Linear fits as it is"
        )
    if linear_bias is not None and linear_bias.shape != linear_weight.shape[:1]:
        raise ValueError(
            f"linear_bias must be ({len(linear_weight)},), one per row of linear_weight, got {tuple(linear_bias.shape)}"
        )
    autocast = torch.is_autocast_enabled(input.device.type)
    for name, tensor in (("input", input), ("linear_weight", linear_weight), ("linear_bias", linear_bias)):
        if tensor is None:
            continue
        if not tensor.is_floating_point():
            raise TypeError(f"{name} must be floating point, got {tensor.dtype}")
        if tensor.device != input.device:
            raise ValueError(f"{name} is on {tensor.device}, but input on {input.device}; move it there")
        if tensor.dtype != input.dtype and not autocast:
            raise TypeError(f"{name} is {tensor.dtype}, but input {input.dtype}; convert one, or use torch.autocast")
    if autocast and input.dtype != torch.float64:
        return torch.get_autocast_dtype(input.device.type)
    return input.dtype


def _reference_rows(
    hidden: torch.Tensor,
    linear_weight: torch.Tensor,
    linear_bias: torch.Tensor | None,
    rows: Rows,
    weight: torch.Tensor | None,
    ignore_index: int,
    label_smoothing: float,
    softcap: float,
    chunk_size: int | None,
) -> tuple[torch.Tensor, ...]:
    """`_reference.rows` of the layer's logits, which autograd computes again instead of keeping them."""

    def chunk(hidden: torch.Tensor, target: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        return _reference.rows(
            F.linear(hidden, linear_weight, linear_bias),
            target,
            weight,
            ignore_index=ignore_index,
            label_smoothing=label_smoothing,
            softcap=softcap,
        )

    step = chunk_size or _linear.default_chunk_size(len(hidden), len(linear_weight), hidden.dtype, hidden.device)
    if len(hidden) <= step:
        return chunk(hidden, rows.target)
    chunks = zip(torch.split(hidden, step), torch.split(rows.target, step), strict=True)
    parts = [checkpoint(chunk, *pair, use_reentrant=False, preserve_rng_state=False) for pair in chunks]
    return tuple(torch.cat(part) for part in zip(*parts, strict=True))
