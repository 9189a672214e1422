"""What a run has seen of each domain: mean losses between two looks, and tokens since its start."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from pycooldown.huggingface.fused_loss import FusedLoss
from pycooldown.huggingface.output_layer import next_tokens


def tokens_by_domain(fused: FusedLoss, inputs: Mapping[str, torch.Tensor], num_domains: int) -> torch.Tensor:
    """Count the tokens of a micro-batch that have a loss, by domain, (K,) int64.

    Args:
        fused: The model's loss, which decides what each position predicts.
        inputs: ``labels`` (N, T), and ``domain_ids`` of the sequences (N,) or of the labels (N, T).
        num_domains: K.
    """
    labels, ids = inputs["labels"], inputs["domain_ids"]
    if ids.shape != labels.shape:
        ids = ids[:, None].expand_as(labels)
    elif fused.shifts:
        ids = next_tokens(ids, last=0)
    return torch.bincount(ids[fused.targets(labels) != -100], minlength=num_domains)


class DomainSums:
    """Losses and tokens of each domain, summed over micro-batches and, when they are asked for, over ranks.

    Args:
        domains: names.
        accelerator: sums over ranks.
        tokens: seen before, by domain.
    """

    def __init__(self, domains: Sequence[str], accelerator: Any, tokens: Mapping[str, int] | None = None) -> None:
        self._domains = domains
        self._accelerator = accelerator
        zeros = torch.zeros(3, len(domains), dtype=torch.float64, device=accelerator.device)
        self._sums, self._before = zeros[:2], zeros[2]
        if tokens:
            self._before += torch.tensor([tokens[domain] for domain in domains], device=accelerator.device)

    def add(self, stats: torch.Tensor) -> None:
        """Counts in the sum of losses and the number of tokens of each domain, (2, K)."""
        self._sums += stats

    def take_means(self) -> dict[str, float]:
        """Loss of a token since the last call: ``loss`` over all domains, ``loss/{domain}`` in each that has any."""
        sums = self._accelerator.reduce(self._sums, "sum")
        self._sums.zero_()
        self._before += sums[1]
        loss, count = sums.tolist()
        means = {f"loss/{d}": total / n for d, total, n in zip(self._domains, loss, count, strict=True) if n}
        return {"loss": sum(loss) / sum(count), **means} if sum(count) else means

    def tokens(self) -> dict[str, int]:
        """Tokens with a loss so far, by domain; every rank must ask."""
        tokens = self._before + self._accelerator.reduce(self._sums[1], "sum")
        return {domain: int(n) for domain, n in zip(self._domains, tokens.tolist(), strict=True)}
