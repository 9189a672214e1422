"""A made-up data set whose samples all have one length, for plans of caches."""

import numpy as np

from pycooldown.data.byte_ranges import Spans
from pycooldown.data.stores import StoredObject


class RegularSamples:
    """Samples of `length` bytes that lie end to end in each shard."""

    def __init__(self, shard_sizes, length=1):
        self.shard_sizes, self.length = shard_sizes, length
        sizes = [size for shards in shard_sizes.values() for size in shards]
        self.objects = [StoredObject(f"s3://made-up/{i}", size * length, "v") for i, size in enumerate(sizes)]
        self.firsts = np.cumsum([0, *sizes])

    @property
    def sizes(self):
        return {domain: sum(shards) for domain, shards in self.shard_sizes.items()}

    def locate(self, indices):
        objects = np.searchsorted(self.firsts, indices, "right") - 1
        starts = (indices - self.firsts[objects]) * self.length
        return Spans(objects, starts, starts + self.length)
