"""Figures of the effects of mixtures.

A method has the same colour and line in all of them. They are matplotlib figures, at most as wide as a README.
"""

from pycooldown.plots.comparisons import curves, gains, gradient_norms, inflation, recipes_with_spread
from pycooldown.plots.over_time import loss_curves, sampling_over_time
from pycooldown.plots.style import Curve, line_style

__all__ = [
    "Curve",
    "curves",
    "gains",
    "gradient_norms",
    "inflation",
    "line_style",
    "loss_curves",
    "recipes_with_spread",
    "sampling_over_time",
]
