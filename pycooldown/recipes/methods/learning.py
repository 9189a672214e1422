"""The methods that learn their mixture during training, each as a recipe's options."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any, Literal

from pydantic.dataclasses import dataclass

from pycooldown import adaptive
from pycooldown.mixture import Mixture
from pycooldown.recipes.fields import (
    CONFIG,
    Count,
    Finite,
    FinitePositive,
    Flag,
    Natural,
    NonNegative,
    Positive,
    ProperShare,
    Share,
    Text,
)
from pycooldown.recipes.methods.base import MethodOptions, register
from pycooldown.sampling.sampler import AllocationName
from pycooldown.schedules import Schedule

if TYPE_CHECKING:
    from pycooldown.huggingface.batches import Collator, Samples
    from pycooldown.huggingface.probe import Probe


@dataclass(frozen=True, config=CONFIG)
class LearningOptions(MethodOptions):
    """The base of methods whose schedule is a `pycooldown.adaptive.LearnedSchedule`."""

    def learned(self, schedule: Any) -> dict[str, dict[str, float]]:
        """Return target and sampling at the end of a run."""
        mixture = schedule.current
        return {"target": by_name(mixture, "target"), "sampling": by_name(mixture, "sampling")}


@register("group_dro")
class GroupDROOptions(LearningOptions):
    """Loss weights that are larger for the domains with the highest losses. See `pycooldown.adaptive.GroupDRO`."""

    tau: Positive = math.inf
    """The temperature of the draws."""
    step_size: FinitePositive = 0.01
    """Step size of the exponentiated gradient."""
    smoothing: Share = 0.0
    """Share of the uniform distribution in the target."""
    adjustment: Finite | None = None
    """Adjustment C of the losses by C / sqrt(size); see `pycooldown.adaptive.GroupDRO` for it and the following."""
    normalize_losses: Flag | None = None
    """Divide the losses by their sum."""
    worst: Share | None = None
    """Share of the data in the worst domains that the target is put on."""
    decay: Share | None = None
    """Decay rate of the moving average of the losses."""
    least: Share | None = None
    """Least target of a domain."""
    delay: Count = 4
    """Steps from a statistic to the mixture that it decides."""

    def schedule(self, sizes: Mapping[str, int], num_steps: int, batch_size: int) -> Schedule:
        """Return a learning schedule. Options that are ``None`` take the schedule's default."""
        options = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "tau"}
        given: dict[str, Any] = {name: value for name, value in options.items() if value is not None}
        return adaptive.GroupDRO(Mixture.temperature_sampling(sizes, self.tau), **given)


@register("odm")
class OnlineDataMixingOptions(LearningOptions):
    """Sampling by loss, with the bandit algorithm Exp3. See `pycooldown.adaptive.OnlineDataMixing`."""

    reward_scale: FinitePositive | None = None
    """The loss that counts as a reward of 1; by default that of `pycooldown.adaptive.OnlineDataMixing`."""
    momentum: Share | None = None
    """Share of the old reward in a moving average; none by default."""
    warmup: Natural = 0
    """Steps before the mixture changes."""
    delay: Count = 4
    """Steps from a statistic to the mixture that it decides."""

    def schedule(self, sizes: Mapping[str, int], num_steps: int, batch_size: int) -> Schedule:
        """Return a learning schedule."""
        start = Mixture.temperature_sampling(sizes, math.inf)
        return adaptive.OnlineDataMixing(
            start, reward_scale=self.reward_scale, momentum=self.momentum, warmup=self.warmup, delay=self.delay
        )


@dataclass(frozen=True, config=CONFIG)
class ProbingOptions(LearningOptions):
    """The base of methods that learn from examples kept out of training."""

    tau: Positive = 5.0
    """Temperature of the importances, and of the draws at the start."""
    interval: Count = 20
    """Steps between two probes."""
    hold_out: ProperShare = 0.05
    """Share of each domain's training samples that is kept for probes, at least two samples."""
    probe_size: Count = 8
    """Examples of each domain in a probe."""
    probe_parameters: Text | None = None
    """Regular expression of the parameters whose gradients are formed; all by default."""
    probe_directions: Count | None = None
    """Random directions to project the gradients on, instead of forming them."""
    allocation: AllocationName | None = None
    """Allocation of the batches, on which the best sampling depends; by default that of the section "training"."""
    delay: Count = 4
    """Steps from a probe to the mixture that it decides."""

    def with_allocation(self, allocation: AllocationName) -> ProbingOptions:
        """Return the method, adapted to batches with this allocation, unless its options name an allocation."""
        return self if self.allocation is not None else replace(self, allocation=allocation)

    def held_out(self, size: int) -> int:
        """Return how many samples of a domain of this size are kept out of training."""
        return max(2, round(self.hold_out * size))

    def probe(self, held_out: Mapping[str, Samples], collate: Collator, seed: int) -> Probe:
        """Return a probe that measures losses and gradients of single examples."""
        from pycooldown.huggingface.probe import Probe

        return Probe(
            held_out,
            tuple(held_out),
            collate,
            size=self.probe_size,
            parameters=self.probe_parameters or "",
            directions=self.probe_directions or 0,
            seed=seed,
        )

    def _start(self, sizes: Mapping[str, int]) -> Mixture:
        return Mixture.temperature_sampling(sizes, self.tau)

    def _options(self) -> dict[str, Any]:
        return {"interval": self.interval, "delay": self.delay}

    def _variance_aware(self, objective: Mixture | adaptive.LearnedSchedule, batch_size: int) -> Schedule:
        domains = (objective if isinstance(objective, Mixture) else objective.start).num_domains
        least = min(1 / batch_size, 1 / domains)
        allocation = self.allocation or "multinomial"  # the samplers' default
        return adaptive.VarianceAware(objective, allocation=allocation, least=least, **self._options())


@register("ado")
class ADOOptions(LearningOptions):
    """Sampling by the predicted decrease of each domain's loss. See `pycooldown.adaptive.ADO`."""

    tau: Positive = 1.0
    """The temperature of the prior."""
    warmup: Natural = 1000
    """Steps whose losses are not fitted."""
    interval: Count = 1000
    """Steps between two fits, and from the warm-up to the first one."""
    least: FinitePositive = 0.01
    """Floor of a domain's preference, at most 1 / (number of domains)."""
    shared_count: Flag = False
    """Count the tokens of all domains, as the public code does by default, in place of the domain's own."""
    delay: Count = 4
    """Steps from a statistic to the mixture that it decides."""

    def schedule(self, sizes: Mapping[str, int], num_steps: int, batch_size: int) -> Schedule:
        """Return a learning schedule."""
        options: dict[str, Any] = {field.name: getattr(self, field.name) for field in fields(self)}
        return adaptive.ADO(Mixture.temperature_sampling(sizes, options.pop("tau")), **options)


@register("fgls")
class FGLSOptions(ProbingOptions):
    """Loss weights by the inverse of the domain's held-out error. See `pycooldown.adaptive.FGLS`."""

    decay: Share = 0.8
    """Decay rate of the moving average of the errors."""
    warmup: Natural = 0
    """Steps before the weights change."""
    variance_aware: Flag = False
    """Learn the sampling too, as the method "variance_aware" does."""

    def schedule(self, sizes: Mapping[str, int], num_steps: int, batch_size: int) -> Schedule:
        """Return a learning schedule."""
        weights = adaptive.FGLS(self._start(sizes), decay=self.decay, warmup=self.warmup, **self._options())
        return self._variance_aware(weights, batch_size) if self.variance_aware else weights


@register("erma")
class ERMAOptions(ProbingOptions):
    """Loss weights that are smaller for domains with varied losses. See `pycooldown.adaptive.ERMA`."""

    bias_rate: NonNegative = 0.002
    """Step size of the term in the means of the losses."""
    variance_rate: NonNegative = 0.02
    """Step size of the term in their variances."""
    normalization: Literal["projected", "printed"] = "projected"
    """How the weights are normalised; see `pycooldown.adaptive.ERMA`."""
    variance_aware: Flag = False
    """Learn the sampling too, as the method "variance_aware" does."""

    def schedule(self, sizes: Mapping[str, int], num_steps: int, batch_size: int) -> Schedule:
        """Return a learning schedule."""
        weights = adaptive.ERMA(
            self._start(sizes),
            bias_rate=self.bias_rate,
            variance_rate=self.variance_rate,
            normalization=self.normalization,
            **self._options(),
        )
        return self._variance_aware(weights, batch_size) if self.variance_aware else weights


@register("variance_aware")
class VarianceAwareOptions(ProbingOptions):
    """Sampling by the variance of each domain's gradients. See `pycooldown.adaptive.VarianceAware`."""

    def schedule(self, sizes: Mapping[str, int], num_steps: int, batch_size: int) -> Schedule:
        """Return a learning schedule."""
        return self._variance_aware(self._start(sizes), batch_size)


@register("pike")
class PiKEOptions(ProbingOptions):
    """Sampling by length and variance of each domain's gradients. See `pycooldown.adaptive.PiKE`."""

    tau: Positive = math.inf
    """Temperature of the draws at the start."""
    gradient_rate: Finite = 0.002
    """Rate of the squared length of a domain's mean gradient; to be tuned, as is the next one."""
    variance_rate: Finite = 0.002
    """Rate of the variance of its gradients."""

    def schedule(self, sizes: Mapping[str, int], num_steps: int, batch_size: int) -> Schedule:
        """Return a learning schedule."""
        options = {**self._options(), "gradient_rate": self.gradient_rate, "variance_rate": self.variance_rate}
        return adaptive.PiKE(self._start(sizes), batch_size=batch_size, least=min(1e-3, 1 / len(sizes)), **options)


def by_name(mixture: Mixture, vector: str) -> dict[str, float]:
    """Return a mixture's "target" or "sampling" by domain."""
    return dict(zip(mixture.domains, getattr(mixture, vector).tolist(), strict=True))
