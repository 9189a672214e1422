"""Training runs that are said in a few lines of YAML.

    from pycooldown.recipes import load_recipe, train    # train(load_recipe("recipe.yaml"), "runs/one")


Names are imported on first use, so that reading a recipe or a run does not import torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from pycooldown._extras import require

require("train", "torch", "transformers", "accelerate", "tensorboard", "yaml")

if TYPE_CHECKING:
    from pycooldown.recipes.planning import plan
    from pycooldown.recipes.report import compare
    from pycooldown.recipes.run import train
    from pycooldown.recipes.schema import Recipe, load_recipe

_HOME = {
    "Recipe": "schema",
    "compare": "report",
    "load_recipe": "schema",
    "plan": "planning",
    "train": "run",
}
__all__ = ["Recipe", "compare", "load_recipe", "plan", "train"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
