"""The methods whose mixtures are known before training, each as a recipe's options."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

from pycooldown import schedules
from pycooldown.mixture import Mixture
from pycooldown.recipes.fields import Flag, NonNegative, Number, Positive, ProperShare, Share, Text
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


@register("staircase")
class StaircaseOptions(MethodOptions):
    """Temperature sampling in stages."""

    stages: tuple[tuple[Share, Positive], ...]
    """Each [share of the steps at which the stage starts, its temperature]; the first starts at 0."""

    def schedule(self, sizes: Mapping[str, int], num_steps: int, batch_size: int) -> Schedule:
        """Return one mixture for each stage."""
        return schedules.staircase(
            [
                (_step_at("stages", start, num_steps, smallest=0), Mixture.temperature_sampling(sizes, tau))
                for start, tau in self.stages
            ]
        )


@register("unimax")
class UniMaxOptions(MethodOptions):
    """As even as can be with no domain passed through more than `max_epochs` times."""

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
    """The high-resource domains alone until the switch, then all with `tau`."""

    tau: Positive = 5.0
    """The temperature from the switch on."""
    switch_at: ProperShare = 0.5
    """When to switch, as a share of the steps."""
    high_resource: tuple[Text, ...] | None = None
    """The domains of the first stage; by default those above the mean size."""
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
        weights = dict(self.weights)
        if set(weights) != set(sizes):
            differ = sorted(set(weights) ^ set(sizes))
            raise ValueError(f"weights are for other domains than the data: {differ} are only in one of the two")
        total = sum(weights.values())
        p = [weights[domain] / total if total > 0 else math.nan for domain in sizes]
        return schedules.constant(Mixture(tuple(sizes), list(sizes.values()), p, p))  # type: ignore[arg-type]


def _step_at(name: str, share: Number, num_steps: int, *, smallest: int) -> int:
    step = round(share * num_steps)
    if not smallest <= step < num_steps:
        raise ValueError(f"{name} = {share} is step {step} of {num_steps}; expected a share of the steps in [0, 1)")
    return step
