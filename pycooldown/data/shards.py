"""Map-style access to the samples of tar shards."""

import operator
import os
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from glob import glob
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from pycooldown._extras import require
from pycooldown.data.index import TarReader, load_index

__all__ = ["Skipped", "TarDataset"]


class Skipped(NamedTuple):
    """A sample that cannot be read, or a break beyond which a shard cannot be.

    Attributes:
        shard: Path of the shard.
        offset: Position in bytes of the tar header at fault.
        reason: What is wrong with it.
    """

    shard: str
    offset: int
    reason: str


class TarDataset:
    """The samples of many domains' tar shards, by index: the domains laid end to end in the order of the mapping.

    Within a domain the shards follow in their order, within a shard the samples in theirs, so indices are those of a
    `torch.utils.data.ConcatDataset` and of `pycooldown.DomainBatchSampler`. A sample is a dictionary in webdataset's
    form: `__key__`, `__url__` (the shard's path), `__domain__` and the bytes of each member under its extension.

    The first use of a shard scans it and leaves an index beside it (see `load_index`). Links, directories, devices and
    `__meta__` files are passed over, as webdataset does. Sparse files, repeated extensions and damage are faults. So is
    a file without the zero blocks that end a tar, which webdataset takes for the end of the shard: if it was cut off
    between two members, samples are missing, and members of the last one may be. And so are data behind the zero
    blocks, which webdataset does not read: two tars that were joined by `cat`, for example.

    A dataset can be pickled and used in forked or spawned workers. Shards must not be written to while they are read:
    a shard that was changed or truncated is refused when the next batch is read. If that may happen during the read
    itself, use `mmap=False`: the operating system kills a process that reads a mapped page that its file has lost.

    Args:
        shards: By domain, one or several uncompressed tar files: paths, or patterns with braces (`{000..099}`) or
            wildcards (`*`, `?`, `[...]`), whose matches are sorted by name.
        on_error: `"raise"` refuses shards with faults; `"skip"` leaves the samples out, lists them in `skipped` and
            warns once.
        max_open: How many shards are mapped into memory at a time; no file stays open. Where there are more, those that
            are read most often are mapped, and each read of another one opens its file, which takes some microseconds.
            Pages of mapped shards count as resident memory, though the kernel can take them back.
        mmap: Map shards into memory. With `False` each read opens its file: slower, and safe from shards that shrink.

    Raises:
        ValueError: If a shard has faults and `on_error="raise"`, naming shard and offset; if a domain has no shards, or
            something that is no local path.
        OSError: If a shard cannot be read.
    """

    def __init__(
        self,
        shards: Mapping[str, str | os.PathLike[str] | Iterable[str | os.PathLike[str]]],
        *,
        on_error: Literal["raise", "skip"] = "raise",
        max_open: int = 16_384,
        mmap: bool = True,
    ) -> None:
        if on_error not in ("raise", "skip"):
            raise ValueError(f"on_error = {on_error!r}; expected 'raise' or 'skip'")
        if operator.index(max_open) < 1:
            raise ValueError(f"max_open = {max_open}; expected at least 1 shard")
        if not isinstance(shards, Mapping):
            raise TypeError(f"shards is a {type(shards).__name__}; expected a mapping from domains to paths")
        if not shards:
            raise ValueError("shards is empty; expected at least one domain")
        self.shards = {domain: _paths(domain, paths) for domain, paths in shards.items()}
        self.on_error = on_error
        self.max_open = max_open
        self.mmap = mmap
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
        self._reader = TarReader(self.max_open if self.mmap else 0)
        places = [(domain, path) for domain, paths in self.shards.items() for path in paths]
        sizes: dict[str, list[int]] = {domain: [] for domain in self.shards}
        with ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool:
            for (domain, path), index in zip(places, pool.map(load_index, [path for _, path in places])):
                skipped = [Skipped(path, offset, reason) for _, offset, reason in index.faults]
                if skipped and self.on_error == "raise":
                    raise ValueError(
                        f"{path} at byte {skipped[0].offset}: {skipped[0].reason}; mend the shard, or "
                        "give on_error='skip' to go on without such samples"
                    )
                self.skipped += skipped
                self._reader.add(os.fsencode(path), domain, index)
                sizes[domain].append(len(index))
        self._shard_sizes = sizes

    @property
    def domains(self) -> tuple[str, ...]:
        """Names of the domains, in order."""
        return tuple(self.shards)

    @property
    def sizes(self) -> dict[str, int]:
        """Number of samples by domain."""
        return {domain: sum(sizes) for domain, sizes in self._shard_sizes.items()}

    @property
    def shard_sizes(self) -> dict[str, list[int]]:
        """Number of samples of each shard by domain, in the order of `shards`."""
        return {domain: list(sizes) for domain, sizes in self._shard_sizes.items()}

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
        if self._shard_sizes != state["_shard_sizes"]:
            raise ValueError("shards have changed since the dataset was pickled; make a new TarDataset")


def _paths(domain: str, given: Any) -> list[str]:
    """Return the shards of a domain, patterns expanded."""
    if not isinstance(domain, str):
        raise TypeError(f"shards has the domain {domain!r}, a {type(domain).__name__}; expected a name")
    if isinstance(given, str | bytes | os.PathLike):
        given = [given]
    elif not isinstance(given, Iterable) or isinstance(given, Mapping):
        raise TypeError(f"domain {domain!r} has shards {given!r}; expected a path or a sequence of paths")
    paths: list[str] = []
    for path in given:
        if not isinstance(path, str | bytes | os.PathLike):
            raise TypeError(f"domain {domain!r} has the shard {path!r}, a {type(path).__name__}; expected a path")
        paths += _expand(domain, os.fsdecode(path))
    if not paths:
        raise ValueError(f"domain {domain!r} has no shards: give it some, or leave the domain out")
    return paths


def _expand(domain: str, path: str) -> list[str]:
    """Return the files that a path or pattern stands for; a file that has a pattern's name is taken as it is."""
    if not path:
        raise ValueError(f"domain {domain!r} has an empty path; expected a tar file")
    if os.path.lexists(path):
        return [path]
    if path.startswith("file://"):
        raise ValueError(f"domain {domain!r} has the shard {path!r}; expected a path, without 'file://'")
    if scheme := re.match(r"pipe:|[a-zA-Z][a-zA-Z0-9+.-]+://", path):
        raise ValueError(
            f"domain {domain!r} has the shard {path!r}: TarDataset reads local files at random, {scheme.group()!r} "
            "cannot be; stream it with pycooldown.data.mix, or download it first"
        )
    if "{" in path:
        require("data", "braceexpand")
        from braceexpand import braceexpand

        if (expanded := list(braceexpand(path))) != [path]:
            return [file for one in expanded for file in _expand(domain, one)]
    if any(c in path for c in "*?["):
        if not (matches := set(glob(path))):
            raise FileNotFoundError(f"domain {domain!r}: no file matches the pattern {path!r}")
        return sorted(match for match in matches if match.removesuffix(".idx") not in matches - {match})
    return [path]  # opening it will say what is wrong
