"""What kernels load and store, counted in Triton's interpreter, is what the model and the page say."""

from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton")

from pycooldown.losses import cross_entropy  # noqa: E402
from pycooldown.losses.backends import KernelOptions  # noqa: E402
from pycooldown.losses.backends import triton as backend  # noqa: E402

if not backend.INTERPRETED:
    pytest.skip("counts accesses in Triton's interpreter: TRITON_INTERPRET=1", allow_module_level=True)
ROOT = Path(__file__).parents[1]
BENCHMARKS = ROOT / "benchmarks"
PLAIN = KernelOptions(ignore_index=-100, label_smoothing=0.0, z_loss=0.0, softcap=0.0, backend="triton")
EVERYTHING = {"label_smoothing": 0.1, "z_loss": 1e-2, "softcap": 5.0}
WANT = {"want_grad": True, "want_stats": False, "inplace": False}


@pytest.fixture(autouse=True)
def benchmarks(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)


def problem(num_classes, dtype):
    """Four rows: two that count, one ignored, one of weight 0. Those that count begin at different alignments."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4, num_classes, generator=generator).to(dtype)
    target = torch.tensor([num_classes // 2, -100, 5, num_classes - 1])
    scale = torch.tensor([0.5, 1.0, 0.0, 2.0])
    return logits, target, scale


def edges(row):
    """The classes of a row before its first and after its last multiple of 16 bytes."""
    per_word = 16 // row.itemsize
    head = min(-row.data_ptr() % 16 // row.itemsize, len(row))
    return head + (len(row) - head) % per_word


def assert_moves(traffic, logits, gradient, target, kinds, *, moves, other_bytes=(0, 0)):
    """Each element of each row was read and written as often as its kind says, and nothing else was moved."""
    reads, writes = traffic.of(logits, stores=False), traffic.of(gradient, stores=True)
    model = [0, 0]
    for n, kind in enumerate(kinds):
        row_moves, num_edges = moves[kind], edges(gradient[n])
        expected = torch.full_like(reads[n], row_moves.reads)
        head = min(-gradient[n].data_ptr() % 16 // logits.itemsize, len(expected))
        if row_moves.reads > 1:
            expected[:head] = expected[len(expected) - (num_edges - head) :] = 1
        if row_moves.target_reads:
            expected[target[n]] += row_moves.target_reads
        assert reads[n].equal(expected), (kind, n)
        assert (writes[n] == row_moves.writes).all(), (kind, n)
        model[0] += row_moves.read(len(expected), logits.itemsize, num_edges=num_edges)
        model[1] += row_moves.written(len(expected), logits.itemsize)
    assert traffic.total() == (model[0] + other_bytes[0], model[1] + other_bytes[1])


# Classes, dtype, options and variant of rows, and whether registers keep them. The variants read rows twice in blocks
# that are smaller than those of the package.
ROWS = [
    (1003, torch.bfloat16, {}, None, "kept"),
    (1003, torch.float32, EVERYTHING, None, "kept"),
    (65_533, torch.bfloat16, {}, None, "kept"),
    (70_001, torch.bfloat16, {}, None, "twice"),
    (1003, torch.float32, {}, backend.Variant(128, 0, 2), "twice"),
    (1003, torch.float16, EVERYTHING, backend.Variant(128, 0, 1), "twice"),
    (2049, torch.bfloat16, EVERYTHING, backend.Variant(128, 0, 4), "twice"),
]


@pytest.mark.parametrize(("num_classes", "dtype", "options", "variant", "kind"), ROWS)
def test_rows(num_classes, dtype, options, variant, kind, monkeypatch):
    import gpu_traffic
    from triton_traffic import counted

    if variant:
        monkeypatch.setattr(backend, "choose_variant", lambda *_, **__: variant)
    logits, target, scale = problem(num_classes, dtype)
    ids, kernel_options = target.clamp(0, 2), PLAIN._replace(**options)
    moves = gpu_traffic.MOVES
    with counted() as traffic:
        gradient = backend.rows(logits, target, scale, None, 1, kernel_options, **WANT).grad
    assert_moves(traffic, logits, gradient, target, [kind, "ignored", "ignored", kind], moves=moves)
    with counted() as traffic:
        backend.rows(logits, target, scale, None, 1, kernel_options, **WANT | {"want_grad": False})
    kinds = ["loss", "ignored loss", "ignored loss", "loss"]
    assert_moves(traffic, logits, torch.empty_like(logits), target, kinds, moves=moves)
    with counted() as traffic:
        want = WANT | {"want_stats": True, "inplace": True}
        backend.rows(logits, target, scale, ids, 3, kernel_options, **want)
    sums = gpu_traffic.stats_traffic(4, 3, has_domains=True)
    kinds = [kind, "ignored", "unweighted", kind]
    assert_moves(traffic, logits, logits, target, kinds, moves=moves, other_bytes=sums)


def test_rows_that_are_aligned_otherwise_than_their_gradient():
    import gpu_traffic
    from triton_traffic import counted

    aligned, target, scale = problem(1003, torch.bfloat16)
    logits = torch.empty(1 + aligned.numel(), dtype=aligned.dtype)[1:].view_as(aligned).copy_(aligned)
    with counted() as traffic:
        gradient = backend.rows(logits, target, scale, None, 1, PLAIN, **WANT).grad
    kinds = ["twice", "ignored", "ignored", "twice"]
    assert_moves(traffic, logits, gradient, target, kinds, moves=gpu_traffic.MOVES)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_slices(smoothing, dtype):
    import gpu_traffic
    from triton_traffic import counted

    logits, target, scale = problem(1003, dtype)
    options = PLAIN._replace(label_smoothing=smoothing)
    with counted() as traffic:
        gradient = backend.gradient(logits, target, scale, torch.ones(4), torch.tensor(2006), options, inplace=False)
    kind = "smoothed slice" if smoothing else "slice"
    kinds = [kind, "ignored slice", "ignored slice", kind]
    assert_moves(traffic, logits, gradient, target, kinds, moves=gpu_traffic.MOVES)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize(("factor", "kind"), [(2.0, "scaled"), (1.0, "factor 1")])
def test_scale(factor, kind, dtype):
    import gpu_traffic
    from triton_traffic import counted

    gradient, target, _ = problem(1003, dtype)
    with counted() as traffic:
        backend.scale_(gradient, torch.tensor(factor))
    assert_moves(traffic, gradient, gradient, target, [kind] * 4, moves=gpu_traffic.MOVES)


@pytest.mark.parametrize(("num_rows", "num_domains", "has_domains"), [(4, 1, False), (1100, 40, True)])
def test_sums_by_domain(num_rows, num_domains, has_domains):
    import gpu_traffic
    from triton_traffic import counted

    target = torch.full((num_rows,), -100)
    ids = torch.arange(num_rows) % num_domains if has_domains else None
    want = {"want_grad": False, "want_stats": True, "inplace": False}
    with counted() as traffic:
        backend.rows(torch.zeros(num_rows, 1), target, torch.ones(num_rows), ids, num_domains, PLAIN, **want)
    read, written = gpu_traffic.stats_traffic(num_rows, num_domains, has_domains=has_domains)
    rows = gpu_traffic.MOVES["ignored loss"]
    assert traffic.total() == (read + num_rows * rows.read(1, 4), written + num_rows * rows.written(1, 4))


def test_forward_and_backward():
    """Of the public function: a logit is read once and its gradient written once, unless a factor comes in between."""
    import gpu_traffic
    from triton_traffic import counted

    moves = gpu_traffic.MOVES
    logits, target, _ = problem(1003, torch.bfloat16)
    logits.requires_grad_()
    for factor, scaled in ((1.0, "factor 1"), (3.0, "scaled")):
        with counted() as traffic:
            (factor * cross_entropy(logits, target, backend="triton")).backward()
        kinds = ["kept", "ignored", "kept", "kept", *[scaled] * 4]
        assert traffic.total() == (
            sum(moves[kind].read(1003, 2) for kind in kinds),
            sum(moves[kind].written(1003, 2) for kind in kinds),
        )


def test_the_page_has_the_models_table():
    import gpu_traffic

    assert gpu_traffic.table_of_moves() in (ROOT / "docs" / "gpu.md").read_text()
