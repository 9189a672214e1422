"""Arrange training data as domains end to end, from datasets by domain or from one with a column of domains."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from torch.utils.data import Dataset

from pycooldown.schedules import Schedule

_SPLITS = {"train", "validation", "valid", "val", "dev", "test"}  # names that data sets give their parts


class Samples(Protocol):
    """A map-style dataset. Its `__getitems__`, which reads many samples at once, is used if it exists."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> Any: ...


class EndToEnd:
    """Map-style datasets of domains, concatenated.

    Args:
        datasets: One dataset per domain, by name, in order.
    """

    def __init__(self, datasets: Mapping[str, Samples]) -> None:
        self.datasets = dict(datasets)
        self._parts = list(self.datasets.values())
        self._starts = np.cumsum([0, *(len(part) for part in self._parts)])

    @property
    def sizes(self) -> dict[str, int]:
        """Samples of each domain."""
        return {domain: len(part) for domain, part in self.datasets.items()}

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, index: int) -> Any:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Any]:
        """Return samples. A part that can read many at once is read once."""
        places = np.asarray(indices, dtype=np.int64)
        if places.size and not 0 <= places.min() <= places.max() < len(self):
            raise IndexError(f"indices {places.min()} to {places.max()}; expected 0 to {len(self) - 1}")
        part_of = np.searchsorted(self._starts[1:], places, side="right")
        samples: list[Any] = [None] * len(places)
        for number in np.unique(part_of).tolist():
            where = np.flatnonzero(part_of == number)
            read = read_items(self._parts[number], (places[where] - self._starts[number]).tolist())
            for place, sample in zip(where.tolist(), read, strict=True):
                samples[place] = sample
        return samples


def read_items(dataset: Any, indices: list[int]) -> list[Any]:
    """Return samples of a map-style dataset, with a single call if the dataset allows it."""
    if hasattr(dataset, "__getitems__"):
        samples = dataset.__getitems__(indices)
        if isinstance(samples, Mapping):  # a batch of arrays, as TokenDataset returns
            return [{name: array[i] for name, array in samples.items()} for i in range(len(indices))]
        return list(samples)
    return [dataset[i] for i in indices]


def by_domain(dataset: Any, column: str | None) -> dict[str, Samples] | None:
    """Return a dataset for each domain, or None if only the schedule knows the domains.

    Args:
        dataset: A mapping (such as `datasets.DatasetDict`) by domain, or a `datasets.Dataset`.
        column: The column of a `datasets.Dataset` that has each sample's domain.

    Raises:
        ValueError: If there is no such column, a row has no domain in it, or the mapping is by split.
    """
    if isinstance(dataset, Mapping):
        if column is not None:
            raise ValueError(
                f"domain_column = {column!r}, but the datasets are given by domain already; leave domain_column out"
            )
        if "train" in dataset and set(dataset) <= _SPLITS:
            raise ValueError(
                f"the dataset has the splits {sorted(dataset)}, which are no domains; pass one split, with "
                "domain_column=..., or a dataset for each domain by name"
            )
        return {str(domain): part for domain, part in dataset.items()}
    if column is None:
        return None
    names = getattr(dataset, "column_names", None)
    if names is None or column not in names:
        raise ValueError(
            f"domain_column = {column!r}; expected a column of a datasets.Dataset, got {type(dataset).__name__}"
            + (f" with {names}" if names else "")
        )
    labels, positions = np.unique(np.array(names_of_rows(dataset, column)), return_inverse=True)
    return {
        str(label): dataset.select(np.flatnonzero(positions == number)) for number, label in enumerate(labels.tolist())
    }


def names_of_rows(dataset: Any, column: str) -> list[str]:
    """Return the domain of each row of a `datasets.Dataset`.

    Raises:
        ValueError: If a row has none.
    """
    values = list(dataset[column])
    if None in values:
        raise ValueError(f"row {values.index(None)} has no {column!r}; expected the name of a domain in each row")
    to_name: Callable[[Any], str] = getattr(dataset.features[column], "int2str", str)
    return [to_name(value) for value in values]


def known_sizes(dataset: Any) -> dict[str, int] | None:
    """Return the samples of each domain, in order, if a dataset of domains laid end to end knows them."""
    sizes = getattr(dataset, "sizes", None)
    return {str(domain): int(size) for domain, size in sizes.items()} if isinstance(sizes, Mapping) else None


def lay_out(dataset: Any, domains: Sequence[str], column: str | None = None) -> Any:
    """Return a dataset of domains in this order, from what `by_domain` accepts, a list in order, or an end-to-end one.

    Raises:
        TypeError: If it is no map-style dataset.
        ValueError: If the domains are not those of the data.
    """
    if isinstance(dataset, EndToEnd):
        parts: dict[str, Samples] | None = dataset.datasets
    elif isinstance(dataset, (list, tuple)) and dataset and all(_is_dataset(part) for part in dataset):
        if len(dataset) != len(domains):
            raise ValueError(
                f"train_dataset lists {len(dataset)} datasets; expected one for each of {len(domains)} domains"
            )
        parts = dict(zip(domains, dataset, strict=True))
    else:
        parts = by_domain(dataset, column)
    if parts is None:
        if not (hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")):
            raise TypeError(
                f"train_dataset is a {type(dataset).__name__}; expected map-style datasets, whose samples can be drawn "
                "in any order; use pycooldown.data.mix for streams"
            )
        return dataset
    if differ := sorted(set(parts) ^ set(domains)):
        where = "train_dataset" if differ[0] in parts else "the schedule"
        raise ValueError(f"domain {differ[0]!r} is only in {where}; expected the same domains in both")
    return EndToEnd({domain: parts[domain] for domain in domains})


def resolve(schedule: Schedule | Callable[[dict[str, int]], Schedule], sizes: dict[str, int] | None) -> Schedule:
    """Return the schedule, made from the domains' sizes if it is a function of them.

    Raises:
        TypeError: If it is neither a schedule nor a function that returns one.
        ValueError: If it is a function but the sizes are not known from the data.
    """
    made: Any = schedule
    if not isinstance(schedule, Schedule) and callable(schedule):
        if sizes is None:
            raise ValueError(
                "schedule is a function of the domains' sizes, but this train_dataset does not know them; pass "
                "{domain: dataset}, or a datasets.Dataset and domain_column"
            )
        made = schedule(sizes)
    if not isinstance(made, Schedule):
        raise TypeError(
            f"schedule is a {type(made).__name__}; expected one from pycooldown.schedules or pycooldown.adaptive, "
            "or a function of {domain: size} that returns one"
        )
    return made


def _is_dataset(part: Any) -> bool:
    return isinstance(part, Dataset) or hasattr(
        part, "column_names"
    )  # a list may also hold samples instead of datasets
