"""Packing keeps every token once with its domain, and leaves little padding."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pycooldown.data import pack_sequences


def segments(packed):
    """Return (domain, tokens) of each packed piece."""
    out = []
    for tokens, domains, numbers, positions in zip(
        packed.tokens, packed.domain_ids, packed.segment_ids, packed.positions, strict=True
    ):
        for number in range(1, numbers.max(initial=0) + 1):
            (where,) = np.nonzero(numbers == number)
            assert (np.diff(where) == 1).all()
            assert (positions[where] == np.arange(len(where))).all()
            assert len(set(domains[where])) == 1
            out.append((int(domains[where[0]]), tuple(tokens[where])))
    return out


@settings(deadline=None)
@given(
    sizes=st.lists(st.integers(0, 25), max_size=30),
    length=st.integers(1, 12),
)
def test_every_token_is_packed_once(sizes, length):
    ends = list(itertools.accumulate(sizes, initial=0))
    sequences = [list(range(100 + a, 100 + b)) for a, b in itertools.pairwise(ends)]
    domains = [i % 3 for i in range(len(sizes))]
    packed = pack_sequences(sequences, domains, length=length, pad_id=-1)
    pieces = [
        (domain, tuple(sequence[at : at + length]))
        for domain, sequence in zip(domains, sequences, strict=True)
        for at in range(0, len(sequence), length)
    ]
    assert sorted(segments(packed)) == sorted(pieces)
    padding = packed.segment_ids == 0
    assert (packed.tokens[padding] == -1).all()
    assert packed.domain_ids.shape == packed.tokens.shape
    assert packed.waste == pytest.approx(1 - sum(sizes) / max(1, packed.tokens.size) if sum(sizes) else 0)


@settings(deadline=None, max_examples=50)
@given(sizes=st.lists(st.integers(1, 100), min_size=1, max_size=200))
def test_rows_are_within_the_bound_of_best_fit_decreasing(sizes):
    packed = pack_sequences([[7] * size for size in sizes], [0] * len(sizes), length=100)
    fewest = -(-sum(sizes) // 100)  # a lower bound; the best packing may need more
    above_half = sum(size > 50 for size in sizes)
    assert len(packed.tokens) >= max(fewest, above_half)
    full = (packed.segment_ids > 0).sum(1)
    assert (full > 50).sum() >= len(full) - 1  # two rows at most half full would have been joined


def test_waste_of_documents_is_below_three_percent():
    sizes = np.random.default_rng(0).lognormal(5.0, 0.8, 512).astype(int) + 1
    packed = pack_sequences([np.ones(size) for size in sizes], np.zeros(512), length=1024)
    assert packed.waste < 0.03


def test_arguments_are_checked():
    with pytest.raises(ValueError, match="length = 0; expected at least 1"):
        pack_sequences([[1]], [0], length=0)
    with pytest.raises(ValueError, match=r"domain_ids has shape \(2,\); expected \(1,\)"):
        pack_sequences([[1]], [0, 1], length=4)
    assert pack_sequences([], [], length=4).tokens.shape == (0, 4)
