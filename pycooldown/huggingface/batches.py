"""From planned sample indices to the tensors of a micro-batch."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import ConcatDataset, DataLoader, Dataset
from transformers import TrainingArguments

from pycooldown.sampling.sampler import DomainBatchSampler

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
            if isinstance(samples, Mapping):  # a batch of arrays, as TokenDataset makes
                samples = [{name: array[i] for name, array in samples.items()} for i in range(len(indices))]
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


def seed_micro_batch(seed: int, step: int, place: int) -> None:
    """Starts torch's generators anew, so that dropout depends on the place of a micro-batch and on no other's.

    Args:
        seed: of the run.
        step: optimizer step.
        place: number of the micro-batch within the global batch, counted through the ranks.
    """
    torch.manual_seed(int(np.random.SeedSequence([seed, step, place]).generate_state(1)[0]))


def load(
    dataset: WithDomains, batches: Iterable[list[int]], collate: Collator, args: TrainingArguments
) -> DataLoader[Any]:
    """A loader of these batches, with ``domain_ids``, as Trainer's arguments want it."""
    workers = args.dataloader_num_workers
    return DataLoader(
        dataset,
        batch_sampler=batches,
        collate_fn=WithDomains.collator(collate),
        num_workers=workers,
        pin_memory=args.dataloader_pin_memory and torch.cuda.is_available(),
        persistent_workers=False,
        prefetch_factor=args.dataloader_prefetch_factor if workers else None,
        # Workers' seeds come from here and not from the global generator, whose state a resumed run restores.
        generator=torch.Generator().manual_seed(args.seed),
    )


class PackedText:
    """Collates samples that `pycooldown pack` wrote into a batch for language modelling on their target side.

    Args:
        max_length: longer sequences are cut.
    """

    def __init__(self, max_length: int) -> None:
        self.max_length = max_length

    def __call__(self, samples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Gives ``input_ids`` and ``labels`` (N, T) int64, padded on the right to the longest.

        There is no attention mask: attention is causal, so no token attends to the padding behind it, and padding has
        no loss.
        """
        labels = _side(samples, "tgt", self.max_length)
        return {"input_ids": labels.clamp(min=0), "labels": labels}


class PackedPairs:
    """Collates samples that `pycooldown pack` wrote into a batch for translation.

    Args:
        max_length: longer sequences are cut, on either side.
        pad_id: fills up the inputs.
    """

    def __init__(self, max_length: int, pad_id: int) -> None:
        self.max_length = max_length
        self.pad_id = pad_id

    def __call__(self, samples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Gives int64 tensors, padded on the right to the longest.

        ``input_ids`` and ``attention_mask`` (N, S) are for the encoder, ``decoder_input_ids`` (N, T) is the target
        without its last token and ``labels`` (N, T) the target without its first.
        """
        source, target = (_side(samples, side, self.max_length) for side in ("src", "tgt"))
        fill = torch.tensor(self.pad_id)
        return {
            "input_ids": torch.where(source < 0, fill, source),
            "attention_mask": (source >= 0).long(),
            "decoder_input_ids": torch.where(target[:, :-1] < 0, fill, target[:, :-1]),
            "labels": target[:, 1:].contiguous(),
        }


def collator(family: str, max_length: int, pad_id: int) -> Collator:
    """What collates packed samples for a recipe's model family."""
    return PackedPairs(max_length, pad_id) if family == "marian" else PackedText(max_length)


def packed_ids(sample: dict[str, Any], side: str) -> npt.NDArray[Any]:
    """The token ids of one side, "src" or "tgt", of a sample that `pycooldown pack` wrote."""
    ids: npt.NDArray[Any] = np.load(io.BytesIO(sample[f"{side}.npy"]), allow_pickle=False)
    return ids


def _side(samples: list[dict[str, Any]], side: str, max_length: int) -> torch.Tensor:
    """Token ids (N, T) of one side of packed samples, -100 behind their ends."""
    rows = [packed_ids(sample, side)[:max_length] for sample in samples]
    ids = np.full((len(rows), max(len(row) for row in rows)), -100, dtype=np.int64)
    for line, row in zip(ids, rows, strict=True):
        line[: len(row)] = row
    return torch.from_numpy(ids)
