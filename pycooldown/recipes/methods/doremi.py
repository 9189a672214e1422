"""DoReMi's runs: reference, proxy and the one with the weights that the proxy found."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from pycooldown.recipes.history import Run
from pycooldown.recipes.learning_methods import DoReMi
from pycooldown.recipes.methods import Temperature, Weights
from pycooldown.recipes.schema import Recipe

_SETTLED = 1e-3


def after_proxy(recipe: Recipe, output: Path, train: Callable[[Recipe, Path], Run]) -> Recipe:
    """The recipe of the last run, after those before it are trained.

    Each is an ordinary run in a folder of its own beside ``output``, which is left as it is once it is finished; so the
    whole is resumed where it was interrupted, between the runs or within one. The weights are taken over by name. In a
    further round, the reference is trained with the weights of the round before; rounds end early when no weight
    changes by more than 1e-3, the paper's tolerance.

    Args:
        recipe: with the method "doremi".
        output: folder of the last run; the others have "-reference" and "-proxy" at the end, from the second round on
            with its number.
        train: trains a recipe in a folder, unless it is finished there.
    """
    method = recipe.mixture
    assert isinstance(method, DoReMi)
    # What counts of these runs is the excess of one loss over the other.
    stage = replace(recipe, decoding=None, training=replace(recipe.training, label_smoothing=0.0))
    mixture: Temperature | Weights = Temperature(method.reference_tau)
    weights: dict[str, float] = {}
    for number in range(1, method.rounds + 1):
        suffix = f"-{number}" if number > 1 else ""
        reference = output.with_name(f"{output.name}-reference{suffix}")
        train(replace(stage, mixture=mixture), reference)
        learning = replace(stage, mixture=replace(method, reference=str(reference)))
        proxy = train(learning, output.with_name(f"{output.name}-proxy{suffix}"))
        before, weights = weights, proxy.summary["learned"]["target"]
        mixture = Weights(tuple(weights.items()))
        if before and max(abs(weights[domain] - before[domain]) for domain in weights) < _SETTLED:
            break
    return replace(recipe, mixture=mixture)
