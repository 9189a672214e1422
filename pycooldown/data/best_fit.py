"""Pack token sequences into rows of one length."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pycooldown._extras import require
from pycooldown.mixture import Integers

require("data", "numba")

from numba import njit  # noqa: E402

__all__ = ["Packed", "pack_sequences"]


@dataclass(frozen=True)
class Packed:
    """Rows of tokens; all arrays are int64 of shape (rows, length).

    Attributes:
        tokens: The sequences one after another, then ``pad_id``.
        domain_ids: The domain of each token; 0 for padding.
        segment_ids: The number of the sequence within its row, from 1; 0 for padding.
        positions: The place of the token in its sequence, from 0; 0 for padding.
    """

    tokens: Integers
    domain_ids: Integers
    segment_ids: Integers
    positions: Integers

    @property
    def waste(self) -> float:
        """Share of padding among all tokens."""
        return float((self.segment_ids == 0).mean()) if self.segment_ids.size else 0.0


def pack_sequences(
    sequences: Sequence[npt.ArrayLike], domain_ids: npt.ArrayLike, *, length: int, pad_id: int = 0
) -> Packed:
    """Pack the sequences of one step into rows, keeping nothing back for the next step.

    Best fit decreasing (Johnson, 1973): each sequence, starting with the longest, goes to the fullest row that has room
    for it. This needs at most 11/9 of the fewest possible rows, plus 4. Sequences longer than a row are cut into pieces
    of a whole row and a rest; each piece counts as one sequence. Empty sequences are left out.

    Args:
        sequences: n one-dimensional integer arrays or lists of token ids.
        domain_ids: n integers, the domain of each sequence.
        length: Tokens in a row, > 0.
        pad_id: The token that fills up rows.

    Raises:
        ValueError: If ``length`` is not positive or there are not as many domain ids as sequences.
    """
    if length <= 0:
        raise ValueError(f"length = {length}; expected at least 1 token in a row")
    domains = np.asarray(domain_ids, dtype=np.int64)
    if domains.shape != (len(sequences),):
        raise ValueError(f"domain_ids has shape {domains.shape}; expected ({len(sequences)},), one for each sequence")
    arrays = [np.asarray(sequence, dtype=np.int64).reshape(-1) for sequence in sequences]
    flat = np.concatenate([np.empty(0, dtype=np.int64), *arrays])
    sizes = np.array([array.size for array in arrays], dtype=np.int64)
    starts, pieces, owners = _cut(np.cumsum(sizes) - sizes, sizes, length)
    order = np.argsort(-pieces, kind="stable")
    rows, columns, num_rows = best_fit_decreasing(pieces[order], length)
    out = np.zeros((4, num_rows, length), dtype=np.int64)
    out[0] = pad_id
    _fill(out, flat, starts[order], pieces[order], domains[owners[order]], rows, columns)
    return Packed(*out)


def _cut(starts: Integers, sizes: Integers, length: int) -> tuple[Integers, Integers, Integers]:
    """Return start, size and owner of each piece of at most ``length`` tokens."""
    counts = -(-sizes // length)
    owners = np.repeat(np.arange(len(sizes)), counts)
    number = np.arange(len(owners)) - np.repeat(np.cumsum(counts) - counts, counts)
    return starts[owners] + number * length, np.minimum(sizes[owners] - number * length, length), owners


@njit(cache=True)  # type: ignore[untyped-decorator]
def best_fit_decreasing(sizes: Integers, length: int) -> Any:
    """Return row and first column of each piece, and the number of rows; ``sizes`` decrease and are at most ``length``.

    Rows with the same free room form a stack. A binary tree over the rooms records which stacks are not empty, so the
    smallest sufficient room is found in O(log length) steps.
    """
    n = len(sizes)
    rows, columns = np.empty(n, dtype=np.int64), np.empty(n, dtype=np.int64)
    below = np.empty(n, dtype=np.int64)  # the row under each row in its stack
    top = np.full(length + 1, -1, dtype=np.int64)  # by room
    leaves = 1
    while leaves <= length:
        leaves *= 2
    filled = np.zeros(2 * leaves, dtype=np.bool_)  # node i has children 2 i and 2 i + 1
    num_rows = 0
    for i in range(n):
        node = leaves + sizes[i]
        while node > 1 and not filled[node]:
            while (
                node & 1
            ):  # from a right child, the next subtree is beside an ancestor; from the last one there is none
                node >>= 1
            node += 1
        if node > 1:
            while node < leaves:
                node = 2 * node + (not filled[2 * node])
            room = node - leaves
            row = top[room]
            top[room] = below[row]
            if top[room] < 0:
                _mark(filled, node, False)
        else:
            row, num_rows, room = num_rows, num_rows + 1, length
        rows[i], columns[i] = row, length - room
        left = room - sizes[i]
        if top[left] < 0:
            _mark(filled, leaves + left, True)
        below[row], top[left] = top[left], row
    return rows, columns, num_rows


@njit(cache=True)  # type: ignore[untyped-decorator]
def _mark(filled: Any, node: int, value: bool) -> None:
    filled[node] = value
    while node > 1:
        node >>= 1
        either = filled[2 * node] or filled[2 * node + 1]
        if filled[node] == either:
            break
        filled[node] = either


@njit(cache=True)  # type: ignore[untyped-decorator]
def _fill(
    out: Any, flat: Integers, starts: Integers, sizes: Integers, domains: Integers, rows: Integers, columns: Integers
) -> None:
    segments = np.zeros(out.shape[1], dtype=np.int64)
    for i in range(len(sizes)):
        row = rows[i]
        segments[row] += 1
        for j in range(sizes[i]):
            column = columns[i] + j
            out[0, row, column] = flat[starts[i] + j]
            out[1, row, column] = domains[i]
            out[2, row, column] = segments[row]
            out[3, row, column] = j
