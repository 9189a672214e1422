"""The module form of `cross_entropy`: a holder of its options."""

from __future__ import annotations

from typing import Any

import torch

from ._rows import DomainStats
from .functional import cross_entropy


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
        }
        return ", ".join(
            f"{name}={getattr(self, name)!r}" for name, value in defaults.items() if getattr(self, name) != value
        )
