"""`cross_entropy`: torch's, with weights and statistics by domain."""

from __future__ import annotations

import torch

from . import _arguments, _fused, _reference
from ._rows import DomainStats, choose_backend, prepare


def cross_entropy(
    input: torch.Tensor,
    target: torch.Tensor,
    weight: torch.Tensor | None = None,
    *,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    domain_ids: torch.Tensor | None = None,
    domain_weights: torch.Tensor | None = None,
    token_weights: torch.Tensor | None = None,
    z_loss: float = 0.0,
    softcap: float | None = None,
    normalizer: str = "count",
    return_stats: bool = False,
    inplace: bool = False,
    backend: str = "auto",
    process_group: torch.distributed.ProcessGroup | None = None,
) -> torch.Tensor | tuple[torch.Tensor, DomainStats]:
    """Cross-entropy of logits, as `torch.nn.functional.cross_entropy`, with weights and statistics by domain.

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
        domain_weights: (K,) weights, indexed by domain id; finite and not negative, constants for autograd.
        token_weights: Weights of the shape of target, or (N,); finite and not negative, constants for autograd.
        z_loss: Coefficient of lse², which keeps the logits from drifting (Chowdhery et al., PaLM, 2022).
        softcap: Replace logits x by softcap * tanh(x / softcap) first (Gemma 2, 2024).
        normalizer: What "mean" divides by: "count", the number of tokens that are not ignored (with class weights: the
            sum of theirs, as torch does), or "weight_sum", the sum of all their weights.
        return_stats: Also return the sums of each domain; of one domain in all without domain_ids.
        inplace: Let the gradient overwrite the logits, so that no memory is needed. They must not be used afterwards;
            autograd raises if it has saved them for an earlier operation, or if they are written to before backward; a
            later operation that only reads them sees the gradient. Without effect on unreduced losses, under
            torch.compile and on the reference backend.
        backend: "auto" takes the fused kernel of input's device if that covers the arguments, and "reference", plain
            torch operations, otherwise: for class weights, class probabilities, float64, other devices and torch.func
            transforms. A backend named here never falls back. "cpp" is for the CPU, "triton" for GPUs.
        process_group: Ranks that share the classes, as a tensor-parallel output layer leaves them: input has this
            rank's slice, in the order of ranks, of any size. All else is the same on all ranks: target numbers all
            classes, and loss and statistics are over all. The gradient is that of the slice. It takes two all-reduces
            of a few numbers per row, and an all-gather of the sizes, by which ranks on the CPU also see that they
            agree. There can be neither class weights nor class probabilities.

    Returns:
        The loss, a scalar or of the shape of target; with return_stats (loss, DomainStats).

    Raises:
        ValueError: For an option, shape, device or weight that is not accepted, or a backend that cannot serve.
        TypeError: For a dtype that is not accepted.
        IndexError: For a target or domain id out of range; on a GPU a device-side assertion or a loss of NaN instead.
        NotImplementedError: On differentiating the gradient of a fused backend; use "reference" for that.
    """
    _arguments.check_options(reduction, label_smoothing, z_loss, softcap, normalizer, backend)
    _arguments.check_logits(input)
    class_dim = min(input.dim() - 1, 1)
    rows = prepare(
        input,
        target,
        weight,
        ignore_index,
        domain_ids,
        domain_weights,
        token_weights,
        normalizer,
        shape=input.shape[:class_dim] + input.shape[class_dim + 1 :],
        class_dim=class_dim,
        num_classes=input.shape[class_dim],
        process_group=process_group,
        options=(reduction, label_smoothing, z_loss, softcap, return_stats, torch.is_grad_enabled()),
    )
    logits = _arguments.flatten_logits(input)

    chosen = choose_backend(backend, logits.device, logits.dtype, weight, rows.target)
    if chosen == "reference" and not rows.shard.group:
        loss, lse, correct = _reference.rows(
            logits,
            rows.target,
            weight,
            ignore_index=ignore_index,
            label_smoothing=label_smoothing,
            softcap=softcap or 0.0,
        )
        result = rows.reduce(loss, lse, z_loss, reduction)
        return (result, rows.stats(loss, correct)) if return_stats else result

    want_grad = reduction != "none" and logits.requires_grad and torch.is_grad_enabled()
    options = (ignore_index, label_smoothing, z_loss, softcap or 0.0)
    args = (logits, rows.target, rows.scale(reduction), rows.domain_ids, rows.num_domains, *options)
    where = (chosen, rows.shard.group, rows.shard.position)
    if want_grad and inplace and not torch.compiler.is_compiling():
        _arguments.check_inplace(input)
        total, losses, _, *sums = _fused.InplaceCrossEntropy.apply(  # type: ignore[no-untyped-call]
            *args, *where, return_stats
        )
    else:
        total, losses, _, *sums = _fused.cross_entropy(*args, *where, want_grad, return_stats)
    result = rows.reduce_scaled(total, losses, reduction)
    return (result, DomainStats(*sums)) if return_stats else result
