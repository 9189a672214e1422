"""Shorter runs (proxies) whose domains repeat as often as those of the full run."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import yaml

from pycooldown.recipes.corpus import open_corpus
from pycooldown.recipes.loading import load_recipe
from pycooldown.recipes.schema import Recipe, Shares


def proxy_recipe(path: str | Path, steps: int, batch_size: int | None = None) -> tuple[Recipe, Recipe]:
    """Return a recipe and that of its proxy.

    The proxy draws ``steps * batch_size`` samples, a share r of the recipe's draws. Each domain is cut to the share r
    of its training sequences. So under any mixture, both pass through each domain equally often.

    Args:
        path: The recipe's file.
        steps: Optimizer steps of the proxy.
        batch_size: Samples per step of the proxy; by default those of the recipe.

    Raises:
        ValueError: If the proxy would draw more than the recipe, or the recipe ends by a rule.
    """
    whole = load_recipe(path)
    training = dataclasses.replace(whole.training, steps=steps, batch_size=batch_size or whole.training.batch_size)
    share = training.num_samples / whole.training.num_samples
    if share > 1:
        raise ValueError(
            f"the proxy draws {training.num_samples:,} samples, more than the {whole.training.num_samples:,} of "
            f"{path}; expected fewer steps"
        )
    before = whole.data.share
    if isinstance(before, dict):
        cut: Shares = {domain: share * before.get(domain, 1.0) for domain in open_corpus(whole.data).sizes}
    else:
        cut = share * before
    data = dataclasses.replace(whole.data, share=cut)
    return whole, dataclasses.replace(whole, data=data, training=training)


def proxy_sizes(whole: Recipe, small: Recipe) -> dict[str, tuple[int, int]]:
    """Return the training sequences of each domain, in the whole run and in the proxy.

    Raises:
        FileNotFoundError: If the data do not exist.
        ValueError: If no sequence of a domain is left.
    """
    sizes, cut = open_corpus(whole.data).sizes, open_corpus(small.data).sizes
    return {domain: (size, cut[domain]) for domain, size in sizes.items()}


def proxy_text(small: Recipe) -> str:
    """Return a proxy's recipe as YAML."""
    text: str = yaml.safe_dump(small.to_dict(), sort_keys=False)
    return text
