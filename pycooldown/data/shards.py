"""Map-style access to the samples of tar shards."""

import os
import warnings
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from pycooldown.data.index import TarReader, load_index

__all__ = ["Skipped", "TarDataset"]


class Skipped(NamedTuple):
    """A sample that cannot be read, or a break beyond which a shard cannot be."""

    shard: str
    offset: int  # bytes, of the tar header at fault
    reason: str


class TarDataset:
    """The samples of many domains' tar shards, by index: the domains laid end to end in the order of the mapping.

    Within a domain the shards follow in their order, within a shard the samples in theirs, so indices are those of a
    `torch.utils.data.ConcatDataset` and of `pycooldown.DomainBatchSampler`. A sample is a dictionary in webdataset's
    form: `__key__`, `__url__` (the shard's path), `__domain__` and the bytes of each member under its extension.

    The first use of a shard scans it and leaves an index beside it (see `load_index`). Links, directories, devices and
    `__meta__` files are passed over, as webdataset does. Sparse files, repeated extensions and damage are faults. So is
    the end of a file without the zero blocks that end a tar, which webdataset takes for the end of the shard: if it was
    cut off between two members, samples are missing, and members of the last one may be.

    A dataset can be pickled and used in forked or spawned workers. Shards must not be written to while they are read.

    Args:
        shards: Paths of uncompressed tar files by domain, or the one path.
        on_error: `"raise"` refuses shards with faults; `"skip"` leaves the samples out, lists them in `skipped` and
            warns once.
        max_open: How many shards are mapped into memory at a time; no file stays open. Where there are more, those that
            are read most often are mapped, and each read of another one opens its file, which takes some microseconds.
            Pages of mapped shards count as resident memory, though the kernel can take them back.

    Raises:
        ValueError: If a shard has faults and `on_error="raise"`, naming shard and offset.
        OSError: If a shard cannot be read.
    """

    def __init__(
        self,
        shards: Mapping[str, str | os.PathLike[str] | Iterable[str | os.PathLike[str]]],
        *,
        on_error: Literal["raise", "skip"] = "raise",
        max_open: int = 16_384,
    ) -> None:
        if on_error not in ("raise", "skip"):
            raise ValueError(f"on_error = {on_error!r}; expected 'raise' or 'skip'")
        if max_open < 1:
            raise ValueError(f"max_open = {max_open}; expected at least 1 shard")
        self.shards = {
            domain: [os.fspath(paths)] if isinstance(paths, str | os.PathLike) else [os.fspath(path) for path in paths]
            for domain, paths in shards.items()
        }
        self.on_error = on_error
        self.max_open = max_open
        self.skipped: list[Skipped] = []
        self._open()
        if self.skipped:
            first = self.skipped[0]
            warnings.warn(
                f"{len(self.skipped)} samples skipped, the first in {first.shard} at byte {first.offset}: "
                f"{first.reason}",
                stacklevel=2,
            )

    def _open(self) -> None:
        self._reader = TarReader(self.max_open)
        places = [(domain, path) for domain, paths in self.shards.items() for path in paths]
        sizes = dict.fromkeys(self.shards, 0)
        with ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool:
            for (domain, path), index in zip(places, pool.map(load_index, [path for _, path in places])):
                skipped = [Skipped(path, offset, reason) for offset, reason in index.faults]
                if skipped and self.on_error == "raise":
                    raise ValueError(
                        f"{path} at byte {skipped[0].offset}: {skipped[0].reason}; mend the shard, or "
                        "give on_error='skip' to go on without such samples"
                    )
                self.skipped += skipped
                self._reader.add(os.fsencode(path), domain, index)
                sizes[domain] += len(index)
        self._sizes = sizes

    @property
    def domains(self) -> tuple[str, ...]:
        """Names of the domains, in order."""
        return tuple(self.shards)

    @property
    def sizes(self) -> dict[str, int]:
        """Number of samples by domain."""
        return dict(self._sizes)

    def __len__(self) -> int:
        return len(self._reader)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self._reader.getitems([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        return self._reader.getitems(indices)

    def flat(self, indices: Sequence[int], extension: str) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
        """Read one member of each sample into one buffer.

        Args:
            indices: n indices of samples.
            extension: Which member, as it stands in the samples (lower case).

        Returns:
            `buffer`, uint8, the members end to end, and `offsets`, int64 of shape (n + 1,): member i is
            `buffer[offsets[i]:offsets[i + 1]]`.

        Raises:
            KeyError: If a sample has no such member.
        """
        return self._reader.flat(indices, extension)

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "_reader"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, skipped=[])
        self._open()
        if self._sizes != state["_sizes"]:
            raise ValueError("shards have changed since the dataset was pickled; make a new TarDataset")
