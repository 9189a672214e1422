"""Domain mixtures for training on imbalanced data: temperature sampling, scalarization and Cooldown."""

try:
    from pycooldown import _core as _core
except ImportError as error:  # a source tree without the compiled core
    raise ImportError(
        "pycooldown's compiled core is missing or was built for another Python; run `pip install .` in the source "
        "tree, or `pip install -e .` for development. If it is installed, run Python in another folder: in the "
        "source tree, `python -m` imports the sources"
    ) from error

from pycooldown import schedules
from pycooldown._core import AliasTable
from pycooldown.gradients import theory
from pycooldown.mixture import Mixture, temperature
from pycooldown.sampling.batches import BatchPlan, Exposure
from pycooldown.sampling.sampler import DomainBatchSampler
from pycooldown.schedules import Schedule

__version__ = "0.2.0"  # the only place: pyproject.toml reads it here
__all__ = [
    "AliasTable",
    "BatchPlan",
    "DomainBatchSampler",
    "Exposure",
    "Mixture",
    "Schedule",
    "schedules",
    "temperature",
    "theory",
]
