"""Training on Hugging Face Trainer with a mixture, and recipes that say it in a few lines of YAML.

    from pycooldown.training import MixtureTrainer                     # in your own script
    from pycooldown.training import load_recipe, train                 # train(load_recipe("recipe.yaml"), "runs/one")

Names are imported on first use, so that reading a recipe or a run does not import torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from pycooldown._extras import require

require("train", "torch", "transformers", "accelerate", "tensorboard", "yaml")

if TYPE_CHECKING:
    from pycooldown.training.fused_loss import FusedLoss, fuse_loss
    from pycooldown.training.planning import plan
    from pycooldown.training.recipe import Recipe, load_recipe
    from pycooldown.training.report import compare
    from pycooldown.training.run import train
    from pycooldown.training.trainer import MixtureTrainer

_HOME = {
    "FusedLoss": "fused_loss",
    "MixtureTrainer": "trainer",
    "Recipe": "recipe",
    "compare": "report",
    "fuse_loss": "fused_loss",
    "load_recipe": "recipe",
    "plan": "planning",
    "train": "run",
}
__all__ = ["FusedLoss", "MixtureTrainer", "Recipe", "compare", "fuse_loss", "load_recipe", "plan", "train"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
