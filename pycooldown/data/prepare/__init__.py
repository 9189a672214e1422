"""Turn documents of many domains, in common file formats, into shards of tokens: `pycooldown tokenize`.

Each name is loaded when it is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pycooldown.data.prepare.inputs import parse_inputs as parse_inputs
    from pycooldown.data.prepare.options import Options as Options
    from pycooldown.data.prepare.options import TokenizerOptions as TokenizerOptions
    from pycooldown.data.prepare.run import prepare_plan as prepare_plan
    from pycooldown.data.prepare.run import tokenize as tokenize

_HOMES = {
    "Options": "options",
    "TokenizerOptions": "options",
    "parse_inputs": "inputs",
    "prepare_plan": "run",
    "tokenize": "run",
}

__all__ = ["Options", "TokenizerOptions", "parse_inputs", "prepare_plan", "tokenize"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
