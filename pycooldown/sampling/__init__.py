"""Turn schedules into batches of sample indices."""

from pycooldown.sampling.batches import BatchPlan, Exposure
from pycooldown.sampling.checks import AllocationName
from pycooldown.sampling.sampler import DomainBatchSampler

__all__ = ["AllocationName", "BatchPlan", "DomainBatchSampler", "Exposure"]
