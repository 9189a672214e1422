"""The methods that learn their mixture during training, each as a recipe's options."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pydantic.dataclasses import dataclass

from pycooldown import adaptive
from pycooldown.mixture import Mixture
from pycooldown.recipes.fields import (
    CONFIG,
    Count,
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
    """Losses of the worst domains weigh more. See `pycooldown.adaptive.GroupDRO`."""

    tau: Positive = math.inf
    """The temperature of the draws."""
    step_size: FinitePositive = 0.01
    """Step size of the exponentiated gradient."""
    smoothing: Share = 0.0
    """Share of the uniform distribution in the target."""
    delay: Count = 4
    """Steps from a statistic to the mixture that it decides."""

    def schedule(self, sizes: Mapping[str, int], num_steps: int, batch_size: int) -> Schedule:
        """Return a learning schedule."""
        start = Mixture.temperature_sampling(sizes, self.tau)
        return adaptive.GroupDRO(start, step_size=self.step_size, smoothing=self.smoothing, delay=self.delay)


@register("odm")
class OnlineDataMixingOptions(LearningOptions):
    """The bandit Exp3 draws domains by their loss. See `pycooldown.adaptive.OnlineDataMixing`."""

    reward_scale: FinitePositive = 10.0
    """The loss that counts as a reward of 1."""
    momentum: Share | None = None
    """Share of the old reward in a moving average; none by default."""
    delay: Count = 4
    """Steps from a statistic to the mixture that it decides."""

    def schedule(self, sizes: Mapping[str, int], num_steps: int, batch_size: int) -> Schedule:
        """Return a learning schedule."""
        start = Mixture.temperature_sampling(sizes, math.inf)
        return adaptive.OnlineDataMixing(
            start, reward_scale=self.reward_scale, momentum=self.momentum, delay=self.delay
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
    delay: Count = 4
    """Steps from a probe to the mixture that it decides."""

    def held_out(self, size: int) -> int:
        """Return how many samples of a domain of this size are kept out of training."""
        return max(2, round(self.hold_out * size))

    def probe(self, held_out: Mapping[str, Samples], collate: Collator, seed: int) -> Probe:
        """Return what measures losses and gradients of single examples."""
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


@register("fgls")
class FGLSOptions(ProbingOptions):
    """Losses weigh by the inverse of the domain's held-out error. See `pycooldown.adaptive.FGLS`."""

    decay: Share = 0.8
    """Decay rate of the moving average of the errors."""
    warmup: Natural = 0
    """Steps before the weights change."""
    variance_aware: Flag = False
    """Learn the sampling too, as the method "variance_aware" does."""

    def schedule(self, sizes: Mapping[str, int], num_steps: int, batch_size: int) -> Schedule:
        """Return a learning schedule."""
        weights = adaptive.FGLS(self._start(sizes), decay=self.decay, warmup=self.warmup, **self._options())
        return _variance_aware(weights, batch_size, self._options()) if self.variance_aware else weights


@register("erma")
class ERMAOptions(ProbingOptions):
    """Losses of domains with varied losses weigh less. See `pycooldown.adaptive.ERMA`."""

    bias_rate: NonNegative = 0.002
    """Step size of the term in the means of the losses."""
    variance_rate: NonNegative = 0.02
    """Step size of the term in their variances."""
    variance_aware: Flag = False
    """Learn the sampling too, as the method "variance_aware" does."""

    def schedule(self, sizes: Mapping[str, int], num_steps: int, batch_size: int) -> Schedule:
        """Return a learning schedule."""
        rates: dict[str, Any] = {"bias_rate": self.bias_rate, "variance_rate": self.variance_rate}
        weights = adaptive.ERMA(self._start(sizes), **rates, **self._options())
        return _variance_aware(weights, batch_size, self._options()) if self.variance_aware else weights


@register("variance_aware")
class VarianceAwareOptions(ProbingOptions):
    """Domains are drawn by the variance of their gradients. See `pycooldown.adaptive.VarianceAware`."""

    def schedule(self, sizes: Mapping[str, int], num_steps: int, batch_size: int) -> Schedule:
        """Return a learning schedule."""
        return _variance_aware(self._start(sizes), batch_size, self._options())


def by_name(mixture: Mixture, vector: str) -> dict[str, float]:
    """Return a mixture's "target" or "sampling" by domain."""
    return dict(zip(mixture.domains, getattr(mixture, vector).tolist(), strict=True))


def _variance_aware(
    objective: Mixture | adaptive.LearnedSchedule, batch_size: int, options: dict[str, Any]
) -> adaptive.VarianceAware:
    domains = (objective if isinstance(objective, Mixture) else objective.start).num_domains
    return adaptive.VarianceAware(objective, least=min(1 / batch_size, 1 / domains), **options)
