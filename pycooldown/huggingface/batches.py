"""Turn planned sample indices into the tensors of a micro-batch."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from tokenize import TokenError
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import DataLoader, Dataset, get_worker_info
from transformers import TrainingArguments

from pycooldown.huggingface.micro_batches import SeededBatch
from pycooldown.huggingface.sources import EndToEnd, read_items
from pycooldown.huggingface.sources import Samples as Samples

Collator = Callable[[list[Any]], dict[str, torch.Tensor]]

_NPY_PREAMBLE = len(np.lib.format.MAGIC_PREFIX) + 4  # bytes before the header: magic, version and the header's length


class DomainSample(NamedTuple):
    """A sample and the position of its domain."""

    sample: Any
    domain_id: int


class WithDomains(Dataset[DomainSample]):
    """A map-style dataset of domains laid end to end whose items are (sample, domain id) pairs; see `collator`.

    Args:
        dataset: The samples.
        sizes: (K,) samples of each domain.

    Raises:
        ValueError: If the dataset has another length than all domains together.
    """

    def __init__(self, dataset: Any, sizes: npt.NDArray[np.int64]) -> None:
        if len(dataset) != np.sum(sizes):
            raise ValueError(f"the dataset has {len(dataset)} samples, but sizes add up to {np.sum(sizes)}")
        self.dataset = dataset
        self._ends = np.cumsum(sizes)

    @property
    def ends(self) -> npt.NDArray[np.int64]:
        """Where each domain ends, (K,)."""
        return self._ends

    def __len__(self) -> int:
        return int(self._ends[-1]) if self._ends.size else 0

    def __getitems__(self, indices: list[int]) -> list[DomainSample]:
        """Return many items with one read. A worker first takes the seed of its micro-batch, if it has one."""
        if isinstance(indices, SeededBatch) and get_worker_info() is not None:
            indices.seed_generators()
        samples = read_items(self.dataset, indices)
        return [DomainSample(*pair) for pair in zip(samples, self._domain_ids(indices), strict=True)]

    def __getitem__(self, index: int) -> DomainSample:
        return self.__getitems__([index])[0]

    def _domain_ids(self, indices: Sequence[int]) -> list[int]:
        return np.searchsorted(self._ends, indices, side="right").tolist()  # type: ignore[no-any-return]

    @staticmethod
    def collator(collate: Collator) -> Collator:
        """Return a function that collates the samples with ``collate`` and adds ``domain_ids`` (N,) int64.

        ``domain_ids`` that ``collate`` returns itself are kept: packed rows, for example, have one per token (N, T).
        Padding-free collators put all samples with ``input_ids`` into one row. Then the domain of each token (1, T) is
        added. Samples without a domain are collated unchanged.
        """
        return collate if isinstance(collate, _CollateWithDomains) else _CollateWithDomains(collate)


class _CollateWithDomains:  # a class, as workers that are spawned must be able to pickle it
    def __init__(self, collate: Collator) -> None:
        self.collate = collate

    def __call__(self, items: list[Any]) -> dict[str, torch.Tensor]:
        if not isinstance(items[0], DomainSample):
            return self.collate(items)
        samples, domain_ids = zip(*items, strict=True)
        batch = self.collate(list(samples))
        if "domain_ids" in batch:
            _check_ids(batch["domain_ids"], domain_ids)
            return batch
        return {"domain_ids": _by_row(torch.tensor(domain_ids, dtype=torch.int64), samples, batch), **batch}


def _check_ids(given: torch.Tensor, domain_ids: Sequence[int]) -> None:
    """Raise ValueError if a collator's ids, one per sample in any order, are not the domains of these samples."""
    if given.dim() == 1 and len(given) == len(domain_ids) and sorted(given.tolist()) != sorted(domain_ids):
        raise ValueError(
            f"the data_collator returns domain_ids = {given.tolist()[:8]} for samples of the domains "
            f"{list(domain_ids[:8])}, counted in the order of the mixture's; rename the column domain_ids, or leave it "
            "out, as the trainer adds these ids"
        )


def _by_row(domain_ids: torch.Tensor, samples: Sequence[Any], batch: Mapping[str, Any]) -> torch.Tensor:
    """Return domain ids (N,) of samples in the batch's shape: unchanged, or one per token if samples share one row."""
    rows = next((batch[name] for name in ("labels", "input_ids") if batch.get(name) is not None), domain_ids)
    if len(rows) == len(domain_ids):
        return domain_ids
    lengths = [len(s["input_ids"]) if isinstance(s, Mapping) and "input_ids" in s else 0 for s in samples]
    if len(rows) == 1 and sum(lengths) == rows.shape[1]:
        return domain_ids.repeat_interleave(torch.tensor(lengths)).unsqueeze(0)
    raise ValueError(
        f"the data_collator makes rows of shape {tuple(rows.shape)} of {len(domain_ids)} samples, so that the domains "
        "of tokens are not known; let it return domain_ids of the shape of labels"
    )


class EvaluationBatches(WithDomains):
    """Evaluation data of some of a mixture's domains, in the order in which they are given.

    Args:
        dataset: The samples.
        names: The domain of each sample.
        domains: All domains of the mixture, in order.

    Raises:
        ValueError: If a domain is not in the mixture.
    """

    def __init__(self, dataset: Any, names: Sequence[str], domains: Sequence[str]) -> None:
        positions = {name: i for i, name in enumerate(domains)}
        if unknown := sorted(set(names) - set(positions)):
            raise ValueError(f"eval_dataset names {unknown[0]!r}; expected domains of the mixture")
        super().__init__(dataset, np.array([len(names)]))
        self._positions = np.array([positions[name] for name in names])

    @classmethod
    def by_domain(cls, datasets: Mapping[str, Samples], domains: Sequence[str]) -> EvaluationBatches:
        """Return the datasets of domains, by name, end to end.

        Raises:
            ValueError: If one is empty, or its domain is not in the mixture.
        """
        if empty := [name for name, part in datasets.items() if not len(part)]:
            raise ValueError(f"eval_dataset of domain {empty[0]!r} is empty; leave it out")
        names = [name for name, part in datasets.items() for _ in range(len(part))]
        return cls(EndToEnd(datasets), names, domains)

    def _domain_ids(self, indices: Sequence[int]) -> list[int]:
        return self._positions[np.asarray(indices)].tolist()  # type: ignore[no-any-return]


def load(
    dataset: WithDomains, batches: Iterable[list[int]], collate: Collator, args: TrainingArguments
) -> DataLoader[Any]:
    """Return a loader of these batches that adds ``domain_ids`` and follows Trainer's loader arguments."""
    workers = args.dataloader_num_workers
    return DataLoader(
        dataset,
        batch_sampler=batches,
        collate_fn=WithDomains.collator(collate),
        num_workers=workers,
        pin_memory=args.dataloader_pin_memory and torch.cuda.is_available(),
        persistent_workers=args.dataloader_persistent_workers and workers > 0,
        prefetch_factor=args.dataloader_prefetch_factor if workers else None,
        multiprocessing_context=getattr(args, "dataloader_multiprocessing_context", None) if workers else None,
        # The global generator is that of training.
        generator=torch.Generator().manual_seed(args.seed),
    )


class PackedText:
    """A collator of samples written by `pycooldown pack`, for language modelling on their target side.

    Args:
        max_length: Tokens at which longer sequences are cut.
    """

    def __init__(self, max_length: int) -> None:
        self.max_length = max_length

    def __call__(self, samples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Return ``input_ids`` and ``labels`` (N, T) int64, padded on the right to the longest.

        There is no attention mask: attention is causal, so no token attends to the padding behind it, and padding has
        no loss.
        """
        labels = _side(samples, "tgt", self.max_length)
        return {"input_ids": labels.clamp(min=0), "labels": labels}


class PackedPairs:
    """A collator of samples written by `pycooldown pack`, for translation.

    Args:
        max_length: Tokens at which longer sequences are cut, on both sides.
        pad_id: Token id that pads the inputs.
    """

    def __init__(self, max_length: int, pad_id: int) -> None:
        self.max_length = max_length
        self.pad_id = pad_id

    def __call__(self, samples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Return int64 tensors, padded on the right to the longest.

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


def packed_ids(sample: dict[str, Any], side: str) -> npt.NDArray[Any]:
    """Return the token ids of one side, "src" or "tgt", of a sample written by `pycooldown pack`, read-only.

    Raises:
        ValueError: If the sample's file is damaged, or not a file of token ids.
    """
    file: bytes = sample[name := f"{side}.npy"]
    # Files of version 1.0, which `pack` writes, have the header's length here.
    begin = _NPY_PREAMBLE + int.from_bytes(file[_NPY_PREAMBLE - 2 : _NPY_PREAMBLE], "little")
    try:
        count, dtype = _npy_layout(file[:begin])
        if len(file) != begin + count * dtype.itemsize:
            raise ValueError(f"{len(file) - begin} bytes after the header; expected {count} ids of {dtype}")
        return np.frombuffer(file, dtype, count, begin)
    except (ValueError, TypeError, SyntaxError, TokenError) as error:  # NumPy reads headers as Python
        raise ValueError(f"{name} of a sample has no token ids as `pycooldown pack` writes them: {error}") from error


@lru_cache(maxsize=4096)
def _npy_layout(header: bytes) -> tuple[int, np.dtype[Any]]:
    """Return the number and dtype of the ids behind the header of an .npy file.

    NumPy evaluates headers as Python text, which takes longer than all else of a short sample. The same few headers
    recur, one for each number of ids.
    """
    file = io.BytesIO(header)
    if (version := np.lib.format.read_magic(file)) != (1, 0):
        raise ValueError(f"version {version} of .npy; expected (1, 0)")
    shape, _, dtype = np.lib.format.read_array_header_1_0(file)
    if len(shape) != 1 or dtype.kind not in "iu":
        raise ValueError(f"shape {shape}, dtype {dtype}; expected one dimension of integers")
    return shape[0], dtype


def _side(samples: list[dict[str, Any]], side: str, max_length: int) -> torch.Tensor:
    """Return token ids (N, T) of one side of packed samples, padded with -100."""
    rows = [packed_ids(sample, side)[:max_length] for sample in samples]
    ids = np.full((len(rows), max(len(row) for row in rows)), -100, dtype=np.int64)
    for line, row in zip(ids, rows, strict=True):
        line[: len(row)] = row
    return torch.from_numpy(ids)
