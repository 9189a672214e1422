"""Compute which tokens each sequence of a `TokenDataset` has."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from pycooldown.data.token_file import TokenFile
from pycooldown.mixture import Integers

__all__ = ["Concatenated", "Documents", "Pieces"]

Files = Mapping[str, Sequence[TokenFile]]


class Pieces(NamedTuple):
    """The pieces that fill rows: row k from pieces [bounds[k], bounds[k + 1]), one after another.

    Positions are tokens from the start of the first domain, counted over all domains.
    """

    bounds: Integers  # rows + 1
    begins: Integers  # of each piece
    limits: Integers  # where the domain of each piece ends
    domain_ids: Integers  # of each row


class _Domains:
    """Domains one after another, in tokens and in sequences."""

    def __init__(self, files: Files) -> None:
        self.domains = tuple(files)
        totals = [sum(file.tokens for file in domain) for domain in files.values()]
        self.token_bounds = np.cumsum([0, *totals], dtype=np.int64)

    def close(self, sizes: Iterable[int], tokens: Iterable[int], why: str) -> None:
        """Set the number of sequences, and of tokens in them, by domain."""
        self.sizes = dict(zip(self.domains, sizes))
        self.tokens = dict(zip(self.domains, tokens))
        self.bounds = np.cumsum([0, *self.sizes.values()], dtype=np.int64)
        for domain, size in self.sizes.items():
            if not size:
                raise ValueError(f"domain {domain!r} has no sequence: {why}; leave it out of domains")

    def domain_ids(self, indices: Integers) -> Integers:
        return np.searchsorted(self.bounds, indices, "right") - 1


class Concatenated(_Domains):
    """Sequences that follow each other and ignore document ends. They take no memory.

    Args:
        files: Files by domain.
        length: Tokens in a sequence.
        drop_remainder: Whether to leave out the last tokens of a domain, fewer than `length`. Otherwise they form a
            sequence too.
    """

    def __init__(self, files: Files, length: int, *, drop_remainder: bool) -> None:
        super().__init__(files)
        self.length = length
        totals = np.diff(self.token_bounds)
        sizes = totals // length if drop_remainder else -(-totals // length)
        tokens = np.minimum(sizes * length, totals)
        least = f"{length} tokens, with remainder='drop'" if drop_remainder else "a token"
        self.close(sizes.tolist(), tokens.tolist(), f"it does not have {least}")

    def pieces(self, indices: Integers) -> Pieces:
        """Return the single piece of each row, which extends to the row's end or the domain's."""
        domains = self.domain_ids(indices)
        begins = self.token_bounds[domains] + (indices - self.bounds[domains]) * self.length
        return Pieces(np.arange(len(indices) + 1), begins, self.token_bounds[domains + 1], domains)


class Documents(_Domains):
    """Sequences of whole documents: one each, or packed. They take 8 bytes per document and 8 per packed row.

    Args:
        files: Files by domain.
        length: Tokens in a sequence.
        long_documents: `"split"`, `"truncate"`, `"drop"` or `"raise"`; see `TokenDataset`.
        pack: Whether to pack several documents into a row, by best fit decreasing.

    Raises:
        ValueError: If there is a long document and `long_documents="raise"`.
    """

    def __init__(self, files: Files, length: int, long_documents: str, *, pack: bool) -> None:
        super().__init__(files)
        begins: list[Integers] = []  # of pieces, in the order of rows
        counts: list[Integers] = []  # of pieces in a row, if packed
        sizes, tokens = [], []
        for start, (domain, members) in zip(self.token_bounds.tolist(), files.items()):
            found = list(_pieces(members, length, long_documents, domain))
            places = np.concatenate([np.empty(0, np.int64), *(begin for begin, _ in found)]) + start
            lengths = np.concatenate([np.empty(0, np.int64), *(length for _, length in found)])
            tokens.append(int(lengths.sum()))
            if pack:
                order, rows = _best_fit(lengths, length)
                places, lengths = places[order], rows
                counts.append(rows)
            begins.append(places)
            sizes.append(len(lengths))
        self.begins = np.concatenate(begins) if begins else np.empty(0, np.int64)
        self.row_bounds = np.cumsum(np.concatenate([[0], *counts]), dtype=np.int64) if pack else None
        self.close(sizes, tokens, f"it has no document, or with long_documents={long_documents!r} none that is kept")

    def pieces(self, indices: Integers) -> Pieces:
        """Return the pieces of each row; each extends to the row's end or its document's."""
        domains = self.domain_ids(indices)
        if self.row_bounds is None:
            return Pieces(np.arange(len(indices) + 1), self.begins[indices], self.token_bounds[domains + 1], domains)
        firsts = self.row_bounds[indices]
        counts = self.row_bounds[indices + 1] - firsts
        bounds = np.cumsum(np.concatenate([[0], counts]), dtype=np.int64)
        at = np.arange(bounds[-1]) + np.repeat(firsts - bounds[:-1], counts)
        return Pieces(bounds, self.begins[at], np.repeat(self.token_bounds[domains + 1], counts), domains)


def _pieces(
    files: Sequence[TokenFile], length: int, long_documents: str, domain: str
) -> Iterator[tuple[Integers, Integers]]:
    """Yield begins, in tokens of the domain, and lengths of the pieces of each file's documents, in order."""
    start = 0
    for file in files:
        ends = file.document_ends().astype(np.int64)
        begins = np.concatenate([[0], ends[:-1]]) if len(ends) else ends
        lengths = ends - begins
        begins, lengths = begins[lengths > 0] + start, lengths[lengths > 0]
        is_long = lengths > length
        if long_documents == "raise" and is_long.any():
            at = int(is_long.argmax())
            raise ValueError(
                f"a document of {domain!r} in {file.path} has {lengths[at]} tokens, more than length = {length}; pass "
                "long_documents='split', 'truncate' or 'drop', or a greater length"
            )
        if long_documents == "drop":
            begins, lengths = begins[~is_long], lengths[~is_long]
        elif long_documents == "truncate":
            lengths = np.minimum(lengths, length)
        counts = -(-lengths // length)
        number = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        yield (
            np.repeat(begins, counts) + number * length,
            np.minimum(np.repeat(lengths, counts) - number * length, length),
        )
        start += file.tokens


def _best_fit(lengths: Integers, length: int) -> tuple[Integers, Integers]:
    """Return the order in which pieces fill rows, and how many each row has."""
    from pycooldown.data.best_fit import best_fit_decreasing  # needs numba, unlike the other modes

    # NumPy sorts 16-bit integers with a radix sort, in linear time.
    decreasing = np.argsort((length - lengths).astype(np.uint16 if length <= 1 << 16 else np.int64), kind="stable")
    rows, _, num_rows = best_fit_decreasing(lengths[decreasing], length)
    return decreasing[np.argsort(rows, kind="stable")], np.bincount(rows, minlength=num_rows)
