"""Mixtures as functions of the optimizer step."""

from pycooldown.schedules.exposure import cooldown_by_exposure
from pycooldown.schedules.fixed import Shape, anneal, constant, cooldown, order_matters, staircase, unimax
from pycooldown.schedules.protocol import AdaptiveSchedule, Schedule

__all__ = [
    "AdaptiveSchedule",
    "Schedule",
    "Shape",
    "anneal",
    "constant",
    "cooldown",
    "cooldown_by_exposure",
    "order_matters",
    "staircase",
    "unimax",
]
