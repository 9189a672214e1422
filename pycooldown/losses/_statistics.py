"""Sums of the losses by domain."""

from __future__ import annotations

from typing import NamedTuple

import torch


class DomainStats(NamedTuple):
    """Unweighted sums over the tokens of each domain, which an adaptive schedule reads.

    Attributes:
        loss_sum: (K,) float64, sum of the cross-entropy: label smoothing and class weights included; z-loss, domain and
            token weights not.
        token_count: (K,) int64, number of tokens that are not ignored.
        correct: (K,) int64, tokens whose target has the largest logit (ties count as correct).
    """

    loss_sum: torch.Tensor
    token_count: torch.Tensor
    correct: torch.Tensor


def sum_by_domain(values: torch.Tensor, domain_ids: torch.Tensor, num_domains: int) -> torch.Tensor:
    """Return the sum of the values (N,) of each domain, float64 (K,), the same bits every time.

    Args:
        values: (N,) numbers.
        domain_ids: (N,) int64, in [0, num_domains).
        num_domains: K.
    """
    sums = torch.zeros(num_domains, dtype=torch.float64, device=values.device)
    if values.is_cuda:  # index_add adds floats in no fixed order there; index_put sorts them by index first
        return sums.index_put((domain_ids,), values.double(), accumulate=True)
    return sums.index_add(0, domain_ids, values.double())


def domain_stats(
    loss: torch.Tensor,
    counted: torch.Tensor,
    correct: torch.Tensor,
    domain_ids: torch.Tensor | None,
    num_domains: int,
) -> DomainStats:
    """Return the sums of each domain, the same bits every time.

    Args:
        loss: (N,) plain losses, 0 where not counted.
        counted: (N,) bool.
        correct: (N,) bool, False where not counted.
        domain_ids: (N,) int64, or None if all rows are of domain 0.
        num_domains: K.
    """
    ids = torch.zeros_like(counted, dtype=torch.int64) if domain_ids is None else domain_ids
    zeros = torch.zeros(num_domains, dtype=torch.int64, device=loss.device)
    loss_sum = sum_by_domain(loss.detach(), ids, num_domains)
    return DomainStats(loss_sum, zeros.index_add(0, ids, counted.long()), zeros.index_add(0, ids, correct.long()))
