"""Losses and tokens of each domain, since the last call of `take` and since the start of the run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from pycooldown.mixture import Vector


@dataclass(frozen=True)
class Window:
    """Sums over ranks and micro-batches since the previous window.

    Attributes:
        loss: (K,) sum of the losses of tokens, in nats.
        tokens: (K,) tokens with a loss.
        weighted: (K,) tokens with a loss, each times its loss weight.
    """

    loss: Vector
    tokens: Vector
    weighted: Vector

    @property
    def means(self) -> Vector:
        """Mean loss per token, (K,); NaN for a domain without tokens."""
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.where(self.tokens > 0, self.loss / self.tokens, np.nan)

    @property
    def mean(self) -> float | None:
        """Mean loss per token over all domains."""
        return float(self.loss.sum() / self.tokens.sum()) if self.tokens.any() else None

    @property
    def shares(self) -> Vector:
        """Share of each domain in the objective, (K,), by tokens and weights; 0 if there are no tokens."""
        return self.weighted / (self.weighted.sum() or 1.0)


class DomainSums:
    """Losses and tokens of each domain, summed over micro-batches and, on request, over ranks.

    Args:
        domains: Names of the domains.
        accelerator: Sums over ranks; an `accelerate.Accelerator`, or `DataParallelRanks` for part of the ranks.
        tokens: Tokens seen before, by domain.
    """

    def __init__(self, domains: Sequence[str], accelerator: Any, tokens: Mapping[str, int] | None = None) -> None:
        self._domains = domains
        self._accelerator = accelerator
        self._sums = torch.zeros(3, len(domains), dtype=torch.float64, device=accelerator.device)
        self._before = torch.zeros_like(self._sums[0])
        # The step at which a domain's loss was first not finite. It is recorded without waiting for the device.
        self._bad_step = torch.full((len(domains),), -1, dtype=torch.int64, device=accelerator.device)
        if tokens:
            self._before += torch.tensor([tokens[domain] for domain in domains], device=accelerator.device)

    def add(self, stats: torch.Tensor, weights: torch.Tensor | None = None, *, step: int = 0) -> None:
        """Add the sums of losses and numbers of tokens by domain, (2, K), and the weights (K,) in force."""
        self._sums[:2] += stats
        self._sums[2] += stats[1] if weights is None else stats[1] * weights
        first = ~stats[0].isfinite() & (self._bad_step < 0)
        self._bad_step.masked_fill_(first, step)

    def take(self) -> Window:
        """Return the sums since the last call; every rank must call this."""
        sums = self._accelerator.reduce(self._sums, "sum")
        self._sums.zero_()
        self._before += sums[1]
        return Window(*sums.cpu().numpy())

    @property
    def taken(self) -> Vector:
        """Tokens of each domain up to the last call of `take`, (K,)."""
        total: Vector = self._before.cpu().numpy()
        return total

    def tokens(self) -> dict[str, int]:
        """Return the number of tokens with a loss so far, by domain; every rank must call this."""
        tokens = self._before + self._accelerator.reduce(self._sums[1], "sum")
        return {domain: int(n) for domain, n in zip(self._domains, tokens.tolist(), strict=True)}

    def check_finite(self) -> None:
        """Raise FloatingPointError, naming step and domains, if a loss was not finite; every rank must call this."""
        steps = self._accelerator.gather(self._bad_step).reshape(-1, len(self._domains)).cpu().numpy()
        if not (steps >= 0).any():
            return
        first = int(steps[steps >= 0].min())
        names = [repr(self._domains[i]) for i in np.flatnonzero((steps == first).any(axis=0)).tolist()]
        shown = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
        raise FloatingPointError(
            f"the loss of {shown} was not finite at step {first}: lower the learning rate, inspect the samples of that "
            "step with trainer.sampler.plan(step), or continue anyway with allow_non_finite_loss=True (in a recipe: "
            "training.allow_non_finite=true)"
        )
