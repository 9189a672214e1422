"""Training runs described by a few lines of YAML.

    from pycooldown.recipes import load_recipe, train    # train(load_recipe("recipe.yaml"), "runs/one")


Names are imported on first use, so that recipes, plans and reports need no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from pycooldown._extras import require

require("cli", "yaml", "pydantic")

if TYPE_CHECKING:
    from pycooldown.recipes.loading import load_recipe
    from pycooldown.recipes.planning import plan
    from pycooldown.recipes.report import compare
    from pycooldown.recipes.run import train
    from pycooldown.recipes.schema import Recipe

_HOME = {
    "Recipe": "schema",
    "compare": "report",
    "load_recipe": "loading",
    "plan": "planning",
    "train": "run",
}
__all__ = ["Recipe", "compare", "load_recipe", "plan", "train"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name == "train":
        require("train", "torch", "transformers", "accelerate", "tensorboard")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
