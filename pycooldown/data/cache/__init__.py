"""A cache of object stores that knows the future: the sampler's plan tells what will be read, and when."""

from pycooldown.data.cache.client import CacheStatistics, KnownFutureCache

__all__ = ["CacheStatistics", "KnownFutureCache"]
