"""From planned sample indices to the tensors of a micro-batch."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import ConcatDataset, Dataset

from pycooldown.sampler import DomainBatchSampler

Collator = Callable[[list[Any]], dict[str, torch.Tensor]]


class Samples(Protocol):
    """A map-style dataset; `__getitems__`, which reads many at once, is used where there is one."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> Any: ...


class WithDomains(Dataset[Any]):
    """A map-style dataset of domains laid end to end whose items are (sample, domain id) pairs; see `collator`."""

    def __init__(self, dataset: Any, sizes: npt.NDArray[np.int64]) -> None:
        self.dataset = dataset
        self._ends = np.cumsum(sizes)

    def __len__(self) -> int:
        return int(self._ends[-1]) if self._ends.size else 0

    def __getitems__(self, indices: list[int]) -> list[tuple[Any, int]]:
        if hasattr(self.dataset, "__getitems__"):
            samples = self.dataset.__getitems__(indices)
        else:
            samples = [self.dataset[i] for i in indices]
        return list(zip(samples, self._domain_ids(indices), strict=True))

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return self.__getitems__([index])[0]

    def _domain_ids(self, indices: Sequence[int]) -> list[int]:
        return np.searchsorted(self._ends, indices, side="right").tolist()  # type: ignore[no-any-return]

    @staticmethod
    def collator(collate: Collator) -> Collator:
        """Collates the samples with ``collate`` and adds ``domain_ids`` (N,) int64."""
        return _CollateWithDomains(collate)


class _CollateWithDomains:  # a class, as workers that are spawned must be able to pickle it
    def __init__(self, collate: Collator) -> None:
        self.collate = collate

    def __call__(self, items: list[tuple[Any, int]]) -> dict[str, torch.Tensor]:
        samples, domain_ids = zip(*items, strict=True)
        return {**self.collate(list(samples)), "domain_ids": torch.tensor(domain_ids, dtype=torch.int64)}


class EvaluationBatches(WithDomains):
    """Evaluation sets of some of a mixture's domains, end to end."""

    def __init__(self, datasets: Mapping[str, Samples], domains: Sequence[str]) -> None:
        names = [name for name in domains if name in datasets]
        sizes = np.array([len(datasets[name]) for name in names], dtype=np.int64)
        if empty := [name for name, size in zip(names, sizes.tolist(), strict=True) if not size]:
            raise ValueError(f"eval_dataset of domain {empty[0]!r} is empty; leave it out")
        chosen: list[Any] = [datasets[name] for name in names]
        super().__init__(ConcatDataset(chosen) if chosen else [], sizes)
        self._positions = [list(domains).index(name) for name in names]

    def _domain_ids(self, indices: Sequence[int]) -> list[int]:
        return [self._positions[i] for i in super()._domain_ids(indices)]

    def batches(self, batch_size: int, rank: int, world_size: int) -> list[list[int]]:
        """This rank's batches: every world_size-th of those over all sets."""
        starts = range(0, len(self), batch_size)
        return [list(range(s, min(s + batch_size, len(self)))) for s in starts][rank::world_size]


class MicroBatches:
    """The batches of a sampler, each cut into ``accumulation`` parts of equal size (to within one)."""

    def __init__(self, sampler: DomainBatchSampler, accumulation: int) -> None:
        self.sampler = sampler
        self.accumulation = accumulation

    def __iter__(self) -> Iterator[list[int]]:
        for batch in self.sampler:
            for part in range(self.accumulation):
                begin, end = (len(batch) * i // self.accumulation for i in (part, part + 1))
                yield batch[begin:end]


class PackedText:
    """Collates samples that `pycooldown pack` wrote into a batch for language modelling on one of their sides.

    Args:
        max_length: longer sequences are cut.
        side: "tgt" or "src".
    """

    def __init__(self, max_length: int, side: str = "tgt") -> None:
        self.max_length = max_length
        self.side = side

    def __call__(self, samples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Gives ``input_ids`` and ``labels`` (N, T) int64, padded on the right to the longest.

        There is no attention mask: attention is causal, so no token attends to the padding behind it, and padding has
        no loss.
        """
        rows = [np.load(io.BytesIO(s[f"{self.side}.npy"]), allow_pickle=False)[: self.max_length] for s in samples]
        longest = max(len(row) for row in rows)
        labels = np.full((len(rows), longest), -100, dtype=np.int64)
        for label, row in zip(labels, rows, strict=True):
            label[: len(row)] = row
        return {"input_ids": torch.from_numpy(np.where(labels < 0, 0, labels)), "labels": torch.from_numpy(labels)}
