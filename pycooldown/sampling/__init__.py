"""Schedules turned into batches of sample indices."""

from pycooldown.sampling.batches import BatchPlan, Exposure
from pycooldown.sampling.sampler import AllocationName, DomainBatchSampler

__all__ = ["AllocationName", "BatchPlan", "DomainBatchSampler", "Exposure"]
