"""`cross_entropy` and `linear_cross_entropy` as modules, which hold their options."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch

from ._options import LossKeywords, LossOptions
from ._statistics import DomainStats
from .cross_entropy import cross_entropy
from .linear_cross_entropy import check_chunk_size, linear_cross_entropy

if TYPE_CHECKING:
    from typing_extensions import Unpack


class CrossEntropyLoss(torch.nn.Module):
    """`torch.nn.CrossEntropyLoss` with per-domain weights, per-domain statistics and fused kernels.

    Args:
        weight: (V,) class weights, as in torch.
        ignore_index: Target whose tokens are ignored.
        domain_weights: (K,) default domain weights, e.g. `mixture.loss_weights`; a call may give others.
        return_stats: Whether a call returns (loss, DomainStats).
        inplace: Whether the logits may be overwritten by their gradient.
        **options: `reduction` and the other options of `pycooldown.losses.cross_entropy`, which describes them. Each of
            them is an attribute of the module and may be changed.
    """

    weight: torch.Tensor | None
    domain_weights: torch.Tensor | None

    def __init__(
        self,
        weight: torch.Tensor | None = None,
        *,
        ignore_index: int = -100,
        domain_weights: torch.Tensor | None = None,
        return_stats: bool = False,
        inplace: bool = False,
        **options: Unpack[LossKeywords],
    ) -> None:
        super().__init__()
        self.register_buffer("weight", weight)
        # The weights belong to a mixture, not to the model: they stay out of its checkpoint.
        self.register_buffer("domain_weights", domain_weights, persistent=False)
        self.return_stats = return_stats
        self.inplace = inplace
        unknown = options.keys() - set(LossOptions._fields)
        if unknown:
            raise TypeError(
                f"{type(self).__name__} has no option {', '.join(sorted(unknown))}; the options are "
                f"{', '.join(LossOptions._fields)}"
            )
        for name, value in LossOptions(ignore_index=ignore_index, **options)._asdict().items():
            setattr(self, name, value)

    def forward(
        self,
        input: torch.Tensor,
        target: torch.Tensor,
        *,
        domain_ids: torch.Tensor | None = None,
        domain_weights: torch.Tensor | None = None,
        token_weights: torch.Tensor | None = None,
    ) -> torch.Tensor | tuple[torch.Tensor, DomainStats]:
        """Return the loss of `input` (N, V, ...) for `target` (N, ...); with return_stats, also the DomainStats.

        Args:
            input: Logits.
            target: Classes (int64) or class probabilities.
            domain_ids: (N, ...) or (N,) int64, the domain of each token or sequence.
            domain_weights: (K,) in place of the module's.
            token_weights: (N, ...) or (N,), a further weight of each token or sequence.
        """
        keywords = self._keywords(domain_ids, domain_weights, token_weights)
        result: torch.Tensor | tuple[torch.Tensor, DomainStats]
        result = cross_entropy(input, target, inplace=self.inplace, **keywords)
        return result

    def _keywords(
        self,
        domain_ids: torch.Tensor | None,
        domain_weights: torch.Tensor | None,
        token_weights: torch.Tensor | None,
    ) -> dict[str, Any]:
        """Return the module's options and those of a call, as the functions' keyword arguments."""
        if domain_weights is None and domain_ids is not None:
            domain_weights = self.domain_weights
        return {
            **{name: getattr(self, name) for name in LossOptions._fields},
            "weight": self.weight,
            "domain_ids": domain_ids,
            "domain_weights": domain_weights,
            "token_weights": token_weights,
            "return_stats": self.return_stats,
        }

    def extra_repr(self) -> str:
        """Return the options that differ from the defaults."""
        defaults = {**LossOptions._field_defaults, "return_stats": False, "inplace": False}
        given = {name: getattr(self, name) for name in defaults}
        return ", ".join(f"{name}={value!r}" for name, value in given.items() if value != defaults[name])


class LinearCrossEntropyLoss(CrossEntropyLoss):
    """A linear layer and `CrossEntropyLoss` of its outputs, computed by `linear_cross_entropy`.

    Args:
        in_features: D.
        num_classes: V; with process_group, the number of classes on this rank.
        out_features: Further dimensions (d1, ..., dK) of the logits (N, V, d1, ..., dK), as in torch.
        bias: Whether the layer has one.
        device: Device of the layer's parameters.
        dtype: Dtype of the layer's parameters.
        weight: (V,) class weights, as in torch.
        ignore_index: Target that is left out; None for -100.
        options: Options of torch's; batch_chunk_size is taken as chunk_size.
        domain_weights: (K,) default domain weights, e.g. `mixture.loss_weights`; a call may give others.
        return_stats: Whether a call returns (loss, DomainStats).
        chunk_size: Rows per chunk; None to choose.
        **loss_options: `reduction` and all further options of `pycooldown.losses.linear_cross_entropy`, which describes
            them. Each is an attribute of the module, which may be changed.

    Attributes:
        linear: The `torch.nn.Linear` of V * d1 * ... * dK outputs. Assign an embedding's weight to `linear.weight` to
            tie them.
    """

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        *,
        out_features: tuple[int, ...] = (),
        bias: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        weight: torch.Tensor | None = None,
        ignore_index: int | None = -100,
        options: torch.nn.LinearCrossEntropyOptions | None = None,
        domain_weights: torch.Tensor | None = None,
        return_stats: bool = False,
        chunk_size: int | None = None,
        **loss_options: Unpack[LossKeywords],
    ) -> None:
        super().__init__(
            weight,
            ignore_index=-100 if ignore_index is None else ignore_index,
            domain_weights=domain_weights,
            return_stats=return_stats,
            **loss_options,
        )
        self.out_features = tuple(out_features)
        self.chunk_size = check_chunk_size(chunk_size, options)
        outputs = math.prod(self.out_features, start=num_classes)
        self.linear = torch.nn.Linear(in_features, outputs, bias=bias, device=device, dtype=dtype)

    def forward(
        self,
        input: torch.Tensor,
        target: torch.Tensor,
        *,
        domain_ids: torch.Tensor | None = None,
        domain_weights: torch.Tensor | None = None,
        token_weights: torch.Tensor | None = None,
    ) -> torch.Tensor | tuple[torch.Tensor, DomainStats]:
        """Return the loss of hidden states (..., D) for `target` (...); with return_stats, also the DomainStats.

        Args:
            input: Hidden states.
            target: Classes (int64) or class probabilities (..., V).
            domain_ids: Of the shape of target or its leading dimension, the domain of each token or sequence.
            domain_weights: (K,) in place of the module's.
            token_weights: Of the shape of target or its leading dimension, a further weight.
        """
        weight: torch.Tensor = self.linear.weight
        bias: torch.Tensor | None = self.linear.bias
        if self.out_features:
            num_classes = len(weight) // math.prod(self.out_features)
            weight = weight.reshape(num_classes, *self.out_features, -1)
            bias = None if bias is None else bias.reshape(num_classes, *self.out_features)
        keywords = self._keywords(domain_ids, domain_weights, token_weights)
        result: torch.Tensor | tuple[torch.Tensor, DomainStats]
        result = linear_cross_entropy(input, weight, target, linear_bias=bias, chunk_size=self.chunk_size, **keywords)
        return result
