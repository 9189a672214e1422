"""Clear errors for optional dependencies that are missing or too old."""

import re
from contextlib import suppress
from importlib.util import find_spec


def require(extra: str, *modules: str) -> None:
    """Check that modules are installed, without importing them.

    Raises:
        ImportError: If one is missing. The message names the extra of pycooldown that installs it.
    """
    for module in modules:
        found = None
        with suppress(ModuleNotFoundError):  # if the package that contains it is missing
            found = find_spec(module)
        if found is None:
            raise ImportError(f"{module} is not installed; run pip install 'pycooldown[{extra}]'", name=module)


def shortcoming(module: str, minimum: tuple[int, int]) -> str | None:
    """Return why a module cannot be used, or ``None`` if it can. It is not imported.

    Args:
        module: The module, whose distribution has the same name. A build under another name counts as new enough.
        minimum: The oldest version that can be used, as (major, minor).
    """
    from importlib.metadata import PackageNotFoundError, version  # some MB of memory, in each process of a job

    if find_spec(module) is None:
        return f"running without {module} installed"
    try:
        installed = version(module)
    except PackageNotFoundError:
        return None
    found = tuple(int(part) for part in re.findall(r"\d+", installed)[:2])
    return None if found >= minimum else f"{module} {installed}; expected {'.'.join(map(str, minimum))} or newer"
