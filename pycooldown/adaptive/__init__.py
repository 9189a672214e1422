"""Mixing methods that learn during training: schedules with an `update` and a state."""

from pycooldown.adaptive.ado import ADO
from pycooldown.adaptive.doremi import DoReMi
from pycooldown.adaptive.erma import ERMA
from pycooldown.adaptive.fgls import FGLS
from pycooldown.adaptive.group_dro import GroupDRO
from pycooldown.adaptive.odm import OnlineDataMixing
from pycooldown.adaptive.pike import PiKE
from pycooldown.adaptive.schedule import LearnedSchedule
from pycooldown.adaptive.statistics import DomainStatsLike, Statistics
from pycooldown.adaptive.variance_aware import VarianceAware

__all__ = [
    "ADO",
    "ERMA",
    "FGLS",
    "DoReMi",
    "DomainStatsLike",
    "GroupDRO",
    "LearnedSchedule",
    "OnlineDataMixing",
    "PiKE",
    "Statistics",
    "VarianceAware",
]
