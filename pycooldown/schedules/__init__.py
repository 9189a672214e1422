"""Mixtures as functions of the optimizer step."""

from pycooldown.schedules.annealing import Shape, anneal
from pycooldown.schedules.cooldown import cooldown, cooldown_by_exposure
from pycooldown.schedules.protocol import AdaptiveSchedule, ContinuousSchedule, Schedule
from pycooldown.schedules.staircase import constant, order_matters, staircase
from pycooldown.schedules.unimax import unimax

__all__ = [
    "AdaptiveSchedule",
    "ContinuousSchedule",
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
