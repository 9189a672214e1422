"""`cross_entropy`: torch's, with weights and statistics by domain."""

from __future__ import annotations

import importlib.util
import os
from typing import NamedTuple

import torch

from . import _arguments, _fused, _reference


class DomainStats(NamedTuple):
    """Unweighted sums over the tokens of each domain, as an adaptive schedule reads them.

    Attributes:
        loss_sum: (K,) float64, sum of the cross-entropy: label smoothing and class weights included; z-loss, domain and
            token weights not.
        token_count: (K,) int64, number of tokens that are not ignored.
        correct: (K,) int64, tokens whose target has the largest logit (ties count as correct).
    """

    loss_sum: torch.Tensor
    token_count: torch.Tensor
    correct: torch.Tensor


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

    Returns:
        The loss, a scalar or of the shape of target; with return_stats (loss, DomainStats).

    Raises:
        ValueError: For an option, shape, device or weight that is not accepted, or a backend that cannot serve.
        TypeError: For a dtype that is not accepted.
        IndexError: For a target or domain id out of range; on a GPU a device-side assertion or a loss of NaN instead.
        NotImplementedError: On differentiating the gradient of a fused backend; use "reference" for that.
    """
    _arguments.check_options(reduction, label_smoothing, z_loss, softcap, normalizer, backend)
    _arguments.check_target(input, target, weight, ignore_index)
    weights, domain_ids, num_domains = _arguments.row_weights(input, domain_ids, domain_weights, token_weights)

    logits = _arguments.flatten_logits(input)
    probabilities = target.is_floating_point()
    if probabilities:
        target = _arguments.flatten_logits(target)
        valid = torch.ones(len(logits), dtype=torch.bool, device=logits.device)
    else:
        target = target.reshape(-1).long()
        valid = target != ignore_index

    # One weight per row, 0 where ignored, and the divisor of the mean.
    ones = torch.ones(len(logits), dtype=torch.promote_types(input.dtype, torch.float32), device=input.device)
    row_weight = torch.where(valid, ones if weights is None else weights, 0)
    count_weight = torch.where(valid, ones, 0)
    if weight is not None and not probabilities:
        count_weight = count_weight * weight.detach().to(ones.dtype).take(target.where(valid, 0))
    if normalizer == "weight_sum":
        count_weight = count_weight * row_weight
    divisor = count_weight.sum()

    chosen = _choose_backend(backend, logits, weight, probabilities)
    if chosen != "reference":
        scale = torch.where(row_weight == 0, 0, row_weight / divisor) if reduction == "mean" else row_weight
        want_grad = reduction != "none" and logits.requires_grad and torch.is_grad_enabled()
        args = (logits, target, scale, domain_ids, num_domains, ignore_index, label_smoothing, z_loss, softcap or 0.0)
        if want_grad and inplace and not torch.compiler.is_compiling():
            _arguments.check_inplace(input)
            total, losses, _, *sums = _fused.InplaceCrossEntropy.apply(  # type: ignore[no-untyped-call]
                *args, chosen, return_stats
            )
        else:
            total, losses, _, *sums = _fused.cross_entropy(*args, chosen, want_grad, return_stats)
        if reduction == "none":
            result = losses.reshape(_arguments.row_shape(input))
        else:
            result = total.masked_fill(divisor == 0, float("nan")) if reduction == "mean" else total
        return (result, DomainStats(*sums)) if return_stats else result

    loss, lse, correct = _reference.rows(
        logits, target, weight, ignore_index=ignore_index, label_smoothing=label_smoothing, softcap=softcap or 0.0
    )
    total = loss + z_loss * lse.square() if z_loss else loss
    total = torch.where(row_weight == 0, 0, row_weight * total)
    if reduction == "none":
        result = total.reshape(_arguments.row_shape(input))
    else:
        result = total.sum() / divisor if reduction == "mean" else total.sum()
    if not return_stats:
        return result
    ids = domain_ids if domain_ids is not None else torch.zeros_like(valid, dtype=torch.int64)
    zeros = torch.zeros(num_domains, dtype=torch.int64, device=input.device)
    stats = DomainStats(
        torch.zeros_like(zeros, dtype=torch.float64).index_add(0, ids, loss.detach().double()),
        zeros.index_add(0, ids, valid.long()),
        zeros.index_add(0, ids, correct.long()),
    )
    return result, stats


def _choose_backend(backend: str, logits: torch.Tensor, weight: torch.Tensor | None, probabilities: bool) -> str:
    """The backend to use for "auto"; a named one if it can serve."""
    if backend == "reference":
        return backend
    fused = {"cpu": "cpp", "cuda": "triton"}.get(logits.device.type)
    if backend == "triton" and fused == "cpp" and os.environ.get("TRITON_INTERPRET") == "1":
        fused = "triton"
    reason = None
    if fused is None or backend not in ("auto", fused):
        reason = f"input on {logits.device}"
    elif logits.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        reason = f"{logits.dtype} logits"
    elif weight is not None:
        reason = "class weights"
    elif probabilities:
        reason = "class probabilities as target"
    elif not torch.compiler.is_compiling() and torch._C._are_functorch_transforms_active():
        reason = "torch.func transforms"
    elif fused == "triton" and importlib.util.find_spec("triton") is None:
        reason = "running without triton installed"
    if reason is None:
        assert fused is not None
        return fused
    if backend == "auto":
        return "reference"
    raise ValueError(f"backend={backend!r} does not support {reason}; use backend='reference', or 'auto' to choose")
