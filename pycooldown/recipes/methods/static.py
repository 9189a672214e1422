"""The methods whose mixtures are known before training, each as a recipe's options."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import PlainValidator, TypeAdapter
from pydantic.dataclasses import dataclass

from pycooldown import schedules
from pycooldown.mixture import Mixture
from pycooldown.recipes.fields import (
    CONFIG,
    FinitePositive,
    Flag,
    NonNegative,
    Number,
    Positive,
    ProperShare,
    Share,
    Text,
)
from pycooldown.recipes.methods.base import MethodOptions, register
from pycooldown.schedules import Schedule, Shape


@register("temperature")
class TemperatureOptions(MethodOptions):
    """Temperature sampling: draw domains with p(i; tau); all losses weigh the same."""

    tau: Positive
    """The temperature: 1 draws in proportion to size, inf evenly."""

    def schedule(self, sizes: Mapping[str, int], num_steps: int, batch_size: int) -> Schedule:
        """Return one mixture throughout."""
        return schedules.constant(Mixture.temperature_sampling(sizes, self.tau))


@register("scalarization")
class ScalarizationOptions(MethodOptions):
    """Scalarization: draw domains in proportion to size; weigh losses with p(i; tau) / p(i; 1)."""

    tau: Positive
    """The temperature of the loss weights."""

    def schedule(self, sizes: Mapping[str, int], num_steps: int, batch_size: int) -> Schedule:
        """Return one mixture throughout."""
        return schedules.constant(Mixture.scalarization(sizes, self.tau))


@register("cooldown")
class CooldownOptions(MethodOptions):
    """Temperature sampling with `tau` until the switch, then with `final_tau`."""

    tau: Positive = 5.0
    """The temperature before the switch."""
    final_tau: Positive = 1.0
    """The temperature from the switch on."""
    switch_at: ProperShare = 0.5
    """When to switch, as a share of the steps."""

    def schedule(self, sizes: Mapping[str, int], num_steps: int, batch_size: int) -> Schedule:
        """Return two stages."""
        switch_step = _step_at("switch_at", self.switch_at, num_steps, smallest=1)
        return schedules.cooldown(sizes, tau=self.tau, final_tau=self.final_tau, switch_step=switch_step)


@register("cooldown_by_exposure")
class CooldownByExposureOptions(MethodOptions):
    """Cooldown that switches after `epochs` passes through the rarest domain."""

    epochs: FinitePositive = 15.0
    """Passes through the rarest domain before the switch."""
    tau: Positive = 5.0
    """The temperature before the switch."""
    final_tau: Positive = 1.0
    """The temperature from the switch on."""

    def schedule(self, sizes: Mapping[str, int], num_steps: int, batch_size: int) -> Schedule:
        """Return two stages."""
        options = {"epochs": self.epochs, "tau": self.tau, "final_tau": self.final_tau}
        return schedules.cooldown_by_exposure(sizes, batch_size=batch_size, num_steps=num_steps, **options)


@register("anneal")
class AnnealOptions(MethodOptions):
    """Temperature sampling whose temperature moves from `tau` to `final_tau` over all steps."""

    tau: Positive = 5.0
    """The first temperature."""
    final_tau: Positive = 1.0
    """The last temperature."""
    shape: Shape = "linear"
    """The curve between them."""

    def schedule(self, sizes: Mapping[str, int], num_steps: int, batch_size: int) -> Schedule:
        """Return a temperature for each step."""
        return schedules.anneal(sizes, tau=self.tau, final_tau=self.final_tau, num_steps=num_steps, shape=self.shape)


@dataclass(frozen=True, config=CONFIG)
class Stage:
    """A stage of `staircase`, with a temperature or with weights."""

    start: Share
    """Share of the steps at which the stage starts."""
    tau: Positive | None = None
    """The temperature."""
    domains: tuple[Text, ...] | None = None
    """The domains that are drawn with `tau`; all by default. Others wait for a later stage."""
    weights: dict[Text, NonNegative] | None = None
    """The probability of each domain in place of a temperature, scaled to sum to 1; 0 for a domain that waits."""

    def __post_init__(self) -> None:
        if (self.tau is None) == (self.weights is None):
            raise ValueError("a stage has both or neither of tau and weights; expected exactly one of them")
        if self.domains is not None and self.weights is not None:
            raise ValueError("domains are given with weights, which name their domains already; leave domains out")
        if self.domains is not None and len(set(self.domains)) != max(1, len(self.domains)):
            raise ValueError(f"domains is {list(self.domains)}; expected at least one domain, and each only once")

    def mixture(self, sizes: Mapping[str, int]) -> Mixture:
        """Return the stage's mixture over all domains."""
        if self.weights is not None:
            return _mixture(_shares(self.weights, sizes, "stages.weights"), sizes)
        assert self.tau is not None  # __post_init__ checked that one of the two is given
        if self.domains is None:
            return Mixture.temperature_sampling(sizes, self.tau)
        if unknown := sorted(set(self.domains) - set(sizes)):
            raise ValueError(f"stages.domains names {unknown}, which the data lack; expected some of {list(sizes)}")
        drawn = Mixture.temperature_sampling({d: n for d, n in sizes.items() if d in self.domains}, self.tau)
        share = dict(zip(drawn.domains, drawn.sampling.tolist(), strict=True))
        return _mixture([share.get(domain, 0.0) for domain in sizes], sizes)


_Pair = tuple[Share, Positive]


def _read_stage(value: Any) -> _Pair | Stage:
    """Return a stage from a list or a mapping; for a mistake in it, only the errors of that form are reported."""
    read: _Pair | Stage = TypeAdapter(Stage if isinstance(value, dict | Stage) else _Pair).validate_python(value)
    return read


@register("staircase")
class StaircaseOptions(MethodOptions):
    """One mixture after another; domains may join late."""

    stages: tuple[Annotated[_Pair | Stage, PlainValidator(_read_stage, json_schema_input_type=_Pair | Stage)], ...]
    """Each [share of the steps at which the stage starts, its temperature], or a mapping with `start` and `tau` or
    `weights`, and the `domains` that are drawn; the first starts at 0."""

    def schedule(self, sizes: Mapping[str, int], num_steps: int, batch_size: int) -> Schedule:
        """Return one mixture for each stage."""
        return schedules.staircase(
            [
                (_step_at("stages", stage.start, num_steps, smallest=0), stage.mixture(sizes))
                for stage in (stage if isinstance(stage, Stage) else Stage(*stage) for stage in self.stages)
            ]
        )


@register("unimax")
class UniMaxOptions(MethodOptions):
    """Sampling as even as possible with at most `max_epochs` passes through each domain."""

    max_epochs: Positive = 1.0
    """The cap on passes through a domain."""
    mode: Literal["static", "frontload"] = "static"
    """"static" draws with one mixture; "frontload" draws evenly and drops a domain when its cap is reached."""

    def schedule(self, sizes: Mapping[str, int], num_steps: int, batch_size: int) -> Schedule:
        """Return one mixture, or one for each domain that is dropped."""
        budget = num_steps * batch_size
        return schedules.unimax(sizes, budget=budget, max_epochs=self.max_epochs, mode=self.mode, num_steps=num_steps)


@register("order_matters")
class OrderMattersOptions(MethodOptions):
    """High-resource domains only until the switch, then all domains with `tau`."""

    tau: Positive = 5.0
    """The temperature from the switch on."""
    switch_at: ProperShare = 0.5
    """When to switch, as a share of the steps."""
    high_resource: tuple[Text, ...] | None = None
    """The domains of the first stage; by default those of at least the median size."""
    reset_optimizer: Flag = False
    """Empty the optimizer's state at the switch."""
    reset_lr: Flag = False
    """Start the learning rate again at the switch."""

    def switch_step(self, num_steps: int) -> int:
        """Return the first step with all domains."""
        return _step_at("switch_at", self.switch_at, num_steps, smallest=1)

    def schedule(self, sizes: Mapping[str, int], num_steps: int, batch_size: int) -> Schedule:
        """Return two stages."""
        switch_step = self.switch_step(num_steps)
        return schedules.order_matters(sizes, high_resource=self.high_resource, switch_step=switch_step, tau=self.tau)

    def callbacks(self, num_steps: int) -> list[object]:
        """Return the callback that resets optimizer and learning rate at the switch."""
        from pycooldown.huggingface.callbacks import ResetAtStep

        step = self.switch_step(num_steps)
        return [ResetAtStep(step, optimizer=self.reset_optimizer, learning_rate=self.reset_lr)]


@register("weights")
class WeightsOptions(MethodOptions):
    """Fixed probabilities, from another run or a publication."""

    weights: tuple[tuple[Text, NonNegative], ...]
    """Each [domain, weight], in any order; they are scaled to sum to 1."""

    def __post_init__(self) -> None:
        names = [name for name, _ in self.weights]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"weights has {twice[0]!r} twice; expected one weight for each domain")

    def schedule(self, sizes: Mapping[str, int], num_steps: int, batch_size: int) -> Schedule:
        """Return one mixture throughout."""
        return schedules.constant(_mixture(_shares(dict(self.weights), sizes, "weights"), sizes))


def _mixture(p: list[float], sizes: Mapping[str, int]) -> Mixture:
    return Mixture(tuple(sizes), list(sizes.values()), p, p)  # type: ignore[arg-type]


def _shares(weights: Mapping[str, float], sizes: Mapping[str, int], name: str) -> list[float]:
    """Return weights in the order of the domains, scaled to sum to 1."""
    if set(weights) != set(sizes):
        differ = sorted(set(weights) ^ set(sizes))
        raise ValueError(
            f"{name} and the data have different domains; only one of them has {differ}; expected the same"
        )
    total = sum(weights.values())
    return [weights[domain] / total if total > 0 else math.nan for domain in sizes]


def _step_at(name: str, share: Number, num_steps: int, *, smallest: int) -> int:
    step = round(share * num_steps)
    if not smallest <= step < num_steps:
        raise ValueError(f"{name} = {share} is step {step} of {num_steps}; expected a share of the steps in [0, 1)")
    return step
