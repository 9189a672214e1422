"""The Triton kernels agree with torch in float64. Without a GPU they run in Triton's interpreter."""

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton")

from pycooldown.losses.backends import KernelOptions, load  # noqa: E402
from pycooldown.losses.backends import triton as backend  # noqa: E402

if not backend.INTERPRETED and not torch.cuda.is_available():
    pytest.skip("needs a GPU, or TRITON_INTERPRET=1 before triton is imported", allow_module_level=True)
DEVICE = "cpu" if backend.INTERPRETED else "cuda"
OPTIONS = {"ignore_index": -100, "label_smoothing": 0.0, "z_loss": 0.0, "softcap": 0.0}
PLAIN = KernelOptions(**OPTIONS, backend="triton")
EVERYTHING = {"label_smoothing": 0.1, "z_loss": 1e-2, "softcap": 5.0}
WANT = {"want_grad": True, "want_stats": True, "inplace": False}
# Half a unit in the last place. The interpreter truncates to bfloat16, so there it is a whole unit.
ROUNDING = {
    torch.float32: 0.0,
    torch.float16: 2.0**-11,
    torch.bfloat16: 2.0**-7 if backend.INTERPRETED else 2.0**-8,
}


def problem(num_rows, num_classes, dtype=torch.float32, num_domains=3):
    """Return the arguments of `rows`. Every fourth row is ignored, and every fourth has weight 0."""
    generator = torch.Generator().manual_seed(num_classes)
    logits = (4 * torch.randn(num_rows, num_classes, generator=generator)).to(dtype)
    target = torch.randint(num_classes, (num_rows,), generator=generator)
    target[1::4] = -100
    scale = torch.rand(num_rows, generator=generator) + 0.5
    scale[2::4] = 0
    ids = torch.randint(num_domains, (num_rows,), generator=generator)
    return [logits.to(DEVICE), target.to(DEVICE), scale.to(DEVICE), ids.to(DEVICE), num_domains]


def in_float64(logits, target, scale, ids, num_domains, *, ignore_index, label_smoothing, z_loss, softcap):
    x = logits.detach().double().requires_grad_()
    y = softcap * torch.tanh(x / softcap) if softcap else x
    smoothed = {"ignore_index": ignore_index, "label_smoothing": label_smoothing, "reduction": "none"}
    loss = torch.nn.functional.cross_entropy(y, target, **smoothed)
    valid = target != ignore_index
    lse = y.logsumexp(1).where(valid, 0)
    weighted = valid & (scale != 0)
    ((loss + z_loss * lse**2) * scale)[weighted].sum().backward()
    grad = x.grad.where(weighted[:, None], 0)
    hit = valid & ~loss.isnan() & (y.gather(1, target.where(valid, 0)[:, None])[:, 0] >= y.amax(1))
    ids = torch.zeros_like(target) if ids is None else ids
    one_hot = torch.nn.functional.one_hot(ids, num_domains).bool()
    sums = [loss[valid & of].sum() for of in one_hot.T]
    counts = [[(rows & of).sum() for of in one_hot.T] for rows in (valid, hit)]
    return loss.detach(), lse.detach(), grad, torch.stack(sums).detach(), *map(torch.stack, counts)


def check(arguments, *, inplace=False, **options):
    options = OPTIONS | options
    loss, lse, grad, sums, tokens, correct = in_float64(*arguments, **options)
    dtype = arguments[0].dtype
    got = backend.rows(*arguments, PLAIN._replace(**options), **WANT | {"inplace": inplace})
    assert [x.dtype for x in got] == [torch.float32, torch.float32, dtype, torch.float64, torch.int64, torch.int64]
    assert (got[2] is arguments[0]) == inplace
    near = {"rtol": 1e-6, "atol": 2e-6, "equal_nan": True, "check_dtype": False}
    torch.testing.assert_close(got[0], loss.float(), **near)
    torch.testing.assert_close(got[1], lse.float(), **near)
    torch.testing.assert_close(got[3], sums, **near)
    subnormal = 2.0**-25 if dtype == torch.float16 else 0.0
    grad_near = {"rtol": ROUNDING[dtype] + 1e-5, "atol": 3e-7 + subnormal, "equal_nan": True}
    torch.testing.assert_close(got[2].double(), grad, **grad_near)
    assert torch.equal(got[4], tokens)
    assert torch.equal(got[5], correct)
    return got


@pytest.mark.parametrize("num_classes", [1, 7, 33])
@pytest.mark.parametrize("dtype", ROUNDING, ids=str)
@pytest.mark.parametrize("options", [{}, EVERYTHING], ids=["plain", "everything"])
def test_rows_agree_with_torch(num_classes, dtype, options):
    check(problem(8, num_classes, dtype), **options)


# The sizes of rows, in bytes, up to which each variant is used, and the widest rows that were tested.
LIMITS = [*backend.KEPT, 160 << 10]


@pytest.mark.parametrize(
    ("dtype", "options"), [(torch.float32, {}), (torch.bfloat16, EVERYTHING), (torch.float16, {})], ids=str
)
@pytest.mark.parametrize("row_bytes", LIMITS)
def test_every_variant(row_bytes, dtype, options):
    """All variants agree, in place or not, with and without a gradient. Rows begin at different alignments."""
    num_classes = row_bytes // dtype.itemsize - 3
    logits, *rest = problem(4, num_classes, dtype)
    variant = backend.choose_variant(num_classes * dtype.itemsize, plain=not options)
    assert variant == backend.KEPT.get(row_bytes, backend.READ_TWICE) or (options and variant == backend.READ_TWICE)
    full = check([logits, *rest], **options)
    kernel_options = PLAIN._replace(**OPTIONS | options)
    bare = backend.rows(logits, *rest, kernel_options, **WANT | {"want_grad": False})
    overwritten = backend.rows(logits, *rest, kernel_options, **WANT | {"inplace": True})
    assert overwritten.grad is logits
    near = {"rtol": 1e-6, "atol": 2e-6} if options else {"rtol": 0, "atol": 0}  # with options another variant runs
    torch.testing.assert_close(bare[:2], full[:2], **near)
    assert overwritten.loss.equal(full.loss)
    assert overwritten.lse.equal(full.lse)
    assert logits.equal(full.grad)


def test_variants_by_bytes():
    kept = [*backend.KEPT.values(), backend.READ_TWICE]
    for number, limit in enumerate(backend.KEPT):
        assert backend.choose_variant(limit) == kept[number]
        assert backend.choose_variant(limit + 1) == kept[number + 1]
    assert backend.choose_variant(100, same_alignment=False) == backend.UNLIKE
    recent = {"capability": (10, 0)}  # fewer tiles fit there
    assert backend.choose_variant(64 << 10, **recent) == backend.KEPT[64 << 10]
    assert backend.choose_variant((64 << 10) + 1, **recent) == backend.READ_TWICE
    assert backend.choose_variant(8 << 10, plain=False, **recent) == backend.Variant(128, 0, 2)
    assert backend.choose_variant(8 << 10, plain=False, grad=False) == backend.Variant(128, 0, 2)
    assert backend.choose_variant(8 << 10, grad=False) == backend.KEPT[8 << 10]


def test_rows_processed_at_once():
    """As many as fit into L2: at least one, and at most as many as the multiprocessors have registers for."""
    h100 = {"num_processors": 132, "l2_bytes": 50 << 20}
    assert backend.rows_under_way(160 << 10, **h100) == 132
    assert backend.rows_under_way(2 * 262_144, **h100) == 60
    assert backend.rows_under_way(100 << 20, **h100) == 1
    assert backend.rows_under_way(2000, **h100, lanes=128) == 8 * 132
    assert backend.rows_under_way(160 << 10, **h100, lanes=512) == 50 * 1024 * 6 // 10 // 160


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # from NumPy, for infinite logits
@pytest.mark.parametrize("name", ["triton", "cpp", "reference"])
@pytest.mark.parametrize("dtype", ROUNDING, ids=str)
@pytest.mark.parametrize("options", [{}, EVERYTHING, {"label_smoothing": 1.0}], ids=["plain", "everything", "uniform"])
def test_gradients_of_slices_are_those_of_the_whole(name, dtype, options):
    device = DEVICE if name == "triton" else "cpu"
    logits, target, scale, ids, num_domains = (
        x.to(device) if isinstance(x, torch.Tensor) else x for x in problem(8, 4200, dtype)
    )
    if not options:
        logits[:, 7:40] = -float("inf")  # like the unused end of a padded vocabulary
        target[target < 40] = 50
    options = OPTIONS | options
    _, lse, whole, *_ = in_float64(logits, target, scale, ids, num_domains, **options)
    for inplace, begin, end in ((False, 0, 7), (False, 7, 40), (True, 40, 41), (True, 41, 4200), (False, 41, 4200)):
        here = (target - begin).where((target >= begin) & (target < end), -1).where(target != -100, -100)
        part = logits[:, begin:end] if not inplace else logits.clone()[:, begin:end]
        grad = load(name).gradient(
            part,
            here,
            scale,
            lse.float(),
            torch.tensor(4200, device=device),
            PLAIN._replace(**options),
            inplace=inplace,
        )
        assert (grad.data_ptr() == part.data_ptr()) == inplace
        rounding = {"rtol": ROUNDING[dtype] + 1e-5, "atol": 3e-7 + 2.0**-25 * (dtype == torch.float16)}
        torch.testing.assert_close(grad.double(), whole[:, begin:end], **rounding)


@pytest.mark.parametrize("padding", [1, 6, 7])
def test_gradients_of_padded_rows_are_padded(padding):
    """Padding below an eighth of a row is kept, so that rows of logits and gradient have the same alignment."""
    logits, *rest = problem(9, 53, torch.bfloat16)
    padded = torch.zeros(9, 53 + padding, dtype=logits.dtype, device=DEVICE)[:, :53].copy_(logits)
    check([padded, *rest], **EVERYTHING)
    for grad in (
        backend.rows(padded, *rest, PLAIN, **WANT).grad,
        backend.gradient(padded, *rest[:2], rest[1], torch.tensor(53, device=DEVICE), PLAIN, inplace=False),
    ):
        assert grad.stride() == ((53 + padding if padding < 7 else 53), 1)


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("view", ["offset", "padded", "transposed"])
def test_any_strides(view, inplace):
    """Rows may start anywhere and be aligned differently from the gradient. Columns need not be contiguous."""
    logits, *rest = problem(9, 45, torch.bfloat16)
    storage = torch.full((10, 50), 7.0, dtype=logits.dtype, device=DEVICE)
    flat = torch.full((3 + logits.numel(),), 7.0, dtype=logits.dtype, device=DEVICE)
    strided = {"offset": flat[3:].view(9, 45), "padded": storage[1:, 2:47], "transposed": logits.T.contiguous().T}[view]
    check([strided.copy_(logits), *rest], inplace=inplace)
    assert (flat[:3] == 7).all()
    assert (storage[0] == 7).all()
    assert (storage[:, :2] == 7).all()
    assert (storage[:, 47:] == 7).all()


def test_row_offsets_beyond_32_bits():
    storage = torch.empty(2**31 + 100, dtype=torch.bfloat16, device=DEVICE)  # only two pages are touched
    logits = storage.as_strided((2, 33), (2**31 + 5, 1))
    check([logits.normal_(), *(x[[0, 3]] for x in problem(8, 33)[1:4]), 3], inplace=True)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # from NumPy, in the interpreter
@pytest.mark.parametrize("special", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.1, "z_loss": 1e-2}], ids=["plain", "smoothed"])
def test_nonfinite_logits(special, options):
    arguments = problem(32, 37)
    logits, target = arguments[:2]
    logits[torch.rand(logits.shape) < 0.02] = special
    logits[0] = special
    logits[3, target[3]] = special
    logits[1:3] = float("nan")  # an ignored row and one of weight 0
    logits[7, 5:] = -float("inf")
    logits[11, 3:5] = torch.tensor([float("inf"), float("nan")])
    check(arguments, **options)


def test_ties_are_correct_and_rows_without_weight_are_free():
    arguments = problem(8, 33)
    arguments[0][0] = 1.0
    check(arguments)
    arguments[0][1:3] = float("nan")
    loss, lse, grad, *stats = backend.rows(*arguments, PLAIN, **WANT | {"want_stats": False})
    assert stats == [None] * 3
    assert not torch.stack([loss[1:3], lse[1:3]]).any()
    assert not grad[1:3].any()


def test_no_gradient_no_rows_no_domains():
    arguments = problem(8, 33)
    full = backend.rows(*arguments, PLAIN, **WANT)
    bare = backend.rows(*arguments, PLAIN, **WANT | {"want_grad": False, "inplace": True})
    assert bare[2] is None
    for a, b in zip(full[:2] + full[3:], bare[:2] + bare[3:]):
        assert torch.equal(a, b)
    check([*arguments[:3], None, 1])
    check([x[:0] for x in arguments[:4]] + [3])
    check([x[1:2] for x in arguments[:4]] + [3])  # one row, ignored


def test_sums_over_many_rows_and_domains():
    """Sums are right for more rows and domains than one program of the kernel handles at a time."""
    arguments = problem(1100, 3, num_domains=40)
    arguments[1][:1010] = -100
    check(arguments)


@pytest.mark.parametrize("dtype", ROUNDING, ids=str)
def test_scale(dtype):
    generator = torch.Generator().manual_seed(0)  # no value is subnormal in float16, where errors are larger
    for view in (lambda x: x, lambda x: x[1:, 3:40], lambda x: x[1:].T):
        storage = torch.randn(5, 51, generator=generator).to(DEVICE, dtype)
        assert 0.3 * storage.abs().min() > torch.finfo(torch.float16).tiny
        grad = view(storage)
        want = storage.double()
        view(want).mul_(0.3)
        backend.scale_(grad, torch.tensor(0.3, device=DEVICE))
        torch.testing.assert_close(storage.double(), want, rtol=ROUNDING[dtype] + 1e-6, atol=0)
        once = storage.clone()
        backend.scale_(grad, torch.ones((), dtype=torch.float64, device=DEVICE))
        assert torch.equal(storage, once)


def test_versions_of_triton():
    for version in ("3.6.0", "3.7.1+git0a1b2c3"):
        backend.check_version(version)
    with pytest.raises(ImportError, match=r"triton is 3\.5\.1, .*need 3\.6 or later; install 'triton>=3\.6,<3\.8'"):
        backend.check_version("3.5.1")
    with pytest.warns(RuntimeWarning, match=r"triton is 4\.0\.0, .*tested with 3\.6 to 3\.7"):
        backend.check_version("4.0.0")


def test_bad_input():
    arguments = problem(8, 33)
    with pytest.raises(TypeError, match=r"float64.*takes float32"):
        backend.rows(arguments[0].double(), *arguments[1:], PLAIN, **WANT)
    arguments[1][3] = 33
    if DEVICE == "cpu":
        with pytest.raises(IndexError, match=r"target\[3\] is 33, out of range for 33 classes"):
            backend.rows(*arguments, PLAIN, **WANT)
    else:
        loss, _, grad, *_ = backend.rows(*arguments, PLAIN, **WANT)
        assert loss.isnan().nonzero().flatten().tolist() == [3]
        assert grad.isnan().all(1).nonzero().flatten().tolist() == [3]
