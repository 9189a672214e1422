"""Cross-entropy with per-domain weights and per-domain loss sums, in place of torch's."""

from pycooldown._extras import require

require("losses", "torch")

from .functional import DomainStats, cross_entropy  # noqa: E402
from .module import CrossEntropyLoss  # noqa: E402

__all__ = ["CrossEntropyLoss", "DomainStats", "cross_entropy"]
