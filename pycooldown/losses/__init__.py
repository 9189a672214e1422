"""Cross-entropy with per-domain weights and per-domain loss sums, in place of torch's."""

try:
    import torch as _torch  # noqa: F401
except ImportError as error:
    raise ImportError("pycooldown.losses needs PyTorch: pip install 'pycooldown[losses]'") from error

from .functional import DomainStats, cross_entropy
from .module import CrossEntropyLoss

__all__ = ["CrossEntropyLoss", "DomainStats", "cross_entropy"]
