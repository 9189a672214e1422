"""Cross-entropy with per-domain weights and per-domain loss sums, in place of torch's."""

from pycooldown._extras import require

require("losses", "torch")

from ._statistics import DomainStats  # noqa: E402
from .cross_entropy import cross_entropy  # noqa: E402
from .linear_cross_entropy import linear_cross_entropy  # noqa: E402
from .module import CrossEntropyLoss, LinearCrossEntropyLoss  # noqa: E402

__all__ = [
    "CrossEntropyLoss",
    "DomainStats",
    "LinearCrossEntropyLoss",
    "cross_entropy",
    "linear_cross_entropy",
]
