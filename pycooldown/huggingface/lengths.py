"""Mixtures of tokens instead of samples: weights that compensate for different lengths of the domains' samples.

Let a step draw B samples, domain i with probability q_i. Let l_i be the mean number of tokens with a loss in a sample
of domain i. In a sum of token losses with weights v_i = target_i / q_i, domain i has B target_i l_i tokens' weight on
average, so longer domains weigh more than the target says. With the weights

    w_i = v_i * (l / l_i),    l = sum_j q_j l_j,

and the divisor B l, the expected objective is exactly sum_i target_i * (mean loss of a token of domain i), for any
lengths. B l is the expected number of tokens of the step. Dividing by the realised number would make the objective a
ratio of two random numbers, which is biased. If all samples have one length, both are the same.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from pycooldown.huggingface.batches import WithDomains
from pycooldown.mixture import Mixture, Vector

# Samples read per domain to measure its mean length; smaller domains are read completely.
MEASURED = 256
_CHUNK = 32


def token_weights(mixture: Mixture, lengths: Vector) -> tuple[Vector, float]:
    """Return the weights w (K,) of token losses, and l, the expected number of tokens in a sample of the mixture.

    Args:
        mixture: Its target and sampling are used.
        lengths: (K,) mean tokens of a sample of each domain.
    """
    mean = float((mixture.sampling * lengths).sum())
    return mixture.loss_weights * mean / lengths, mean


def measure_lengths(
    dataset: WithDomains,
    mixture: Mixture,
    collate: Callable[[list[Any]], dict[str, Any]],
    targets: Callable[[dict[str, Any]], torch.Tensor],
) -> Vector:
    """Return the mean number of tokens with a loss in a sample of each domain, (K,).

    The mean is measured on samples that are spread evenly over the domain.

    Args:
        dataset: The domains, end to end.
        mixture: Gives the domains' sizes.
        collate: Makes ``labels`` from samples.
        targets: Returns the labels to be predicted for these inputs, -100 where there is none.

    Raises:
        ValueError: If the samples of a domain have no token with a loss.
    """
    lengths, begin = np.zeros(mixture.num_domains), 0
    for i, size in enumerate(mixture.sizes.tolist()):
        chosen = begin + np.unique(np.linspace(0, size - 1, min(size, MEASURED)).astype(np.int64))
        for part in np.array_split(chosen, -(-len(chosen) // _CHUNK)):
            lengths[i] += int((targets(collate(dataset.__getitems__(part.tolist()))) != -100).sum())
        lengths[i] /= len(chosen)
        begin += size
    return check_lengths(lengths, mixture)


def given_lengths(tokens_per_sample: Mapping[str, float], mixture: Mixture) -> Vector:
    """Return the lengths (K,) given by the user.

    Raises:
        ValueError: If their domains are not those of the mixture.
    """
    if differ := sorted(set(tokens_per_sample) ^ set(mixture.domains)):
        raise ValueError(
            f"tokens_per_sample: domain {differ[0]!r} is only in one of tokens_per_sample and the mixture; expected a "
            "number per domain"
        )
    return check_lengths(np.array([tokens_per_sample[domain] for domain in mixture.domains], np.float64), mixture)


def check_lengths(lengths: Vector, mixture: Mixture) -> Vector:
    """Return lengths (K,), or raise ValueError if one of them is not a finite number > 0."""
    if (bad := ~((lengths > 0) & np.isfinite(lengths))).any():
        i = int(bad.argmax())
        raise ValueError(
            f"samples of domain {mixture.domains[i]!r} have {lengths[i]:g} tokens with a loss on average; expected a "
            "number > 0"
        )
    return lengths
