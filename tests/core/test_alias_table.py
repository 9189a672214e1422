"""Random numbers and alias tables agree with known answers and slow references, and have the right distributions."""

import math

import numpy as np
import pytest

from pycooldown import AliasTable, _core

ISAS = ("baseline", "avx2", "avx512")


@pytest.fixture(params=ISAS)
def isa(request, monkeypatch):
    monkeypatch.setenv("PYCOOLDOWN_ISA", request.param)
    try:
        assert _core.isa() == request.param
    except ValueError:
        pytest.skip(f"this processor has no {request.param}")
    return request.param


def p_value(*counts):
    """Of Pearson's chi-square test."""
    return pytest.importorskip("scipy.stats").chisquare(*counts).pvalue


def skewed(num_outcomes, exponent=1.2):
    return np.arange(1, num_outcomes + 1.0) ** -exponent


def philox_words(seed, first_block, num_blocks):
    """Return uint64 words 0..3 of each block of Philox4x32-10, from its description (Salmon et al., SC'11)."""
    block = np.arange(first_block, first_block + num_blocks, dtype=np.uint64)
    low, high = np.uint64(0xFFFFFFFF), np.uint64(32)
    c = [block & low, block >> high, np.zeros_like(block), np.zeros_like(block)]
    key = [seed & 0xFFFFFFFF, seed >> 32]
    for _ in range(10):
        a, b = np.uint64(0xD2511F53) * c[0], np.uint64(0xCD9E8D57) * c[2]
        c = [(b >> high) ^ c[1] ^ np.uint64(key[0]), b & low, (a >> high) ^ c[3] ^ np.uint64(key[1]), a & low]
        key = [(key[0] + 0x9E3779B9) & 0xFFFFFFFF, (key[1] + 0xBB67AE85) & 0xFFFFFFFF]
    return np.stack(c, axis=1).ravel()


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [  # the known-answer vectors published with Random123
        ([0] * 4, [0] * 2, [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
        ([0xFFFFFFFF] * 4, [0xFFFFFFFF] * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            [0xA4093822, 0x299F31D0],
            [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
        ),
    ],
)
def test_philox_known_answers(counter, key, expected):
    assert _core.philox4x32(counter, key) == expected


@pytest.mark.parametrize("num_outcomes", [1, 2, 3, 100, 1000])
def test_table_realises_its_weights_exactly(num_outcomes):
    """Each of the 2^32 words belongs to one outcome, and the words of an outcome are its weight."""
    table = AliasTable(skewed(num_outcomes))
    assert table.probabilities.sum() == 1
    assert np.abs(table.probabilities - skewed(num_outcomes) / skewed(num_outcomes).sum()).max() <= 2**-32
    # The words of the draws, from the NumPy generator, tell which column each draw fell into.
    words = philox_words(11, 0, 2_500)
    drawn = table.draw(10_000, seed=11)
    columns = 2 ** max(1, math.ceil(math.log2(num_outcomes)))
    column = (words * np.uint64(columns)) >> np.uint64(32)
    fraction = (words * np.uint64(columns)) & np.uint64(0xFFFFFFFF)
    for c in np.unique(column):  # a column has its own outcome below a threshold and one alias above
        own = (drawn == c)[column == c]
        order = np.argsort(fraction[column == c], kind="stable")
        assert np.array_equal(own[order], np.sort(own)[::-1])
        assert len(np.unique(drawn[column == c][~own])) <= 1


@pytest.mark.parametrize("num_outcomes", [1, 2, 5, 100, 10_000])
@pytest.mark.parametrize(("n", "offset"), [(0, 5), (1, 0), (37, 3), (100_003, 2**33 + 1)])
def test_same_draws_on_every_instruction_set_and_thread_count(isa, num_outcomes, n, offset, monkeypatch):
    table = AliasTable(skewed(num_outcomes))
    drawn = table.draw(n, seed=2**63 + 5, offset=offset, num_threads=1)
    assert drawn.dtype == np.int32
    assert drawn.shape == (n,)
    assert np.array_equal(drawn, table.draw(n, seed=2**63 + 5, offset=offset, num_threads=3))
    monkeypatch.setenv("PYCOOLDOWN_ISA", "baseline")
    assert np.array_equal(drawn, table.draw(n, seed=2**63 + 5, offset=offset))
    halves = [table.draw(n // 2, seed=2**63 + 5, offset=offset)]
    halves.append(table.draw(n - n // 2, seed=2**63 + 5, offset=offset + n // 2))
    assert np.array_equal(drawn, np.concatenate(halves))


@pytest.mark.parametrize("num_outcomes", [1, 2, 100, 10_000])
@pytest.mark.parametrize(("n", "offset"), [(0, 5), (1, 3), (2, 1), (4_099, 2**33 + 2), (4_099, 8)])
def test_same_draws_on_a_device(num_outcomes, n, offset):
    table = AliasTable(skewed(num_outcomes))
    expected = table.draw(n, seed=2**63 + 5, offset=offset)
    assert np.array_equal(_core.draw_as_device(table, n, seed=2**63 + 5, offset=offset), expected)
    torch = pytest.importorskip("torch")
    if hasattr(_core, "DeviceAliasTable") and torch.cuda.is_available():
        memory = torch.zeros(n + 6, dtype=torch.int32, device="cuda")
        for start in (0, 1, 2, 3):  # four draws are stored at once at aligned places
            out = memory.zero_()[start : start + n]
            _core.DeviceAliasTable(table).draw(out.data_ptr(), n, seed=2**63 + 5, offset=offset)
            assert np.array_equal(out.cpu().numpy(), expected)
            assert not memory[start + n :].any()
            assert not memory[:start].any()


@pytest.mark.parametrize(
    "weights",
    [
        np.ones(1),
        np.array([0.3, 0.7]),
        skewed(100),
        skewed(10_000, 0.8),
        np.array([1e9, 1.0, 1e5, 0.0]),
        np.full(10_000, 1e-300),
    ],
    ids=["K=1", "K=2", "K=100", "K=10000", "1e9:1", "tiny"],
)
@pytest.mark.parametrize("seed", [0, 2**64 - 1])
def test_draw_frequencies(weights, seed):
    n = 4_000_000
    counts = np.bincount(AliasTable(weights).draw(n, seed=seed), minlength=len(weights))
    expected = n * weights / weights.sum()
    assert counts[weights == 0].sum() == 0
    pooled = expected < 10  # a chi-square cell needs some expected draws
    counts = np.append(counts[~pooled], counts[pooled].sum())
    expected = np.append(expected[~pooled], expected[pooled].sum())
    if len(expected) > 1 and expected[-1] < 1:  # too rare for a cell of its own
        assert counts[-1] < 10
        counts, expected = counts[:-1], expected[:-1] * counts[:-1].sum() / expected[:-1].sum()
    keep = expected > 0
    assert keep.sum() < 2 or p_value(counts[keep], expected[keep]) > 1e-4


def rounded(probabilities):
    """Return largest-remainder rounding to multiples of 2^-32, computed slowly, unit after unit."""
    total, error = 0.0, 0.0
    for p in probabilities:
        term = p - error
        following = total + term
        error, total = following - total - term, following
    exact = [p / total * 2.0**32 for p in probabilities]
    weights = [max(1, math.floor(x)) if p > 0 else 0 for p, x in zip(probabilities, exact, strict=True)]
    left = 2**32 - sum(weights)
    if left > 0:
        order = sorted(range(len(weights)), key=lambda i: -(exact[i] - weights[i]))
        least, unit = 0, 1
    else:
        order = sorted(range(len(weights)), key=lambda i: -weights[i])
        least, unit = 1, -1
    while left:
        for i in order:
            if left and weights[i] > least:
                weights[i] += unit
                left -= unit
    return weights


@pytest.mark.parametrize("case", range(40))
def test_rounding_is_by_largest_remainders(case):
    """The cases have ties, zeros, probabilities below a unit, and few outcomes that give units to many."""
    rng = np.random.default_rng(case)
    size = int(rng.integers(1, 400))
    probabilities = [
        rng.dirichlet(np.full(size, 0.3)),
        np.ones(size),
        np.r_[1e3, rng.integers(0, 3, size) * 1e-9],
        np.r_[1, 1e-9, 3e-9, np.full(size, 1e-300)],
        np.r_[rng.random(3) * 1e-9 + 1e-9, np.full(size, 1e-300), 1],
    ][case % 5]
    assert np.array_equal(AliasTable(probabilities).probabilities * 2**32, rounded(probabilities.tolist()))


def test_rounding_takes_linear_time():
    """One outcome gives a unit to each of the others. An algorithm that moves single units takes quadratic time."""
    table = AliasTable(np.r_[1, np.full(999_999, 1e-300)])
    assert table.probabilities[0] == 1 - 999_999 * 2**-32
    assert (table.probabilities[1:] == 2**-32).all()
    even = AliasTable(np.r_[np.full(500_000, 2e-6), np.full(500_000, 1e-300)]).probabilities * 2**32
    assert even.sum() == 2**32
    assert np.ptp(even[:500_000]) == 1
    assert (even[500_000:] == 1).all()


@pytest.mark.parametrize("n", [5, 59_999])
@pytest.mark.parametrize("offset", [2**64 - 60_000, 2**64 - 65_536 - 7, 2**64 - 131_072])
def test_the_last_draws(isa, n, offset):
    """The last draws of the stream are right: an even choice of two takes the top bit of a random word."""
    words = philox_words(1, offset // 4, n // 4 + 2)[offset % 4 :][:n]
    for num_threads in (1, 3):
        drawn = AliasTable([1, 1]).draw(n, seed=1, offset=offset, num_threads=num_threads)
        assert np.array_equal(drawn, words >> np.uint64(31))


def test_draws_beyond_the_last():
    table = AliasTable([1, 1])
    assert table.draw(0, seed=1, offset=2**64 - 1).shape == (0,)
    for n, offset in [(1, 2**64 - 1), (60_000, 2**64 - 60_000), (2**20, 2**64 - 5)]:
        with pytest.raises(ValueError, match=f"offset = {offset} and n = {n}; expected draws before number 2.64 - 1"):
            table.draw(n, seed=1, offset=offset)
        with pytest.raises(ValueError, match=r"draws beyond number 2.64 - 2"):
            _core.draw_as_device(table, n, seed=1, offset=offset)


def test_positive_probabilities_stay_positive():
    table = AliasTable([1e30, 1e-30, 0])
    assert table.probabilities.tolist() == [1 - 2**-32, 2**-32, 0]


@pytest.mark.parametrize(
    ("probabilities", "message"),
    [
        ([], "0 entries"),
        ([0.0, 0.0], "positive"),
        ([0.5, -0.1], r"probabilities\[1\] = -0.1"),
        ([0.5, math.nan], r"probabilities\[1\] = nan"),
        ([math.inf], r"probabilities\[0\] = inf"),
        ([[0.5, 0.5]], "2 dimensions"),
    ],
)
def test_bad_probabilities(probabilities, message):
    with pytest.raises(ValueError, match=message):
        AliasTable(probabilities)


def test_bad_draw_arguments():
    table = AliasTable([1, 2])
    with pytest.raises(ValueError, match="n = -1"):
        table.draw(-1, seed=0)
    with pytest.raises(ValueError, match="num_threads = 0"):
        table.draw(1, seed=0, num_threads=0)
    with pytest.raises(ValueError, match="seed = -1"):
        table.draw(1, seed=-1)


@pytest.mark.parametrize("name", ["sse9", "AVX2"])
def test_unknown_instruction_set(name, monkeypatch):
    monkeypatch.setenv("PYCOOLDOWN_ISA", name)
    with pytest.raises(ValueError, match=f"baseline, avx2 or avx512, got '{name}'"):
        AliasTable([1]).draw(1, seed=0)


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64, 65, 1000, 15_080])
def test_permutation_is_a_bijection(size):
    first, second = (_core.permutation(size, seed=9, domain=4, epoch=e) for e in (0, 1))
    assert np.array_equal(np.sort(first), np.arange(size))
    assert np.array_equal(np.sort(second), np.arange(size))
    assert size < 4 or not np.array_equal(first, second)


def test_small_permutations_are_uniform():
    """All orders of a few samples are equally likely over the keys."""
    for size in (4, 5, 6):
        seen = [tuple(_core.permutation(size, seed=s, domain=s % 7, epoch=s // 3)) for s in range(40_000)]
        _, counts = np.unique(seen, axis=0, return_counts=True)
        assert len(counts) == math.factorial(size)
        assert p_value(counts) > 1e-4


@pytest.mark.parametrize("size", [24, 63, 168, 5_000])
def test_permutation_mixes_neighbours(size):
    """The place of a sample does not predict the place of the next one, and is uniform over epochs."""
    orders = np.array([_core.permutation(size, seed=1, epoch=e) for e in range(2_000_000 // size)])
    for distance in (1, 2):
        gaps = (orders[:, distance:] - orders[:, :-distance]) % size
        assert p_value(np.bincount(gaps.ravel(), minlength=size)[1:]) > 1e-4
    coarse = orders[:, size // 3] * 20 // size  # twenty cells, with expected counts by their widths
    cells = np.bincount(np.arange(size) * 20 // size)
    assert p_value(np.bincount(coarse, minlength=20), len(orders) * cells / size) > 1e-4
