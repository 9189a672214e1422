"""The rows of a loss, one per token: their targets, weights and domains, and how their losses are reduced."""

from __future__ import annotations

from typing import NamedTuple

import torch

from . import _checks, _vocabulary, backends
from ._options import Layer, LossOptions, Reduction, Weights, beyond_fused, kernel_options
from ._statistics import DomainStats, domain_stats
from .backends import KernelOptions
from .backends.reference import RowLosses


class Rows(NamedTuple):
    """All tensors and options of the rows, except for their logits.

    Attributes:
        shape: Shape of the rows before they were flattened.
        target: (N,) int64 classes, or (N, V) class probabilities.
        valid: (N,) bool, False where ignored.
        weight: (N,) float32 or float64, 0 where ignored.
        divisor: () divisor of the mean.
        domain_ids: (N,) int64 or None.
        num_domains: K.
        dtype: Dtype of the logits.
        options: Options of the backend.
        differentiable_weight: Whether the loss is differentiated with respect to `weight`.
    """

    shape: torch.Size
    target: torch.Tensor
    valid: torch.Tensor
    weight: torch.Tensor
    divisor: torch.Tensor
    domain_ids: torch.Tensor | None
    num_domains: int
    dtype: torch.dtype
    options: KernelOptions
    differentiable_weight: bool

    @property
    def by_reference(self) -> bool:
        """Whether plain torch operations compute the loss and its derivatives, not the package's own operator."""
        return self.options.backend == "reference" and not self.options.group

    def scale(self, reduction: Reduction) -> torch.Tensor:
        """Return the weight of each row in the reduced loss."""
        if reduction != "mean":
            return self.weight
        return torch.where(self.weight == 0, 0, self.weight / self.divisor)

    def reduce_scaled(self, total: torch.Tensor, losses: torch.Tensor, reduction: Reduction) -> torch.Tensor:
        """Return the loss, from losses that are scaled and from their sum."""
        if reduction == "none":
            return losses.reshape(self.shape)
        return total.masked_fill(self.divisor == 0, float("nan")) if reduction == "mean" else total

    def reduce(self, losses: RowLosses, reduction: Reduction) -> torch.Tensor:
        """Return the loss, from plain losses, differentiably."""
        total = losses.loss
        if self.options.z_loss:
            total = total + self.options.z_loss * losses.lse.square()
        # Rows of weight 0 are left out, since their loss may be infinite, unless the derivative by the weight needs it.
        counted = self.valid if self.differentiable_weight else self.weight != 0
        total = torch.where(counted, self.weight * total, 0)
        if reduction == "none":
            return total.reshape(self.shape)
        return total.sum() / self.divisor if reduction == "mean" else total.sum()

    def stats(self, losses: RowLosses) -> DomainStats:
        """Return the sums of each domain, from plain losses."""
        return domain_stats(losses.loss, self.valid, losses.correct, self.domain_ids, self.num_domains)


def prepare(
    input: torch.Tensor,
    target: torch.Tensor,
    weights: Weights,
    options: LossOptions,
    *,
    return_stats: bool,
    layer: Layer | None = None,
) -> Rows:
    """Check all arguments of a call, flatten its rows and choose the backend.

    The ranks of a process group must agree on all of them, except for the slice of classes.

    Args:
        input: Logits (V,) or (N, V, ...), or the layer's input (..., D).
        target: Classes, or class probabilities.
        weights: Weights of classes, domains and tokens.
        options: Options of the loss.
        return_stats: Whether sums by domain are requested.
        layer: The layer whose outputs are the logits, if not input is.
    """
    options.check()
    layout = _checks.logits_layout(input) if layer is None else _checks.layer_layout(input, layer)
    needs = _checks.needs_reference(input, layer, target, weights) or beyond_fused(options)
    group = ""
    if options.process_group is not None:
        if needs is not None:
            raise ValueError(
                f"process_group does not support {needs}; gather the logits, and call without process_group"
            )
        agreed = (layout.shape, input.dtype, input.requires_grad, return_stats, torch.is_grad_enabled())
        group, num_classes = _vocabulary.locate(
            options.process_group,
            layout.num_classes,
            {"target": target, **weights._asdict()},
            (*agreed, options._replace(process_group=None), None if layer is None else layer.chunk_size),
        )
        layout = layout._replace(num_classes=num_classes)
    _checks.check_target(input, target, weights.weight, options.ignore_index, layout)
    _checks.check_weights(input, layout.shape, weights)
    backend = backends.choose(options.backend, input.device, layout.dtype, needs)
    kernel = kernel_options(options)._replace(backend=backend, group=group)
    return _flatten(input, target, weights, options, layout, kernel)


def _flatten(
    input: torch.Tensor,
    target: torch.Tensor,
    weights: Weights,
    options: LossOptions,
    layout: _checks.Layout,
    kernel: KernelOptions,
) -> Rows:
    """Return the rows of checked arguments."""
    shape, class_dim, num_classes, dtype = layout
    ones = torch.ones(shape.numel(), dtype=torch.promote_types(input.dtype, torch.float32), device=input.device)
    probabilities = target.is_floating_point()
    if probabilities:
        target = target.movedim(class_dim, -1).reshape(-1, num_classes)
        valid = torch.ones_like(ones, dtype=torch.bool)
    else:
        target = target.reshape(-1).long()
        valid = target != options.ignore_index

    weight, domain_ids, num_domains = ones, None, 1
    if weights.domain_ids is not None and weights.domain_weights is not None:
        domain_ids, num_domains = _checks.per_row(weights.domain_ids, shape).long(), len(weights.domain_weights)
        weight = weights.domain_weights.to(ones.dtype).take(domain_ids)
    if weights.token_weights is not None:
        tokens = _checks.per_row(weights.token_weights, shape).to(ones.dtype)
        weight = tokens if domain_ids is None else weight * tokens
    weight = torch.where(valid, weight, 0)

    counts = torch.where(valid, ones, 0)
    if weights.weight is not None and not probabilities:
        counts = counts * weights.weight.detach().to(ones.dtype).take(target.where(valid, 0))
    if options.normalizer == "weight_sum":
        counts = counts * weight
    differentiable = any(
        w is not None and _checks.differentiated(w) for w in (weights.domain_weights, weights.token_weights)
    )
    return Rows(shape, target, valid, weight, counts.sum(), domain_ids, num_domains, dtype, kernel, differentiable)
