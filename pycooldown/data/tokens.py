"""Map-style access to domains of tokens, in sequences of any length."""

from __future__ import annotations

import operator
import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from pycooldown._core import TokenReader
from pycooldown.data.byte_ranges import ByteRanges, Spans, StoreRanges
from pycooldown.data.stores import StoredObject
from pycooldown.data.token_file import MappedEnds, map_file
from pycooldown.data.token_index import Concatenated, Documents, Pieces
from pycooldown.data.token_opening import Source, open_sources
from pycooldown.data.token_ranges import StoredTokens

if TYPE_CHECKING:
    import torch

__all__ = ["TokenDataset"]

MODES = ("concat", "document", "best_fit")
LONG = ("split", "truncate", "drop", "raise")
COLUMNS = ("input_ids", "position_ids", "segment_ids", "labels")  # by default


class TokenDataset:
    """Sequences of `length` tokens of many domains, by index: the domains one after another, in the mapping's order.

    Within a domain files keep their order. So indices are those of a `torch.utils.data.ConcatDataset` and of
    `pycooldown.DomainBatchSampler`. `sizes` is what a `Mixture` takes: since all sequences have one length, a mixture
    of sequences is a mixture of tokens. A mode decides what a sequence, a row of a batch, is:

    - `"concat"`: The domain is one stream of tokens; sequence i holds tokens [i length, (i + 1) length). An epoch has
      every token once.
    - `"document"`: One document, padded. For fine-tuning.
    - `"best_fit"`: Whole documents, packed by best fit decreasing (Ding et al., ICML 2024, "Fewer Truncations Improve
      Language Modeling"), padded. Which documents share a row follows from their lengths alone.

    `dataset.__getitems__(indices)`, which loaders call, gives a dictionary of arrays of shape (B, length):

    - `input_ids`: Token ids, then `pad_id`.
    - `position_ids`: int32, place of the token in the part of its document that is in the row, from 0; 0 in padding.
    - `segment_ids`: int32, number of that part in the row, from 1; 0 in padding.
    - `labels`: The token itself where the model shall predict it from the position before. Hugging Face models, which
      shift labels themselves, expect this. -100 at the first token of each row and document and in padding.
    - `shift_labels`, only if requested: the token after each position. At a row's end this is the next row's first
    token.
      -100 at the last token of a document and in padding. Hugging Face models use it instead of `labels`, if both
      exist.
    - `domain_ids`, only if requested: int64 of shape (B,), positions in `domains`. `MixtureTrainer` adds its own.
    A loader makes tensors of it with the function `collate`::

        DataLoader(dataset, batch_sampler=sampler, collate_fn=TokenDataset.collate)

    `dataset[i]` gives the same for one sequence, without the batch dimension.

    Files are mapped into memory, not read; a map holds no file open. A dataset can be pickled and used in forked or
    spawned workers, which share the pages. Files must not be changed while they are in use. Each batch checks whether
    the files it reads have changed since they were mapped, and raises an `OSError` if so, also in the middle of a read.

    Shards may all be in object stores (`s3://`, `gs://`, `az://`, `http(s)://`; extra `remote`). Then the tokens of a
    batch are fetched together, by ranges (see `StoreRanges`), and the ends of documents are copied once into the user's
    cache folder. Making a data set does not read from stores in this process, so workers may be forked, unless the
    process has read sequences before. Then let workers be spawned.

    Args:
        sources: A folder written by `pycooldown tokenize`, also in a store. Or by domain, a list or one of: paths or
            URLs of shards (`.tar`; URLs also with braces and, except for http, with wildcards), and files opened by
            `pycooldown.data.token_sources`.
        length: Tokens in a sequence.
        mode: What a sequence is.
        split: The part of a folder to use, "train" or "validation"; sources by domain have none.
        domains: The domains to use, in this order; by default all, in the order of the mapping or the folder's
            manifest.
        columns: The arrays to fill; `input_ids` must be among them.
        cross_document_labels: In mode "concat", whether to predict the first token of a document from the last one of
            the document before.
        remainder: In mode "concat", whether the last tokens of a domain, fewer than `length`, form a padded sequence
            ("pad", the default) or are left out ("drop").
        long_documents: In the other modes, whether documents of more than `length` tokens are cut into pieces of that
            length and a rest ("split", the default), cut off ("truncate"), left out ("drop") or refused ("raise").
        pad_id: Token id for padding. It has no label, and with causal attention nothing attends to it.
        dtype: Type of token ids and labels, int64 or int32.
        vocabulary_size: Number of token ids. Larger and negative ids are refused when they are read. A folder knows its
            own number.
        ranges: Reads the bytes of shards in stores, for example a cache; see `ByteRanges`. By default a `StoreRanges`.

    Raises:
        OSError: If a file cannot be read.
        ValueError: If a file is damaged, a domain has no sequence, or an argument does not apply to the mode.
    """

    def __init__(
        self,
        sources: str | os.PathLike[str] | Mapping[str, Source | Iterable[Source]],
        length: int = 1024,
        mode: Literal["concat", "document", "best_fit"] = "concat",
        split: str = "train",
        *,
        domains: Collection[str] | None = None,
        columns: Collection[str] = COLUMNS,
        cross_document_labels: bool = False,
        remainder: Literal["pad", "drop"] | None = None,
        long_documents: Literal["split", "truncate", "drop", "raise"] | None = None,
        pad_id: int = 0,
        dtype: npt.DTypeLike = np.int64,
        vocabulary_size: int | None = None,
        ranges: ByteRanges | None = None,
    ) -> None:
        self.length = operator.index(length)
        self.mode = mode
        self.columns = tuple(columns)
        self.cross_document_labels = cross_document_labels
        self.pad_id = operator.index(pad_id)
        self.dtype = np.dtype(dtype)
        self._check_options(remainder, long_documents)
        self.files, self.vocabulary_size = open_sources(sources, split, domains, vocabulary_size)
        self._ranges = ranges
        if self.vocabulary_size is not None and self.pad_id >= self.vocabulary_size:
            raise ValueError(f"pad_id = {pad_id}; expected one of the {self.vocabulary_size} ids")
        for file in (file for files in self.files.values() for file in files):
            file.check()
        self._index: Concatenated | Documents
        if mode == "concat":
            self._index = Concatenated(self.files, self.length, drop_remainder=remainder == "drop")
        else:
            self._index = Documents(self.files, self.length, long_documents or "split", pack=mode == "best_fit")
        self._map()

    def _check_options(self, remainder: str | None, long_documents: str | None) -> None:
        def expect(holds: bool, problem: str) -> None:
            if not holds:
                raise ValueError(problem)

        concat = self.mode == "concat"
        expect(self.mode in ("concat", "document", "best_fit"), f"mode = {self.mode!r}; expected one of {MODES}")
        expect(1 <= self.length < 1 << 31, f"length = {self.length}; expected at least 1 token in a sequence")
        expect(self.dtype in (np.int64, np.int32), f"dtype = {self.dtype}; expected int64 or int32")
        expect(0 <= self.pad_id < 1 << 31, f"pad_id = {self.pad_id}; expected a token id")
        known = (*COLUMNS, "shift_labels", "domain_ids")
        expect(
            {"input_ids"} <= set(self.columns) <= set(known),
            f"columns = {self.columns}; expected some of {known}, input_ids among them",
        )
        if self.cross_document_labels:
            expect(
                concat,
                f"cross_document_labels = True in mode {self.mode!r}; expected mode 'concat', where documents follow "
                "each other",
            )
            labels = {"labels", "shift_labels"} & set(self.columns)
            expect(bool(labels), f"cross_document_labels needs labels, but columns = {self.columns}; add 'labels'")
        expect(remainder in (None, "pad", "drop"), f"remainder = {remainder!r}; expected 'pad' or 'drop'")
        expect(long_documents in (None, *LONG), f"long_documents = {long_documents!r}; expected one of {LONG}")
        expect(
            concat or remainder is None,
            f"remainder = {remainder!r} is for mode 'concat'; for mode {self.mode!r} pass long_documents",
        )
        expect(
            not concat or long_documents is None,
            f"long_documents = {long_documents!r}, but mode 'concat' cuts all documents; leave it out",
        )

    def _map(self) -> None:
        files = [file for files in self.files.values() for file in files]
        self._limit = min(self.vocabulary_size or 1 << 63, np.iinfo(self.dtype).max + 1)
        self._reader, self._stored = TokenReader(), None
        if any(file.version for file in files):
            ahead = "shift_labels" in self.columns
            whole = self.mode != "concat"
            self._stored = StoredTokens(files, self.length, whole_documents=whole, looks_ahead=ahead)
            return
        for file in files:
            self._reader.add(
                os.fsencode(file.path),
                bytes=map_file(file.path, file.size),
                dtype=file.dtype.name,
                vocabulary_size=self._limit,
                block_offsets=file.block_offsets,
                block_ends=file.block_ends,
                ends=file.ends.array() if isinstance(file.ends, MappedEnds) else file.ends,
                ends_path=os.fsencode(file.ends.path) if isinstance(file.ends, MappedEnds) else None,
            )

    @property
    def domains(self) -> tuple[str, ...]:
        """Names of the domains, in order."""
        return self._index.domains

    @property
    def sizes(self) -> dict[str, int]:
        """Number of sequences by domain."""
        return dict(self._index.sizes)

    @property
    def tokens(self) -> dict[str, int]:
        """Number of tokens in the sequences of each domain, without padding: the tokens of one epoch."""
        return dict(self._index.tokens)

    @property
    def padding(self) -> dict[str, float]:
        """Share of padding in the sequences of each domain, the cost of packing."""
        return {domain: 1 - self.tokens[domain] / (size * self.length) for domain, size in self.sizes.items()}

    @property
    def left_out(self) -> dict[str, int]:
        """Number of tokens of each domain that are in no sequence, because of `remainder` or `long_documents`."""
        totals = np.diff(self._index.token_bounds).tolist()
        return {domain: total - self.tokens[domain] for domain, total in zip(self.domains, totals)}

    def __len__(self) -> int:
        return int(self._index.bounds[-1])

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {name: array[0] for name, array in self.__getitems__([operator.index(index)]).items()}

    def __getitems__(self, indices: Sequence[int] | npt.NDArray[np.integer[Any]]) -> dict[str, npt.NDArray[Any]]:
        pieces = self._pieces(indices)
        reader, places = self._reader, dict(zip(("pieces", "begins", "limits"), pieces))
        if self._stored is not None:
            reader, places = self._stored.read(pieces, self.ranges, self._limit)
        dtypes = {"position_ids": np.int32, "segment_ids": np.int32}
        batch: dict[str, npt.NDArray[Any]] = {
            name: np.empty((len(pieces.domain_ids), self.length), dtypes.get(name, self.dtype))
            for name in self.columns
            if name != "domain_ids"
        }
        reader.fill(
            **places,
            whole_documents=self.mode != "concat",
            across_documents=self.cross_document_labels,
            pad_id=self.pad_id,
            input_ids=batch["input_ids"],
            position_ids=batch.get("position_ids"),
            segment_ids=batch.get("segment_ids"),
            labels=batch.get("labels"),
            shift_labels=batch.get("shift_labels"),
        )
        if "domain_ids" in self.columns:
            batch["domain_ids"] = pieces.domain_ids
        return batch

    @property
    def objects(self) -> Sequence[StoredObject]:
        """The shards in stores, by the numbers that `locate` returns and `ByteRanges` takes; empty for files."""
        return self._stored.objects if self._stored is not None else ()

    @property
    def ranges(self) -> ByteRanges:
        """The reader of bytes of shards in stores; it can be replaced."""
        if self._ranges is None:
            self._ranges = StoreRanges(self.objects)
        return self._ranges

    @ranges.setter
    def ranges(self, ranges: ByteRanges) -> None:
        self._ranges = ranges

    def locate(self, indices: Sequence[int] | npt.NDArray[np.integer[Any]]) -> Spans:
        """Return the bytes of `objects` that sequences need, in their order, without reading any; none for files."""
        pieces = self._pieces(indices)
        return self._stored.locate(pieces) if self._stored is not None else Spans(*np.empty((3, 0), np.int64))

    def _pieces(self, indices: Sequence[int] | npt.NDArray[np.integer[Any]]) -> Pieces:
        wanted = np.asarray(indices)
        if wanted.ndim != 1 or (wanted.dtype.kind not in "iu" and wanted.size):
            raise TypeError(f"indices are {wanted.dtype} of shape {wanted.shape}; expected a list of integers")
        if wanted.size and not -len(self) <= int(wanted.min()) <= int(wanted.max()) < len(self):
            wrong = next(index for index in wanted.tolist() if not -len(self) <= index < len(self))
            raise IndexError(f"index {wrong} is out of range: the dataset has {len(self)} sequences")
        wanted = wanted.astype(np.int64)  # after the check, because large unsigned numbers would become negative
        return self._index.pieces(np.where(wanted < 0, wanted + len(self), wanted))

    @staticmethod
    def collate(batch: Mapping[str, npt.NDArray[Any]] | Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        """Make tensors from a batch, or from a list of single sequences; for loaders' `collate_fn`."""
        from torch.utils.data import default_collate, default_convert

        if isinstance(batch, Mapping):
            return default_convert(dict(batch))  # type: ignore[no-any-return,no-untyped-call]
        return default_collate(list(batch))  # type: ignore[no-any-return]

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key not in ("_reader", "_stored")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._map()
