"""The former home of `pycooldown.huggingface` and `pycooldown.recipes`. It warns, and the next release removes it."""

import warnings
from importlib import import_module
from typing import Any

_HOME = {
    "FusedLoss": "huggingface",
    "MixtureTrainer": "huggingface",
    "fuse_loss": "huggingface",
    "Recipe": "recipes",
    "compare": "recipes",
    "load_recipe": "recipes",
    "plan": "recipes",
    "train": "recipes",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = f"pycooldown.{_HOME[name]}"
    warnings.warn(f"pycooldown.training.{name} is now {home}.{name}", DeprecationWarning, stacklevel=2)
    return getattr(import_module(home), name)
