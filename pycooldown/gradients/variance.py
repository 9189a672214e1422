"""Measure the variance of minibatch gradients, to compare it with the prediction of `pycooldown.gradients.theory`.

The gradient measured is that of (1/B) sum_b v_{d(b)} loss(x_b): losses are averaged over *samples*. A loss that is
averaged over the tokens of a batch is a ratio, whose variance the closed forms do not describe.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from pycooldown.gradients import theory
from pycooldown.gradients.moments import CountSketch, Interval, StreamingMoments, bootstrap
from pycooldown.mixture import Mixture, Vector
from pycooldown.sampling.batches import BatchPlan
from pycooldown.sampling.sampler import AllocationName, DomainBatchSampler
from pycooldown.schedules import constant

Loss = Callable[[Any, list[Any]], torch.Tensor]
Vectorize = Callable[[Sequence[torch.Tensor | None]], torch.Tensor]


@dataclass(frozen=True)
class DomainMoments:
    """Moments of the per-sample gradient in each of K domains.

    Attributes:
        domains: K names.
        covariance_traces: (K,) float64, tr Sigma_i, unbiased.
        mean_products: (K, K) float64, mu_i . mu_j, unbiased also on the diagonal.
        means: (K, D) mu_i, or their sketches.
        contrasts: For each domain, independent unbiased estimates of tr Sigma_i, which average to it.
        num_samples: Samples of each domain that were used.
        seconds: Wall-clock time of the measurement.
    """

    domains: tuple[str, ...]
    covariance_traces: Vector
    mean_products: npt.NDArray[np.float64]
    means: npt.NDArray[np.float64]
    contrasts: tuple[Vector, ...]
    num_samples: int
    seconds: float

    @property
    def second_moments(self) -> Vector:
        """(K,), M_i = tr Sigma_i + |mu_i|^2."""
        return np.asarray(self.covariance_traces + np.diag(self.mean_products))

    def predict(self, mixture: Mixture, batch_size: int, allocation: Any = "multinomial") -> Interval:
        """Return `theory.gradient_variance` of batches that do not repeat samples.

        The interval is that of the tr Sigma_i; the error of the mean products is smaller by about num_samples / B.
        """
        raw = self.mean_products + np.diag(self.covariance_traces / self.num_samples)

        def variance(products: npt.NDArray[np.float64], traces: Vector) -> float:
            return theory.variance_from_products(mixture, products, traces, batch_size, allocation, replacement=False)

        rest = variance(raw, np.zeros(len(self.domains)))
        slopes = [variance(np.diag(-unit / self.num_samples), unit) for unit in np.eye(len(self.domains))]
        return bootstrap(lambda *c: rest + sum(s * x.mean(-1) for s, x in zip(slopes, c)), *self.contrasts)


@dataclass(frozen=True)
class MixtureVariance:
    """Variance of the minibatch gradient of one mixture and allocation.

    Attributes:
        name: The name of the mixture.
        mixture: The mixture.
        allocation: How batches were allocated to domains.
        predicted: Trace of the covariance of the gradient by the closed form.
        trace: The same trace, measured.
        norm_variance: Variance of the gradient's Euclidean norm (Li et al., NAACL 2025, figure 3), exact norms.
        contrasts: Estimates of the trace that average to it.
        norms: Norms of the gradients measured.
        seconds: Wall-clock time of the measurement.
    """

    name: str
    mixture: Mixture
    allocation: str
    predicted: Interval
    trace: Interval
    norm_variance: Interval
    contrasts: Vector = field(repr=False)
    norms: Vector = field(repr=False)
    seconds: float


def domain_moments(
    model: torch.nn.Module,
    loss: Loss,
    dataset: Any,
    mixture: Mixture,
    *,
    group_size: int = 8,
    num_groups: int = 32,
    projection: int | None = 4096,
    seed: int = 0,
) -> DomainMoments:
    """Measure mean and covariance trace of the gradient in each domain.

    Gradients of groups of samples drawn from one domain are measured, with replacement: the covariance of a group's
    mean is that of a sample divided by ``group_size``. Costs num_groups * group_size samples for each domain, forward
    and backward, and memory for K vectors.

    Args:
        model: The model, which is not changed; its mode decides whether dropout adds to the variance.
        loss: ``loss(model, samples)`` gives one loss for each of a list of samples, (n,).
        dataset: Map-style dataset of the domains laid end to end.
        mixture: A mixture that names the domains and their sizes.
        group_size: Samples whose gradients are averaged; 1 for per-sample gradients.
        num_groups: Groups for each domain, >= 2.
        projection: Size of the `CountSketch` the gradients are reduced to (relative error of a trace at most
            sqrt(2 / size)); ``None`` to keep all coordinates.
        seed: Seed of the choice of samples and of the projection.

    Raises:
        ValueError: If there are too few groups or samples, or the mixture has other sizes than the dataset.
    """
    if num_groups < 2 or group_size < 1:
        raise ValueError(
            f"num_groups = {num_groups}, group_size = {group_size}; expected at least 2 groups of 1 sample"
        )
    _check_length(dataset, mixture)
    start = time.perf_counter()
    rng = np.random.default_rng(seed)
    vectorize = _vectorize(projection, seed)
    first = np.concatenate([[0], np.cumsum(mixture.sizes)[:-1]])
    streams = []
    for begin, size in zip(first, mixture.sizes, strict=True):
        streams.append(StreamingMoments())
        for _ in range(num_groups):
            samples = _fetch(dataset, begin + rng.integers(size, size=group_size))
            streams[-1].update(vectorize(_gradient(model, _per_sample(loss, model, samples).mean())))
    contrasts = tuple(group_size * np.array(s.contrasts) for s in streams)
    means = torch.stack([s.mean for s in streams if s.mean is not None]).double().numpy()
    traces = np.array([c.mean() for c in contrasts])
    n = num_groups * group_size
    products = means @ means.T - np.diag(traces / n)
    return DomainMoments(mixture.domains, traces, products, means, contrasts, n, time.perf_counter() - start)


def measure(
    model: torch.nn.Module,
    loss: Loss,
    dataset: Any,
    mixtures: Mapping[str, Mixture],
    *,
    batch_size: int,
    num_batches: int = 64,
    allocations: Iterable[AllocationName] = ("multinomial",),
    moments: DomainMoments | None = None,
    projection: int | None = 4096,
    seed: int = 0,
) -> list[MixtureVariance]:
    """Measure the variance of the minibatch gradient at the model's parameters, for mixtures over the same domains.

    Args:
        model: The model, which is not changed; its mode decides whether dropout adds to the variance.
        loss: ``loss(model, samples)`` gives one loss for each of a list of samples, (n,).
        dataset: Map-style dataset of the domains laid end to end.
        mixtures: Mixtures by name.
        batch_size: Batch size B in samples.
        num_batches: Batches for each mixture and allocation, >= 2.
        allocations: As `DomainBatchSampler` takes them. Of "quota", whose counts follow from the step, the first
            ``num_batches`` steps are measured. Batches of two allocations differ in few samples; see `trace_ratio`.
        moments: Result of `domain_moments`, which is called if this is ``None``.
        projection: See `domain_moments`.
        seed: Seed of the batches and of the projection.

    Returns:
        One result for each mixture and allocation.

    Raises:
        ValueError: If an argument is out of its range, or a mixture has other domains than ``moments`` or other sizes
            than the dataset.
    """
    if num_batches < 2:
        raise ValueError(f"num_batches = {num_batches}; expected at least 2, to have a variance")
    if not mixtures:
        raise ValueError("mixtures is empty; expected at least one")
    if moments is None:
        moments = domain_moments(model, loss, dataset, next(iter(mixtures.values())), projection=projection, seed=seed)
    vectorize = _vectorize(projection, seed)
    results = []
    for name, mixture in mixtures.items():
        if mixture.domains != moments.domains:
            raise ValueError(f"mixture {name!r} has other domains than moments; expected {list(moments.domains)}")
        _check_length(dataset, mixture)
        for allocation in allocations:
            start = time.perf_counter()
            stream, norms = StreamingMoments(), []
            plans = _independent_plans(mixture, batch_size, allocation, num_batches, seed)
            for plan in plans:
                losses = _per_sample(loss, model, _fetch(dataset, plan.indices))
                weights = torch.as_tensor(
                    mixture.loss_weights[plan.domain_ids], dtype=losses.dtype, device=losses.device
                )
                gradient = _gradient(model, (weights * losses).mean())
                norms.append(
                    float(torch.linalg.vector_norm(torch.stack([g.norm() for g in gradient if g is not None])))
                )
                stream.update(vectorize(gradient))
            results.append(
                MixtureVariance(
                    name,
                    mixture,
                    allocation,
                    moments.predict(
                        mixture, batch_size, _planned(plans, mixture) if allocation == "quota" else allocation
                    ),
                    bootstrap(lambda x: x.mean(-1), stream.contrasts),
                    bootstrap(lambda x: x.var(-1, ddof=1), norms),
                    np.array(stream.contrasts),
                    np.array(norms),
                    time.perf_counter() - start,
                )
            )
    return results


def trace_ratio(contrasts: npt.ArrayLike, over: npt.ArrayLike) -> Interval:
    """Return the measured trace of one result of `measure` over that of another, from their ``contrasts``.

    The k-th batches of one call share a seed, and so most of their samples where only the allocation differs.
    Resampling them together makes the interval of such a ratio much shorter than those of the traces.
    """
    a, b = np.asarray(contrasts, dtype=np.float64), np.asarray(over, dtype=np.float64)

    def ratio(chosen: Vector) -> Vector:
        pairs = chosen.astype(np.int64)
        return np.asarray(a[pairs].mean(-1) / b[pairs].mean(-1))

    return bootstrap(ratio, np.arange(len(a)))


def _independent_plans(
    mixture: Mixture, batch_size: int, allocation: AllocationName, count: int, seed: int
) -> list[BatchPlan]:
    """Plan each batch with its own sampler, because the batches of one sampler share epochs."""
    samplers = (
        DomainBatchSampler(constant(mixture), batch_size=batch_size, seed=(seed << 32) + batch, allocation=allocation)
        for batch in range(count)
    )
    return [sampler.plan(batch if allocation == "quota" else 0) for batch, sampler in enumerate(samplers)]


def _planned(plans: Sequence[BatchPlan], mixture: Mixture) -> npt.NDArray[np.int64]:
    return np.stack([np.bincount(plan.domain_ids, minlength=mixture.num_domains) for plan in plans])


def _vectorize(projection: int | None, seed: int) -> Vectorize:
    return _concatenate if projection is None else CountSketch(projection, seed)


def _concatenate(tensors: Sequence[torch.Tensor | None]) -> torch.Tensor:
    return torch.cat([t.detach().reshape(-1).float() for t in tensors if t is not None])


def _gradient(model: torch.nn.Module, loss: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    return torch.autograd.grad(loss, [p for p in model.parameters() if p.requires_grad], allow_unused=True)


def _per_sample(loss: Loss, model: torch.nn.Module, samples: list[Any]) -> torch.Tensor:
    losses = loss(model, samples)
    if losses.shape != (len(samples),):
        raise ValueError(
            f"loss returned shape {tuple(losses.shape)} for {len(samples)} samples; expected one loss for each sample: "
            "use reduction='none' and average over the tokens of a sample"
        )
    return losses


def _check_length(dataset: Any, mixture: Mixture) -> None:
    if len(dataset) != mixture.sizes.sum():
        raise ValueError(
            f"dataset has {len(dataset)} samples, but the mixture's sizes add up to {mixture.sizes.sum()}; expected "
            "the mixture's domains laid end to end"
        )


def _fetch(dataset: Any, indices: Iterable[int]) -> list[Any]:
    chosen = [int(i) for i in indices]
    if hasattr(dataset, "__getitems__"):
        return list(dataset.__getitems__(chosen))
    return [dataset[i] for i in chosen]
