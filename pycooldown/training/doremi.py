"""DoReMi's three runs: reference, proxy and the one with the weights that the proxy found."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from pycooldown.training.history import Run
from pycooldown.training.learning_methods import DoReMi
from pycooldown.training.methods import Temperature, Weights
from pycooldown.training.recipe import Recipe


def after_proxy(recipe: Recipe, output: Path, train: Callable[[Recipe, Path], Run]) -> Recipe:
    """The recipe of the third run, after the first two are trained.

    Each is an ordinary run in a folder of its own beside ``output``, which is left as it is once it is finished; so the
    whole is resumed where it was interrupted, between the runs or within one. The weights are taken over by name.

    Args:
        recipe: with the method "doremi".
        output: folder of the third run; the others have "-reference" and "-proxy" at the end.
        train: trains a recipe in a folder, unless it is finished there.
    """
    method = recipe.mixture
    assert isinstance(method, DoReMi)
    reference = output.with_name(f"{output.name}-reference")
    # What counts of them is the excess of one loss over the other.
    stage = replace(recipe, decoding=None, training=replace(recipe.training, label_smoothing=0.0))
    train(replace(stage, mixture=Temperature(method.reference_tau)), reference)
    proxy = train(
        replace(stage, mixture=replace(method, reference=str(reference))), output.with_name(f"{output.name}-proxy")
    )
    return replace(recipe, mixture=Weights(tuple(proxy.summary["learned"]["target"].items())))
