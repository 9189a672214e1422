"""The module forms of `cross_entropy` and `linear_cross_entropy`: holders of their options."""

from __future__ import annotations

from typing import Any

import torch

from ._rows import DomainStats
from .functional import cross_entropy
from .linear import check_chunk_size, linear_cross_entropy


class CrossEntropyLoss(torch.nn.Module):
    """`torch.nn.CrossEntropyLoss` with per-domain weights, per-domain statistics and fused kernels.

    Args:
        weight: (V,) class weights, as in torch.
        ignore_index: Target that is left out.
        reduction: "mean", "sum" or "none".
        label_smoothing: In [0, 1].
        domain_weights: (K,) default domain weights, e.g. `mixture.loss_weights`; a call may give others.
        z_loss: Coefficient of the squared log-sum-exp.
        softcap: Bound of the logits, softcap * tanh(logits / softcap); None for none.
        normalizer: "count" or "weight_sum".
        return_stats: Whether a call returns (loss, DomainStats).
        inplace: Whether the logits may be overwritten by their gradient.
        backend: "auto", "reference", "cpp" or "triton".
        process_group: Ranks that share the classes.

    `pycooldown.losses.cross_entropy` has the meaning of each in full.
    """

    weight: torch.Tensor | None
    domain_weights: torch.Tensor | None

    def __init__(
        self,
        weight: torch.Tensor | None = None,
        *,
        ignore_index: int = -100,
        reduction: str = "mean",
        label_smoothing: float = 0.0,
        domain_weights: torch.Tensor | None = None,
        z_loss: float = 0.0,
        softcap: float | None = None,
        normalizer: str = "count",
        return_stats: bool = False,
        inplace: bool = False,
        backend: str = "auto",
        process_group: torch.distributed.ProcessGroup | None = None,
    ) -> None:
        super().__init__()
        self.register_buffer("weight", weight)
        # The weights belong to a mixture, not to the model: they stay out of its checkpoint.
        self.register_buffer("domain_weights", domain_weights, persistent=False)
        self.ignore_index = ignore_index
        self.reduction = reduction
        self.label_smoothing = label_smoothing
        self.z_loss = z_loss
        self.softcap = softcap
        self.normalizer = normalizer
        self.return_stats = return_stats
        self.inplace = inplace
        self.backend = backend
        self.process_group = process_group

    def forward(
        self,
        input: torch.Tensor,
        target: torch.Tensor,
        *,
        domain_ids: torch.Tensor | None = None,
        domain_weights: torch.Tensor | None = None,
        token_weights: torch.Tensor | None = None,
    ) -> torch.Tensor | tuple[torch.Tensor, DomainStats]:
        """The loss of `input` (N, V, ...) for `target` (N, ...); with return_stats, also the DomainStats.

        Args:
            input: Logits.
            target: Classes (int64) or class probabilities.
            domain_ids: (N, ...) or (N,) int64, the domain of each token or sequence.
            domain_weights: (K,) in place of the module's.
            token_weights: (N, ...) or (N,), a further weight of each token or sequence.
        """
        return cross_entropy(
            input, target, inplace=self.inplace, **self._options(domain_ids, domain_weights, token_weights)
        )

    def _options(
        self,
        domain_ids: torch.Tensor | None,
        domain_weights: torch.Tensor | None,
        token_weights: torch.Tensor | None,
    ) -> dict[str, Any]:
        """The module's options and those of a call, as the functions' keyword arguments."""
        return {
            "weight": self.weight,
            "ignore_index": self.ignore_index,
            "reduction": self.reduction,
            "label_smoothing": self.label_smoothing,
            "domain_ids": domain_ids,
            "domain_weights": self.domain_weights
            if domain_weights is None and domain_ids is not None
            else domain_weights,
            "token_weights": token_weights,
            "z_loss": self.z_loss,
            "softcap": self.softcap,
            "normalizer": self.normalizer,
            "return_stats": self.return_stats,
            "backend": self.backend,
            "process_group": self.process_group,
        }

    def extra_repr(self) -> str:
        """The options that differ from the defaults."""
        defaults = {
            "ignore_index": -100,
            "reduction": "mean",
            "label_smoothing": 0.0,
            "z_loss": 0.0,
            "softcap": None,
            "normalizer": "count",
            "return_stats": False,
            "inplace": False,
            "backend": "auto",
            "process_group": None,
        }
        return ", ".join(
            f"{name}={getattr(self, name)!r}" for name, value in defaults.items() if getattr(self, name) != value
        )


class LinearCrossEntropyLoss(CrossEntropyLoss):
    """A linear layer and `CrossEntropyLoss` of its outputs, computed by `linear_cross_entropy`.

    Args:
        in_features: D.
        num_classes: V.
        bias: Whether the layer has one.
        device: Of the layer's parameters.
        dtype: Of the layer's parameters.
        reduction: "mean", "sum" or "none".
        weight: (V,) class weights, as in torch.
        ignore_index: Target that is left out; None for -100.
        label_smoothing: In [0, 1].
        options: torch's; its batch_chunk_size is taken.
        domain_weights: (K,) default domain weights, e.g. `mixture.loss_weights`; a call may give others.
        z_loss: Coefficient of the squared log-sum-exp.
        softcap: Bound of the logits, softcap * tanh(logits / softcap); None for none.
        normalizer: "count" or "weight_sum".
        return_stats: Whether a call returns (loss, DomainStats).
        backend: "auto", "reference", "cpp" or "triton".
        chunk_size: Rows per chunk; None to choose.
        process_group: Ranks that share the classes, num_classes of them here.

    Attributes:
        linear: The `torch.nn.Linear`. Assign an embedding's weight to `linear.weight` to tie them.
    """

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        *,
        bias: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        reduction: str = "mean",
        weight: torch.Tensor | None = None,
        ignore_index: int | None = -100,
        label_smoothing: float = 0.0,
        options: torch.nn.LinearCrossEntropyOptions | None = None,
        domain_weights: torch.Tensor | None = None,
        z_loss: float = 0.0,
        softcap: float | None = None,
        normalizer: str = "count",
        return_stats: bool = False,
        backend: str = "auto",
        chunk_size: int | None = None,
        process_group: torch.distributed.ProcessGroup | None = None,
    ) -> None:
        super().__init__(
            weight,
            ignore_index=-100 if ignore_index is None else ignore_index,
            reduction=reduction,
            label_smoothing=label_smoothing,
            domain_weights=domain_weights,
            z_loss=z_loss,
            softcap=softcap,
            normalizer=normalizer,
            return_stats=return_stats,
            backend=backend,
            process_group=process_group,
        )
        self.chunk_size = check_chunk_size(chunk_size, options)
        self.linear = torch.nn.Linear(in_features, num_classes, bias=bias, device=device, dtype=dtype)

    def forward(
        self,
        input: torch.Tensor,
        target: torch.Tensor,
        *,
        domain_ids: torch.Tensor | None = None,
        domain_weights: torch.Tensor | None = None,
        token_weights: torch.Tensor | None = None,
    ) -> torch.Tensor | tuple[torch.Tensor, DomainStats]:
        """The loss of hidden states (..., D) for `target` (...); with return_stats, also the DomainStats.

        Args:
            input: Hidden states.
            target: Classes (int64) or class probabilities (..., V).
            domain_ids: Of the shape of target or its leading dimension, the domain of each token or sequence.
            domain_weights: (K,) in place of the module's.
            token_weights: Of the shape of target or its leading dimension, a further weight.
        """
        return linear_cross_entropy(
            input,
            self.linear.weight,
            target,
            linear_bias=self.linear.bias,
            chunk_size=self.chunk_size,
            **self._options(domain_ids, domain_weights, token_weights),
        )
