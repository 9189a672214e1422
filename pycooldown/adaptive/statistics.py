"""The statistics that the methods learn from: sums over the domains of one step."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from pycooldown.mixture import Vector

_NOT_NEGATIVE = ("token_count", "probe_loss_variance", "probe_gradient_variance", "probe_gradient_second_moment")


class DomainStatsLike(Protocol):
    """The statistics that every update reads: K values in the order of the schedule's domains, arrays or CPU tensors.

    `pycooldown.losses.cross_entropy` with ``return_stats=True`` gives these two. Some methods read more: `Statistics`.
    """

    @property
    def loss_sum(self) -> npt.ArrayLike:
        """Sum of the unweighted losses of each domain in the global batch."""
        ...

    @property
    def token_count(self) -> npt.ArrayLike:
        """Number of losses in each sum; 0 for a domain that is absent from the batch."""
        ...


@dataclass(frozen=True)
class Statistics:
    """Statistics of one step, summed over micro-batches and ranks.

    Attributes:
        loss_sum: (K,) Sum of the unweighted losses of each domain in the global batch, in nats.
        token_count: (K,) Number of losses in each sum; 0 for a domain that is absent from the batch.
        excess_loss_sum: (K,) Sum of max(loss - reference loss, 0) over the same tokens, in nats.
        probe_loss: (K,) Mean loss of the examples of a probe batch.
        probe_loss_variance: (K,) Variance of the loss over those examples, at least two of each domain.
        probe_gradient_variance: (K,) Trace of the covariance of their gradients, or of a random projection of them.
        probe_gradient_second_moment: (K,) Mean squared length of these gradients: the trace plus the squared length of
            their mean.
    """

    loss_sum: npt.ArrayLike
    token_count: npt.ArrayLike
    excess_loss_sum: npt.ArrayLike | None = None
    probe_loss: npt.ArrayLike | None = None
    probe_loss_variance: npt.ArrayLike | None = None
    probe_gradient_variance: npt.ArrayLike | None = None
    probe_gradient_second_moment: npt.ArrayLike | None = None


def read_statistics(
    stats: DomainStatsLike, names: Iterable[str], domains: Sequence[str], step: int
) -> dict[str, Vector]:
    """Return the named statistics as float64 vectors.

    Raises:
        ValueError: If one is missing or misshapen, or has no finite value for a domain that has data.
    """
    read: dict[str, Vector] = {}
    for name in ("token_count", "loss_sum", *sorted(names)):
        value = getattr(stats, name, None)
        if value is None:
            raise ValueError(f"the statistics of step {step} lack {name!r}, which this method learns from")
        vector = np.array(value, dtype=np.float64)
        if vector.shape != (len(domains),):
            raise ValueError(f"{name} has shape {vector.shape}; expected one value for each of {len(domains)} domains")
        expected = read["token_count"] > 0 if name in ("loss_sum", "excess_loss_sum") else np.ones(len(domains), bool)
        if (bad := expected & ~np.isfinite(vector)).any():
            i = int(bad.argmax())
            hint = ": a probe needs at least two examples of each domain" if name.startswith("probe") else ""
            raise ValueError(f"{name} of domain {domains[i]!r} is {vector[i]} at step {step}{hint}; nothing is learned")
        if name in _NOT_NEGATIVE and (vector < 0).any():
            raise ValueError(f"{name} of domain {domains[int(vector.argmin())]!r} is {vector.min()}; expected >= 0")
        read[name] = vector
    return read
