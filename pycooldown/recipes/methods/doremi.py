"""DoReMi: train a reference, then a proxy that learns weights, then the recipe's own run with these weights."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import PlainValidator

from pycooldown import adaptive
from pycooldown.mixture import Mixture
from pycooldown.recipes.fields import Count, FinitePositive, Positive, Share, Text
from pycooldown.recipes.methods.base import MethodOptions, TrainStage, register
from pycooldown.recipes.methods.learning import LearningOptions, by_name
from pycooldown.recipes.methods.static import TemperatureOptions, WeightsOptions
from pycooldown.recipes.model_section import AnyModel, read_model
from pycooldown.schedules import Schedule

_SETTLED = 1e-3


def _read_proxy(value: Any) -> AnyModel | None:
    return None if value is None else read_model(value)


@register("doremi")
class DoReMiOptions(LearningOptions):
    """Three runs: a reference, a proxy that learns weights, and the run itself with those. See `adaptive.DoReMi`.

    All have the recipe's model, unless `proxy_model` is given.
    """

    reference_tau: Positive = 1.0
    """Temperature of the reference's draws."""
    step_size: FinitePositive = 1.0
    """Step size of the exponentiated gradient."""
    smoothing: Share = 1e-3
    """Share of the uniform distribution in the weights."""
    delay: Count = 4
    """Steps from a statistic to the mixture that it decides."""
    rounds: Count = 1
    """References and proxies to train, each reference with the weights of the proxy before."""
    reference: Text | None = None
    """Folder of a finished run; with it, the recipe is a proxy's alone."""
    proxy_model: Annotated[AnyModel | None, PlainValidator(_read_proxy, json_schema_input_type=AnyModel | None)] = None
    """A model of another size for references and proxies: a section as `model`."""

    def schedule(self, sizes: Mapping[str, int], num_steps: int, batch_size: int) -> Schedule:
        """Return the proxy's schedule."""
        start = Mixture.temperature_sampling(sizes, math.inf)
        return adaptive.DoReMi(start, step_size=self.step_size, smoothing=self.smoothing, delay=self.delay)

    def reference_run(self) -> Path | None:
        """Return the folder of the reference."""
        return None if self.reference is None else Path(self.reference)

    def run_stages(self, output: Path, train: TrainStage) -> MethodOptions:
        """Train references and proxies, and return the weights of the last proxy.

        Each is an ordinary run in its own folder beside ``output``, and a finished one is not trained again. So an
        interrupted recipe continues within a run, or between runs, where it stopped. Weights are passed on by name.
        Rounds end early when no weight changes by more than 1e-3, the paper's tolerance.

        Args:
            output: Folder of the last run. The others end with "-reference" and "-proxy", and from the second round on
                with the round's number.
            train: Trains the recipe with another method and model in another folder, unless that run is finished.
        """
        if self.reference is not None:
            return self
        mixture: MethodOptions = TemperatureOptions(self.reference_tau)
        weights: dict[str, float] = {}
        model = () if self.proxy_model is None else (self.proxy_model,)
        for number in range(1, self.rounds + 1):
            suffix = f"-{number}" if number > 1 else ""
            reference = output.with_name(f"{output.name}-reference{suffix}")
            train(mixture, reference, *model)
            learning = replace(self, reference=str(reference), proxy_model=None)
            proxy = train(learning, output.with_name(f"{output.name}-proxy{suffix}"), *model)
            before, weights = weights, proxy.summary["learned"]["target"]
            mixture = WeightsOptions(tuple(weights.items()))
            if before and max(abs(weights[domain] - before[domain]) for domain in weights) < _SETTLED:
                break
        return mixture

    def learned(self, schedule: Any) -> dict[str, dict[str, float]]:
        """Return the average of the weights, which is DoReMi's result, and their exponential moving average.

        The two differ if the weights have not settled.
        """
        average = {name: by_name(schedule.average, name) for name in ("target", "sampling")}
        return {**average, "moving_average": by_name(schedule.moving_average, "target")}
