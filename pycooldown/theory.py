"""Closed forms of the variance of minibatch gradients under a mixture."""

from __future__ import annotations

from pycooldown.mixture import Mixture


def variance_inflation(mixture: Mixture) -> float:
    """F = sum_i q_i v_i^2: how much loss weights inflate the second moment of gradients of equal size.

    1 for temperature sampling, 1 + chi^2(p(tau) || p(1)) for scalarization (Li et al., NAACL 2025, Lemma 2.1). The
    effective size of a batch of B samples is B / F.
    """
    return float((mixture.sampling * mixture.loss_weights**2).sum())
