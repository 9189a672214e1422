"""A clear error where an optional dependency is missing."""

from contextlib import suppress
from importlib.util import find_spec


def require(extra: str, *modules: str) -> None:
    """Check that modules are installed, without importing them.

    Raises:
        ImportError: naming the extra of pycooldown that brings the first missing one.
    """
    for module in modules:
        found = None
        with suppress(ModuleNotFoundError):  # of the package around it
            found = find_spec(module)
        if found is None:
            raise ImportError(f"{module} is not installed: run pip install 'pycooldown[{extra}]'", name=module)
