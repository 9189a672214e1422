"""Options of the shuffle by blocks, and their checks."""

from __future__ import annotations

import hashlib
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from pycooldown.mixture import Integers, Mixture

ShuffleName = Literal["blocks"]
BLOCK, GROUP = 64, 16


@dataclass(frozen=True)
class BlockShuffle:
    """A shuffle of each domain by blocks of its shards.

    Attributes:
        shard_sizes: By domain, the samples of each shard, in order.
        block: Samples in a block.
        group: Blocks whose samples are mixed.
    """

    shard_sizes: dict[str, Integers]
    block: int
    group: int

    def describe(self) -> dict[str, Any]:
        """Return the values that decide the order of samples, as JSON values."""
        digest = hashlib.sha256()
        for domain, sizes in self.shard_sizes.items():
            digest.update(f"{len(domain)} {domain} {len(sizes)} ".encode() + sizes.astype("<i8").tobytes())
        return {"block": self.block, "group": self.group, "shards": digest.hexdigest()[:16]}

    def check(self, mixture: Mixture) -> None:
        """Check that the shards have the samples of a mixture's domains.

        Raises:
            ValueError: If a domain is missing in either, or has other samples.
        """
        shards = {domain: int(sizes.sum()) for domain, sizes in self.shard_sizes.items()}
        domains = dict(zip(mixture.domains, mixture.sizes.tolist(), strict=True))
        if differing := [name for name in {**domains, **shards} if shards.get(name) != domains.get(name)]:
            name = differing[0]
            raise ValueError(
                f"domain {name!r} has {domains.get(name, 'no')} samples in the schedule and {shards.get(name, 'none')} "
                "in shard_sizes; expected the shards of the schedule's domains: with shuffle='blocks', domains can "
                "neither join nor grow in a running job"
            )


def check_shuffle(
    shuffle: bool | str,
    shard_sizes: Mapping[str, Sequence[int]] | None,
    block: int | None,
    group: int | None,
    mixture: Mixture,
) -> bool | BlockShuffle:
    """Return the shuffle for a sampler's arguments.

    Raises:
        TypeError: If ``block``, ``group`` or a size is not an integer.
        ValueError: If an argument is out of range, or does not apply with the others.
    """
    if shuffle != "blocks":
        if isinstance(shuffle, str):
            raise ValueError(f"shuffle = {shuffle!r}; expected True, False or 'blocks'")
        for name, value in {"shard_sizes": shard_sizes, "block": block, "group": group}.items():
            if value is not None:
                raise ValueError(f"{name} is for shuffle='blocks', but shuffle = {shuffle!r}; leave it out")
        return bool(shuffle)
    if shard_sizes is None:
        raise ValueError("shuffle='blocks' needs shard_sizes, the samples of each shard; pass dataset.shard_sizes")
    numbers = {"block": BLOCK if block is None else block, "group": GROUP if group is None else group}
    for name, value in numbers.items():
        if not 1 <= operator.index(value) < 2**31:
            raise ValueError(f"{name} = {value}; expected 1 to 2^31 - 1")
    sizes = {name: np.array([operator.index(n) for n in given], np.int64) for name, given in shard_sizes.items()}
    if negative := [name for name, given in sizes.items() if (given < 0).any()]:
        raise ValueError(f"shard_sizes has a negative size in domain {negative[0]!r}; expected numbers of samples")
    blocks = BlockShuffle({name: sizes[name] for name in mixture.domains if name in sizes} | sizes, **numbers)
    blocks.check(mixture)
    return blocks
