"""Streaming moments of long vectors: Welford's recurrence, random projection and bootstrap intervals."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from pycooldown._extras import require
from pycooldown.mixture import Vector

require("losses", "torch")

import torch  # noqa: E402

_CHUNK = 1 << 20  # coordinates that are hashed at once
_RESAMPLES = 2000


class Interval(NamedTuple):
    """An estimate and its 95 % bootstrap interval."""

    value: float
    low: float
    high: float


def bootstrap(statistic: Callable[..., Vector], *samples: npt.ArrayLike, seed: int = 0) -> Interval:
    """Return an estimate with its percentile bootstrap interval (Efron, 1979).

    Args:
        statistic: Maps one array (..., n) for each sample to an array (...), reducing the last axis.
        samples: Independent samples, each (n,); each is resampled by itself.
        seed: Seed of the resampling.
    """
    rng = np.random.default_rng(seed)
    arrays = [np.asarray(x, dtype=np.float64) for x in samples]
    resampled = statistic(*(rng.choice(x, size=(_RESAMPLES, len(x))) for x in arrays))
    low, high = np.quantile(resampled, [0.025, 0.975])
    return Interval(float(statistic(*arrays)), float(low), float(high))


class StreamingMoments:
    """Mean and trace of the covariance of vectors seen one at a time (Welford, 1962; Chan, Golub and LeVeque, 1979).

    It stores the mean and one number for each vector: Welford's increment n/(n+1) |x - mean_n|^2, the squared length of
    a Helmert contrast. The contrasts are uncorrelated, and the expectation of each squared length is the trace. So the
    interval of the trace is bootstrapped from them.
    """

    def __init__(self) -> None:
        self.count = 0
        self.mean: torch.Tensor | None = None
        self.contrasts: list[float] = []

    def update(self, x: torch.Tensor) -> None:
        """Add a vector (D,)."""
        other = StreamingMoments()
        other.count, other.mean = 1, x
        self.merge(other)

    def merge(self, other: StreamingMoments) -> None:
        """Add the vectors that another object has seen."""
        self.contrasts += other.contrasts
        if self.mean is None or other.mean is None:
            self.mean = self.mean if other.mean is None else other.mean.clone()
        else:
            difference = other.mean - self.mean
            share = other.count / (self.count + other.count)
            self.contrasts.append(
                self.count * share * float(torch.linalg.vector_norm(difference, dtype=torch.float64)) ** 2
            )
            self.mean.add_(difference, alpha=share)
        self.count += other.count

    @property
    def trace(self) -> float:
        """Unbiased estimate of the trace of the covariance; needs two vectors."""
        return float(np.mean(self.contrasts))


class CountSketch:
    """A random projection to ``size`` numbers that stores no matrix (Charikar, Chen and Farach-Colton, 2002).

    Each coordinate is added to a random bucket with a random sign. Inner products are unbiased over ``seed``, with
    variance at most 2 |x|^2 |y|^2 / size. Hashes are drawn anew each time, so memory is that of the result.
    """

    def __init__(self, size: int, seed: int = 0) -> None:
        if size < 1:
            raise ValueError(f"size = {size}; expected at least 1")
        self.size = size
        self.seed = seed

    def __call__(self, tensors: Sequence[torch.Tensor | None]) -> torch.Tensor:
        """Return the projection, (size,) float64 on the CPU; a tensor ``None`` counts as zeros."""
        total = torch.zeros(self.size, dtype=torch.float64)
        for index, tensor in enumerate(tensors):
            if tensor is None:
                continue
            sketch = torch.zeros(self.size, dtype=torch.float32, device=tensor.device)
            for part, chunk in enumerate(torch.split(tensor.detach().reshape(-1), _CHUNK)):
                seed = np.random.SeedSequence([self.seed, index, part]).generate_state(1, np.uint64)[0]
                generator = torch.Generator(tensor.device).manual_seed(int(seed))
                draw = torch.randint(2 * self.size, chunk.shape, generator=generator, device=tensor.device)
                values = chunk.float() * (1 - 2 * (draw & 1))
                # `index_put_` sorts on GPUs and so adds in a fixed order; `index_add_` does not.
                if tensor.is_cuda:
                    sketch.index_put_((draw >> 1,), values, accumulate=True)
                else:
                    sketch.index_add_(0, draw >> 1, values)
            total += sketch.cpu()
        return total
