"""The mixing methods that a recipe can name. To add one, write its options in a file here and register them."""

from pycooldown.recipes.methods import doremi, learning, static
from pycooldown.recipes.methods.base import (
    MethodOptions,
    TrainStage,
    find_method,
    method_names,
    method_schemas,
    read_method,
    register,
)

__all__ = [
    "MethodOptions",
    "TrainStage",
    "doremi",
    "find_method",
    "learning",
    "method_names",
    "method_schemas",
    "read_method",
    "register",
    "static",
]
