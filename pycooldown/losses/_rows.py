"""The rows of a loss, one per token: their targets, weights and domains, and how their losses are reduced."""

from __future__ import annotations

import importlib
import importlib.util
import os
from typing import Any, NamedTuple

import torch

from . import _arguments


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


class Shard(NamedTuple):
    """The part of the classes that the logits are of.

    Attributes:
        group: name of the process group whose ranks share the classes, or "" if all are here.
        position: (2,) int64, the first class here and the number of all; None without a group.
        sizes: (R,) int64, the number of classes of each rank; None without a group.
        num_classes: of all; if that is not known without waiting for a device, more than any target.
    """

    group: str
    position: torch.Tensor | None
    sizes: torch.Tensor | None
    num_classes: int


class Rows(NamedTuple):
    """Everything about the rows but their logits.

    Attributes:
        shape: of the rows before they were flattened.
        target: (N,) int64 classes, or (N, V) class probabilities.
        valid: (N,) bool, False where ignored.
        weight: (N,) float32 or float64, 0 where ignored.
        divisor: (), of the mean.
        domain_ids: (N,) int64 or None.
        num_domains: K.
        shard: the part of the classes that is here.
    """

    shape: torch.Size
    target: torch.Tensor
    valid: torch.Tensor
    weight: torch.Tensor
    divisor: torch.Tensor
    domain_ids: torch.Tensor | None
    num_domains: int
    shard: Shard

    def scale(self, reduction: str) -> torch.Tensor:
        """The weight of each row in the reduced loss."""
        if reduction != "mean":
            return self.weight
        return torch.where(self.weight == 0, 0, self.weight / self.divisor)

    def reduce_scaled(self, total: torch.Tensor, losses: torch.Tensor, reduction: str) -> torch.Tensor:
        """The loss, from losses that are scaled and from their sum."""
        if reduction == "none":
            return losses.reshape(self.shape)
        return total.masked_fill(self.divisor == 0, float("nan")) if reduction == "mean" else total

    def reduce(self, losses: torch.Tensor, lse: torch.Tensor, z_loss: float, reduction: str) -> torch.Tensor:
        """The loss, from the plain losses and log-sum-exps (N,), differentiably."""
        total = losses + z_loss * lse.square() if z_loss else losses
        total = torch.where(self.weight == 0, 0, self.weight * total)
        if reduction == "none":
            return total.reshape(self.shape)
        return total.sum() / self.divisor if reduction == "mean" else total.sum()

    def stats(self, losses: torch.Tensor, correct: torch.Tensor) -> DomainStats:
        """The sums of each domain, from plain losses (N,) and correct (N,) bool."""
        ids = self.domain_ids if self.domain_ids is not None else torch.zeros_like(self.valid, dtype=torch.int64)
        zeros = torch.zeros(self.num_domains, dtype=torch.int64, device=losses.device)
        return DomainStats(
            torch.zeros_like(zeros, dtype=torch.float64).index_add(0, ids, losses.detach().double()),
            zeros.index_add(0, ids, self.valid.long()),
            zeros.index_add(0, ids, correct.long()),
        )


def prepare(
    input: torch.Tensor,
    target: torch.Tensor,
    weight: torch.Tensor | None,
    ignore_index: int,
    domain_ids: torch.Tensor | None,
    domain_weights: torch.Tensor | None,
    token_weights: torch.Tensor | None,
    normalizer: str,
    *,
    shape: torch.Size,
    class_dim: int,
    num_classes: int,
    process_group: torch.distributed.ProcessGroup | None,
    options: tuple[Any, ...],
) -> Rows:
    """Check and flatten what is known of rows of this shape, whose logits are input or are computed from it.

    The ranks of a process group must agree on all of it but num_classes, and on options.
    """
    shard = Shard("", None, None, num_classes)
    if process_group is not None:
        if weight is not None or target.is_floating_point():
            given = "weight (of classes)" if weight is not None else "target of class probabilities"
            raise ValueError(f"process_group does not support a {given}; gather the logits for that")
        replicated = {
            "target": target,
            "domain_ids": domain_ids,
            "domain_weights": domain_weights,
            "token_weights": token_weights,
        }
        options = (shape, input.dtype, input.requires_grad, ignore_index, normalizer, *options)
        sharded = importlib.import_module("._sharded", __package__)  # not on all platforms
        shard = sharded.locate(process_group, num_classes, input.device, replicated, options)
        num_classes = shard.num_classes
    _arguments.check_target(
        input, target, weight, ignore_index, shape=shape, class_dim=class_dim, num_classes=num_classes
    )
    weights, domain_ids, num_domains = _arguments.row_weights(input, shape, domain_ids, domain_weights, token_weights)
    probabilities = target.is_floating_point()
    ones = torch.ones(shape.numel(), dtype=torch.promote_types(input.dtype, torch.float32), device=input.device)
    if probabilities:
        target = target.movedim(class_dim, -1).reshape(-1, num_classes)
        valid = torch.ones_like(ones, dtype=torch.bool)
    else:
        target = target.reshape(-1).long()
        valid = target != ignore_index

    row_weight = torch.where(valid, ones if weights is None else weights, 0)
    count_weight = torch.where(valid, ones, 0)
    if weight is not None and not probabilities:
        count_weight = count_weight * weight.detach().to(ones.dtype).take(target.where(valid, 0))
    if normalizer == "weight_sum":
        count_weight = count_weight * row_weight
    return Rows(shape, target, valid, row_weight, count_weight.sum(), domain_ids, num_domains, shard)


def choose_backend(
    backend: str, device: torch.device, dtype: torch.dtype, weight: torch.Tensor | None, target: torch.Tensor
) -> str:
    """The backend to use for "auto"; a named one if it can serve logits of this device and dtype."""
    if backend == "reference":
        return backend
    fused = {"cpu": "cpp", "cuda": "triton"}.get(device.type)
    if backend == "triton" and fused == "cpp" and os.environ.get("TRITON_INTERPRET") == "1":
        fused = "triton"
    reason = None
    if fused is None or backend not in ("auto", fused):
        reason = f"input on {device}"
    elif dtype not in _arguments.FUSED_DTYPES:
        reason = f"{dtype} logits"
    elif weight is not None:
        reason = "class weights"
    elif target.is_floating_point():
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
