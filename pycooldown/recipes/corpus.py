"""The training data of a recipe: packed pairs, or documents as tokens. Nothing needs torch before data are read."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pycooldown._files import read_bounded
from pycooldown.data.manifest import Tokenizer, load_manifest
from pycooldown.data.publish import MAX_MANIFEST
from pycooldown.data.token_shards import FORMAT as TOKENS
from pycooldown.recipes.documents import fingerprint, open_tokens
from pycooldown.recipes.schema import Data, Shares

if TYPE_CHECKING:
    from pycooldown.huggingface.batches import Collator, Samples

_OF_DOCUMENTS = ("length", "mode", "intra_document_attention", "vocabulary_size")


@dataclass(frozen=True)
class TokenIds:
    """The properties of a tokenizer that a model needs; ids that it does not have are None."""

    vocabulary_size: int
    pad_id: int | None
    bos_id: int | None
    eos_id: int | None


class Corpus(ABC):
    """Training and validation sequences by domain.

    Attributes:
        data: The recipe's section, with all defaults filled in.
        fingerprint: Hash of the content.
        sizes: Training sequences by domain, in the order of the run.
        length: Maximum tokens of a sequence.
        token_ids: Ids of the tokenizer.
        tokenizer: For packed pairs, turns ids back into text.
    """

    data: Data
    fingerprint: str
    sizes: dict[str, int]
    length: int
    token_ids: TokenIds
    tokenizer: Tokenizer | None = None

    @abstractmethod
    def train(self) -> Any:
        """Return the training sequences, domain after domain."""

    @abstractmethod
    def collator(self, *, translates: bool) -> Collator:
        """Return the collator for the model's inputs. With ``translates`` the model is an encoder-decoder."""

    @abstractmethod
    def _validation_parts(self, domains: Iterable[str]) -> dict[str, Any]: ...

    def validation(self, count: int, domains: Iterable[str] | None = None) -> dict[str, Samples]:
        """Return at most ``count`` evenly spread validation sequences of each domain that has any."""
        from torch.utils.data import Subset

        chosen: dict[str, Samples] = {}
        for domain, dataset in self._validation_parts(self.sizes if domains is None else domains).items():
            places = np.unique(np.linspace(0, len(dataset) - 1, count).astype(np.int64))
            chosen[domain] = Subset(dataset, places.tolist())
        return chosen


class Pairs(Corpus):
    """A folder written by `pycooldown pack`."""

    def __init__(self, data: Data) -> None:
        if given := [name for name in _OF_DOCUMENTS if getattr(data, name) is not None]:
            raise ValueError(
                f"data.{given[0]} is for documents, but {data.path} holds packed pairs; leave it out (max_length cuts "
                "pairs), or use a folder written by `pycooldown tokenize`"
            )
        assert data.path is not None
        self._manifest = load_manifest(Path(data.path))
        self.tokenizer = self._manifest.tokenizer
        self.length = data.max_length or 64
        self.data = replace(data, max_length=self.length)
        self.fingerprint = self._manifest.fingerprint
        self.sizes = _chosen(data, self._manifest.sizes("train"))
        tokenizer = self._manifest.tokenizer
        self.token_ids = TokenIds(tokenizer.vocabulary_size, tokenizer.pad_id, tokenizer.bos_id, tokenizer.eos_id)

    def train(self) -> Any:
        """Return a `TarDataset`."""
        return self._manifest.dataset("train", self.sizes)

    def collator(self, *, translates: bool) -> Collator:
        """Return the collator that cuts and pads pairs, or only their targets for a language model."""
        from pycooldown.huggingface.batches import PackedPairs, PackedText

        return PackedPairs(self.length, self._manifest.tokenizer.pad_id) if translates else PackedText(self.length)

    def _validation_parts(self, domains: Iterable[str]) -> dict[str, Any]:
        return {domain: self._manifest.dataset("validation", [domain]) for domain in domains}


class Tokens(Corpus):
    """Documents in sequences of one length, from a folder of `pycooldown tokenize` or other sources by domain."""

    def __init__(self, data: Data) -> None:
        if data.max_length is not None:
            raise ValueError("data.max_length is for packed pairs, but these data are documents; use data.length")
        mode = data.mode or "concat"
        if mode == "document" and data.intra_document_attention is False:
            raise ValueError(
                "data.intra_document_attention is false, but in mode 'document' every row holds one document only; "
                "leave it out"
            )
        within = data.intra_document_attention is not False
        self.length = data.length or 1024
        self.data = replace(data, length=self.length, mode=mode, intra_document_attention=within)
        columns = ("input_ids", "labels", *(["position_ids"] if within and mode != "document" else []))
        options = {"length": self.length, "mode": mode, "columns": columns}
        found = open_tokens(data, lambda every: list(_chosen(data, every)), options)
        self._dataset, self._validation, self.token_ids = found.train, found.validation, TokenIds(*found.token_ids)
        self.sizes = self._dataset.sizes
        self.fingerprint = fingerprint(data, self._dataset.files, self._validation)

    def train(self) -> Any:
        """Return a `TokenDataset`."""
        return self._dataset

    def collator(self, *, translates: bool) -> Collator:
        """Return the function that stacks sequences.

        Raises:
            ValueError: For an encoder-decoder, because documents have no source side.
        """
        if translates:
            raise ValueError("documents need a decoder; an encoder-decoder needs pairs written by `pycooldown pack`")
        from pycooldown.data.tokens import TokenDataset

        collate: Any = TokenDataset.collate
        return collate  # type: ignore[no-any-return]

    def _validation_parts(self, domains: Iterable[str]) -> dict[str, Any]:
        return {domain: self._validation[domain] for domain in domains if domain in self._validation}


class Cut(Corpus):
    """A share of the training sequences of another corpus, spread evenly over each domain."""

    def __init__(self, whole: Corpus, share: Shares) -> None:
        self._whole, self.data, self.fingerprint = whole, whole.data, whole.fingerprint
        self.length, self.token_ids, self.tokenizer = whole.length, whole.token_ids, whole.tokenizer
        self.sizes = cut_sizes(whole.sizes, share)

    def train(self) -> Any:
        """Return a subset."""
        from torch.utils.data import Subset

        chosen: list[int] = []
        begin = 0
        for size, count in zip(self._whole.sizes.values(), self.sizes.values(), strict=True):
            chosen += (begin + np.arange(count) * size // count).tolist()
            begin += size
        return Subset(self._whole.train(), chosen)

    def collator(self, *, translates: bool) -> Collator:
        """Return the collator of the whole corpus."""
        return self._whole.collator(translates=translates)

    def _validation_parts(self, domains: Iterable[str]) -> dict[str, Any]:
        return self._whole._validation_parts(domains)


def cut_sizes(sizes: Mapping[str, int], share: Shares) -> dict[str, int]:
    """Return a share of each size, rounded.

    Raises:
        ValueError: If a domain is unknown, or no sequence of one is left.
    """
    shares = share if isinstance(share, dict) else dict.fromkeys(sizes, share)
    if unknown := sorted(set(shares) - set(sizes)):
        raise ValueError(f"data.share has {unknown[0]!r}; expected some of {', '.join(sizes)}")
    cut = {domain: round(size * shares.get(domain, 1.0)) for domain, size in sizes.items()}
    if empty := [domain for domain, size in cut.items() if size < 1]:
        raise ValueError(
            f"data.share = {shares[empty[0]]:.4g} leaves nothing of the {sizes[empty[0]]} sequences of {empty[0]!r}; "
            f"expected at least {1 / sizes[empty[0]]:.4g}"
        )
    return cut


def open_corpus(data: Data) -> Corpus:
    """Open the data of a recipe's section ``data``.

    Raises:
        FileNotFoundError: If they do not exist.
        ValueError: If they are damaged, lack a domain, or do not support a given option.
    """
    whole = Tokens(data) if data.path is None or _is_of_tokens(Path(data.path)) else Pairs(data)
    return whole if data.share == 1 else Cut(whole, data.share)


def _is_of_tokens(folder: Path) -> bool:
    path = folder / "manifest.json"
    try:
        raw = json.loads(read_bounded(path, MAX_MANIFEST))
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{path} is missing; expected a folder finished by `pycooldown tokenize` or `pycooldown pack`"
        ) from error
    except (ValueError, RecursionError):
        return False  # the reader of pairs reports the fault
    return isinstance(raw, dict) and raw.get("format") == TOKENS


def _chosen(data: Data, sizes: Mapping[str, Any]) -> dict[str, Any]:
    """Return the recipe's domains, in its order.

    Raises:
        ValueError: If the data lack a domain, or one is named twice.
    """
    if data.domains is None:
        return dict(sizes)
    for domain in data.domains:
        if domain not in sizes:
            raise ValueError(
                f"data.domains has {domain!r}; expected domains of {data.path or 'data.sources'}: {', '.join(sizes)}"
            )
    if len(set(data.domains)) != len(data.domains):
        raise ValueError(f"data.domains has a name twice: {', '.join(data.domains)}")
    return {domain: sizes[domain] for domain in data.domains}
