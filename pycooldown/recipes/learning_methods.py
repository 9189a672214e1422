"""The methods that learn during training, as a recipe's options."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

from pycooldown import adaptive
from pycooldown.mixture import Mixture
from pycooldown.schedules import Schedule


@dataclass(frozen=True)
class GroupDRO:
    """Losses of the worst domains weigh more; domains are drawn with ``tau``. See `pycooldown.adaptive.GroupDRO`.

    Options that are ``None`` have the default of `pycooldown.adaptive.GroupDRO`.
    """

    tau: float = math.inf
    step_size: float = 0.01
    smoothing: float = 0.0
    adjustment: float | None = None
    normalize_losses: bool | None = None
    worst: float | None = None
    decay: float | None = None
    least: float | None = None
    delay: int = 4

    def schedule(self, sizes: Mapping[str, int], num_steps: int, batch_size: int) -> Schedule:
        """A learning schedule."""
        options = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "tau"}
        given: dict[str, Any] = {name: value for name, value in options.items() if value is not None}
        return adaptive.GroupDRO(Mixture.temperature_sampling(sizes, self.tau), **given)


@dataclass(frozen=True)
class DoReMi:
    """Three runs: a reference with ``reference_tau``, a proxy that learns weights, and the run itself with those.

    All have the recipe's model. For a proxy of another size, train a reference and, with its folder as ``reference``,
    the proxy alone, and give the weights in its summary to the method "weights". See `pycooldown.adaptive.DoReMi`.

    Attributes:
        rounds: references and proxies, each reference with the weights of the proxy before.
        reference: folder of a finished run.
    """

    reference_tau: float = 1.0
    step_size: float = 1.0
    smoothing: float = 1e-3
    delay: int = 4
    rounds: int = 1
    reference: str | None = None

    def schedule(self, sizes: Mapping[str, int], num_steps: int, batch_size: int) -> Schedule:
        """The proxy's."""
        start = Mixture.temperature_sampling(sizes, math.inf)
        return adaptive.DoReMi(start, step_size=self.step_size, smoothing=self.smoothing, delay=self.delay)


@dataclass(frozen=True)
class OnlineDataMixing:
    """The bandit Exp3 draws domains by their loss. See `pycooldown.adaptive.OnlineDataMixing`."""

    reward_scale: float | None = None
    momentum: float | None = None
    warmup: int = 0
    delay: int = 4

    def schedule(self, sizes: Mapping[str, int], num_steps: int, batch_size: int) -> Schedule:
        """A learning schedule."""
        start = Mixture.temperature_sampling(sizes, math.inf)
        return adaptive.OnlineDataMixing(
            start, reward_scale=self.reward_scale, momentum=self.momentum, warmup=self.warmup, delay=self.delay
        )


@dataclass(frozen=True)
class Probing:
    """What methods have in common that learn from examples kept out of training.

    Attributes:
        tau: temperature of the importances and of the draws at the start.
        interval: steps between two probes.
        hold_out: share of each domain's training samples that is kept for probes, at least two samples.
        probe_size: examples of each domain in a probe.
        probe_parameters: regular expression of the parameters whose gradients are formed; all by default.
        probe_directions: random directions that the gradients are projected on, in place of being formed.
        allocation: that of the batches, on which the best sampling depends; by default that of the training section.
        delay: steps from a probe to the mixture that it decides.
    """

    tau: float = 5.0
    interval: int = 20
    hold_out: float = 0.05
    probe_size: int = 8
    probe_parameters: str | None = None
    probe_directions: int | None = None
    allocation: Literal["multinomial", "systematic", "quota"] | None = None
    delay: int = 4

    def held_out(self, size: int) -> int:
        """Samples of a domain of this size that are kept out of training."""
        if not 0 < self.hold_out < 1:
            raise ValueError(f"hold_out = {self.hold_out}; expected a share between 0 and 1")
        return max(2, round(self.hold_out * size))

    def _start(self, sizes: Mapping[str, int]) -> Mixture:
        return Mixture.temperature_sampling(sizes, self.tau)

    def _options(self) -> dict[str, Any]:
        return {"interval": self.interval, "delay": self.delay}

    def _variance_aware(self, objective: Mixture | adaptive.LearnedSchedule, batch_size: int) -> Schedule:
        domains = (objective if isinstance(objective, Mixture) else objective.start).num_domains
        least = min(1 / batch_size, 1 / domains)
        allocation = self.allocation or "multinomial"  # the default of samplers
        return adaptive.VarianceAware(objective, allocation=allocation, least=least, **self._options())


@dataclass(frozen=True)
class FGLS(Probing):
    """Losses weigh by the inverse of the domain's held-out error. See `pycooldown.adaptive.FGLS`."""

    decay: float = 0.8
    warmup: int = 0
    variance_aware: bool = False

    def schedule(self, sizes: Mapping[str, int], num_steps: int, batch_size: int) -> Schedule:
        """A learning schedule; with ``variance_aware`` the sampling is learned too."""
        weights = adaptive.FGLS(self._start(sizes), decay=self.decay, warmup=self.warmup, **self._options())
        return self._variance_aware(weights, batch_size) if self.variance_aware else weights


@dataclass(frozen=True)
class ERMA(Probing):
    """Losses of domains with varied losses weigh less. See `pycooldown.adaptive.ERMA`."""

    bias_rate: float = 0.002
    variance_rate: float = 0.02
    normalization: Literal["projected", "printed"] | None = None
    variance_aware: bool = False

    def schedule(self, sizes: Mapping[str, int], num_steps: int, batch_size: int) -> Schedule:
        """A learning schedule; with ``variance_aware`` the sampling is learned too."""
        weights = adaptive.ERMA(
            self._start(sizes),
            bias_rate=self.bias_rate,
            variance_rate=self.variance_rate,
            normalization=self.normalization or "projected",
            **self._options(),
        )
        return self._variance_aware(weights, batch_size) if self.variance_aware else weights


@dataclass(frozen=True)
class VarianceAware(Probing):
    """Domains are drawn by the variance of their gradients. See `pycooldown.adaptive.VarianceAware`."""

    def schedule(self, sizes: Mapping[str, int], num_steps: int, batch_size: int) -> Schedule:
        """A learning schedule."""
        return self._variance_aware(self._start(sizes), batch_size)


LEARNING_METHODS: dict[str, Any] = {
    "group_dro": GroupDRO,
    "doremi": DoReMi,
    "odm": OnlineDataMixing,
    "fgls": FGLS,
    "erma": ERMA,
    "variance_aware": VarianceAware,
}
