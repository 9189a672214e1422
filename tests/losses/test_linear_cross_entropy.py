"""`linear_cross_entropy` agrees with `cross_entropy` of the layer's outputs in float64 and works with torch."""

import inspect

import pytest
import torch
import torch.nn.functional as F

from pycooldown.losses import LinearCrossEntropyLoss, _products, backends, cross_entropy, linear_cross_entropy

pytestmark = pytest.mark.usefixtures("device")

ROWS, FEATURES, CLASSES = 23, 12, 61
IDS = torch.arange(ROWS) % 3
WEIGHTS = torch.tensor([0.5, 0.0, 2.0])
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 2e-2, torch.float16: 3e-3}  # of the largest entry


def layer(dtype=torch.float32, rows=ROWS, seed=0, classes=CLASSES, features=FEATURES):
    """Return input, weight, bias and target. Every fifth target is ignored."""
    generator = torch.Generator(torch.get_default_device()).manual_seed(seed)
    tensors = [torch.randn(shape, generator=generator) for shape in ((rows, features), (classes, features), classes)]
    target = torch.randint(classes, (rows,), generator=generator)
    target[::5] = -100
    return *(t.to(dtype).requires_grad_() for t in tensors), target


def outcome(function, tensors, output_weights=None):
    """Return the loss, its gradients and statistics."""
    tensors = [t.detach().requires_grad_(t.requires_grad) for t in tensors]
    loss, stats = function(*tensors)
    differentiable = [t for t in tensors if t.requires_grad]
    output = loss.sum() if output_weights is None else (loss * output_weights).sum()
    return loss.detach(), torch.autograd.grad(output, differentiable), stats


def assert_agrees(hidden, weight, bias, target, output_weights=None, backend="auto", chunk_size=None, **options):
    options = {k: v.to(hidden.device) if isinstance(v, torch.Tensor) else v for k, v in options.items()}
    output_weights = None if output_weights is None else output_weights.to(hidden.device)

    def ours(x, w, b):
        return linear_cross_entropy(
            x, w, target, linear_bias=b, backend=backend, chunk_size=chunk_size, return_stats=True, **options
        )

    def exact(x, w, b):
        logits = F.linear(x, w, b).reshape(-1, CLASSES)
        flat = {k: v.flatten() if k in ("domain_ids", "token_weights") else v for k, v in options.items()}
        loss, stats = cross_entropy(logits, target.flatten(), backend="reference", return_stats=True, **flat)
        return loss.reshape(target.shape) if loss.dim() else loss, stats

    loss, grads, stats = outcome(ours, (hidden, weight, bias), output_weights)
    wide = [t.detach().double().requires_grad_(t.requires_grad) for t in (hidden, weight, bias)]
    expected_loss, expected_grads, expected_stats = outcome(exact, wide, output_weights)
    tolerance = TOLERANCE.get(hidden.dtype, 1e-12)
    for got, expected in zip((loss, *grads), (expected_loss, *expected_grads), strict=True):
        assert got.shape == expected.shape
        size = float(expected.abs().amax()) if expected.numel() else 0.0
        torch.testing.assert_close(got.double(), expected, rtol=0, atol=tolerance * size)
    assert [g.dtype for g in grads] == [t.dtype for t in (hidden, weight, bias) if t.requires_grad]
    torch.testing.assert_close(stats.loss_sum, expected_stats.loss_sum, rtol=tolerance, atol=1e-12)
    assert stats.token_count.equal(expected_stats.token_count)
    if hidden.dtype in (torch.float32, torch.float64):
        assert stats.correct.equal(expected_stats.correct)


OPTIONS = [
    {},
    {"domain_ids": IDS, "domain_weights": WEIGHTS},
    {"domain_ids": IDS, "domain_weights": WEIGHTS, "normalizer": "weight_sum", "output_weights": torch.tensor(3.0)},
    {"token_weights": torch.linspace(0, 2, ROWS), "z_loss": 1e-2, "softcap": 4.0, "label_smoothing": 0.1},
    {"reduction": "sum", "ignore_index": 7},
    {"reduction": "none", "output_weights": torch.linspace(-1, 2, ROWS), "z_loss": 1e-2},
]


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: "-".join(options) or "bare")
@pytest.mark.parametrize("chunk_size", [None, 1, 7, 1000])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_options(dtype, chunk_size, options):
    hidden, weight, bias, target = layer(dtype)
    if "ignore_index" in options:
        target[target == -100] = options["ignore_index"]
    assert_agrees(hidden, weight, bias, target, chunk_size=chunk_size, **options)


@pytest.mark.parametrize("options", OPTIONS[1:], ids=lambda options: "-".join(options))
@pytest.mark.parametrize("chunk_size", [None, 7])
def test_reference(chunk_size, options):
    hidden, weight, bias, target = layer(torch.float64)
    if "ignore_index" in options:
        target[target == -100] = options["ignore_index"]
    assert_agrees(hidden, weight, bias, target, chunk_size=chunk_size, **options)


@pytest.mark.parametrize("kind", ["class weights", "probabilities"])
def test_what_only_the_reference_computes(kind):
    hidden, weight, bias, target = layer(rows=9)
    options = {"weight": torch.linspace(0.5, 2, CLASSES)} if kind == "class weights" else {}
    if kind == "probabilities":
        target = torch.rand(9, CLASSES).softmax(1)
    results = []
    for function in (
        lambda: linear_cross_entropy(hidden, weight, target, linear_bias=bias, chunk_size=4, **options),
        lambda: F.cross_entropy(F.linear(hidden, weight, bias), target, **options),
    ):
        loss = function()
        results.append((loss, *torch.autograd.grad(loss, (hidden, weight, bias))))
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("frozen", ["input", "weight", "bias", "input and weight", "weight and bias"])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_frozen_sides(frozen, reduction):
    *tensors, target = layer()
    for name, tensor in zip(("input", "weight", "bias"), tensors, strict=True):
        tensor.requires_grad_(name not in frozen)
    assert_agrees(*tensors, target, chunk_size=6, reduction=reduction)


@pytest.mark.host  # oneDNN is a library for CPUs
@pytest.mark.parametrize("with_onednn", [True, False])
@pytest.mark.parametrize("view", ["contiguous", "transposed", "strided"])
def test_libraries_of_products(with_onednn, view):
    hidden, weight, bias, target = layer()
    if view == "transposed":
        weight = weight.detach().t().contiguous().t().requires_grad_()
    elif view == "strided":
        weight = weight.detach().repeat_interleave(2, dim=1)[:, ::2].requires_grad_()
    with torch.backends.mkldnn.flags(enabled=with_onednn):
        assert_agrees(hidden, weight, bias, target, chunk_size=6)


@pytest.mark.host  # counts products as the CPU computes them
def test_frozen_sides_take_no_products(monkeypatch):
    products = []
    for name in ("mm", "addmm"):
        function = getattr(torch, name)
        monkeypatch.setattr(torch, name, lambda *a, _f=function, **kw: products.append(1) or _f(*a, **kw))
    for frozen, expected in (((), 3), (("input",), 2), (("weight",), 2), (("input", "weight"), 1)):
        hidden, weight, _, target = layer()
        hidden.requires_grad_("input" not in frozen)
        weight.requires_grad_("weight" not in frozen)
        products.clear()
        with torch.backends.mkldnn.flags(enabled=False):
            linear_cross_entropy(hidden, weight, target)
        assert len(products) == expected
    with torch.no_grad(), torch.backends.mkldnn.flags(enabled=False):
        products.clear()
        linear_cross_entropy(*layer()[:2], target)
        assert len(products) == 1


@pytest.mark.parametrize("shape", [(), (1,), (0,), (4, 6), (2, 3, 4)])
@pytest.mark.parametrize("reduction", ["sum", "none"])
def test_leading_shapes(shape, reduction):
    count = torch.Size(shape).numel()
    hidden, weight, bias, target = layer(rows=count)
    hidden = hidden.detach().reshape(*shape, FEATURES).requires_grad_()
    ids = torch.arange(count).reshape(shape) % 3
    assert_agrees(
        hidden, weight, bias, target.reshape(shape), reduction=reduction, domain_ids=ids, domain_weights=WEIGHTS
    )


def test_a_domain_per_sequence():
    hidden, weight, _, target = layer(rows=24)
    ids, hidden, target = torch.tensor([0, 1, 2, 0]), hidden.view(4, 6, -1), target.view(4, 6)
    per_sequence, per_token = (
        linear_cross_entropy(hidden, weight, target, domain_ids=i, domain_weights=WEIGHTS)
        for i in (ids, ids.unsqueeze(1).expand(4, 6))
    )
    assert per_sequence.equal(per_token)


def test_rows_without_weight_take_no_part(monkeypatch, fused):
    """Rows without a weight are not read: the kernel sees only the others."""
    seen = []
    kernel = backends.load_fused(fused)
    rows = kernel.rows  # a function of the contract of all backends
    monkeypatch.setattr(kernel, "rows", lambda x, *a, **kw: seen.append(len(x)) or rows(x, *a, **kw))
    hidden, weight, _, target = layer(rows=10)
    token_weights = torch.ones(10)
    token_weights[1] = 0
    counts = (target != -100) & (token_weights != 0)
    assert counts.sum() == 7
    spoilt = torch.where(counts.unsqueeze(1), hidden, torch.nan).detach().requires_grad_()
    loss = linear_cross_entropy(spoilt, weight, target, token_weights=token_weights, reduction="sum", chunk_size=4)
    loss.backward()
    assert seen == [4, 3]
    rest = F.cross_entropy(F.linear(hidden, weight)[counts], target[counts], reduction="sum")
    expected = torch.autograd.grad(rest, (hidden, weight))
    torch.testing.assert_close(loss, rest)
    torch.testing.assert_close((spoilt.grad, weight.grad * 2), (expected[0], expected[1] + weight.grad))


@pytest.mark.host  # replaces functions of torch.cuda
def test_graph_capture_waits_for_nothing(monkeypatch):
    """During capture of a CUDA graph the number of rows with a weight cannot be read, so all rows take part."""
    hidden, weight, bias, target = layer()

    def loss_and_gradients():
        loss = linear_cross_entropy(
            hidden, weight, target, linear_bias=bias, domain_ids=IDS, domain_weights=WEIGHTS, chunk_size=7
        )
        return loss, *torch.autograd.grad(loss, (hidden, weight, bias))

    expected = loss_and_gradients()
    for name in ("is_initialized", "is_current_stream_capturing"):
        monkeypatch.setattr(torch.cuda, name, lambda: True)
    monkeypatch.setattr(torch.Tensor, "nonzero", lambda *_: pytest.fail("nonzero waits for the device"))
    torch.testing.assert_close(loss_and_gradients(), expected)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_all_rows_ignored(reduction):
    hidden, weight, bias, _ = layer()
    loss = linear_cross_entropy(hidden, weight, torch.full((ROWS,), -100), linear_bias=bias, reduction=reduction)
    loss.sum().backward()
    assert loss.isnan().all() if reduction == "mean" else loss.eq(0).all()
    if reduction != "mean":
        assert all(t.grad.eq(0).all() for t in (hidden, weight, bias))


@pytest.mark.parametrize(("features", "chunk_size", "seed"), [(12, 1, 4), (2, 3, 0)])  # one product takes 12 rows, or 3
def test_half_precision_is_summed_in_float32(features, chunk_size, seed):
    """Sums of gradients are no worse than with one chunk. A sum in bfloat16 would add many rounding errors."""
    hidden, weight, _, target = layer(torch.bfloat16, rows=400, classes=5, features=features, seed=seed)

    def gradient(x, w, **options):
        x, w = x.detach(), w.detach().requires_grad_()
        return torch.autograd.grad(linear_cross_entropy(x, w, target, reduction="sum", **options), w)[0].double()

    exact = gradient(hidden.double(), weight.double())
    errors = [(gradient(hidden, weight, chunk_size=size) - exact).abs().amax() for size in (chunk_size, 400)]
    assert errors[0] <= 1.5 * errors[1] + 2.0**-9 * exact.abs().amax()


@pytest.mark.host  # sizes alone
def test_default_chunk_size():
    def size(rows, classes, dtype=torch.float32, device="cpu"):
        return _products.default_chunk_size(rows, classes, dtype, torch.device(device))

    assert size(100, 1000) == 100
    assert size(1024, 32768) == 147  # 20 MiB hold 160 rows; 7 chunks of 147 have even sizes
    assert size(1024, 32768, torch.bfloat16) == 256
    assert size(4096, 128 * 1024) == 96
    assert size(4096, 128 * 1024, device="cuda") == 1024
    assert size(0, 0) == 1


@pytest.mark.host  # sizes alone
def test_sizes_for_a_gpu():
    """Slices of the gradient fill a GPU at any number of features. Rows of logits begin at multiples of 128 bytes."""
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert [_products.slice_size(features, gpu) for features in (0, 768, 4096, 8192)] == [8388608, 11008, 2048, 2048]
    assert _products.slice_size(768, cpu) == 2048
    for dtype, step in ((torch.bfloat16, 50_304), (torch.float32, 50_272)):
        assert _products.empty_logits(3, 50_257, dtype, torch.device("meta")).stride() == (step, 1)
    assert _products.empty_logits(3, 50_257, torch.bfloat16, cpu).stride() == (50_257, 1)


# Dtypes of weight and logits, number of features, rows per chunk, and how many of the 23 rows one product takes.
GROUPS = {
    "one chunk": (torch.float32, torch.float32, 12, 30, 23),
    "chunks": (torch.float32, torch.float32, 12, 5, 5),
    "all wait": (torch.float32, torch.float32, 23, 5, 23),
    "all wait, half": (torch.bfloat16, torch.bfloat16, 40, 5, 23),
    "some wait for a sum": (torch.bfloat16, torch.bfloat16, 12, 5, 10),
    "some wait for a sum, float16": (torch.float16, torch.float16, 12, 5, 10),
    "none wait, as two chunks do not fit": (torch.bfloat16, torch.bfloat16, 9, 5, 5),
    "chunks for a sum": (torch.bfloat16, torch.bfloat16, 4, 5, 5),
    "all wait, autocast": (torch.float32, torch.bfloat16, 12, 5, 23),
    "chunks, autocast": (torch.float32, torch.bfloat16, 11, 5, 5),
}


@pytest.mark.host  # a GPU takes larger slices
@pytest.mark.parametrize("with_rows_left_out", [False, True])
@pytest.mark.parametrize("case", GROUPS)
def test_groups_of_rows(case, with_rows_left_out, monkeypatch):
    # Slices of 16 of the 61 classes. Real slices have 2,048, and users have no reason to choose another size.
    monkeypatch.setattr(_products, "SLICE", 16)
    dtype, autocast, features, chunk_size, rows_at_once = GROUPS[case]
    hidden, weight, bias, target = layer(dtype, features=features, rows=29 if with_rows_left_out else ROWS)
    if not with_rows_left_out:
        target[target == -100] = 3
    assert (target != -100).sum() == ROWS
    assert _products.WeightGradient(weight, autocast, ROWS, chunk_size).rows_at_once == rows_at_once

    with torch.autocast(torch.get_default_device().type, dtype=torch.bfloat16, enabled=autocast != dtype):
        loss = linear_cross_entropy(hidden, weight, target, linear_bias=bias, chunk_size=chunk_size)
    wide = [t.detach().double().requires_grad_() for t in (hidden, weight, bias)]
    expected = F.cross_entropy(F.linear(*wide), target)
    tensors = (hidden, weight, bias)
    for got, exact in zip(torch.autograd.grad(loss, tensors), torch.autograd.grad(expected, wide), strict=True):
        torch.testing.assert_close(got.double(), exact, rtol=0, atol=TOLERANCE[autocast] * float(exact.abs().amax()))


def test_gradients_are_given_away():
    """The gradients that the forward pass computed become `.grad` without a copy."""
    hidden, weight, _, target = layer()
    loss = linear_cross_entropy(hidden, weight, target, reduction="sum")
    assert not [t for t in (hidden, weight) if t.grad is not None]
    stored = [grad.data_ptr() for grad in loss.grad_fn.grads if grad is not None]
    loss.backward()
    assert [hidden.grad.data_ptr(), weight.grad.data_ptr()] == stored


def test_backward_twice_and_derivatives():
    hidden, weight, bias, target = layer()
    loss = linear_cross_entropy(hidden, weight, target, linear_bias=bias, chunk_size=5) * 2
    first, second = (torch.autograd.grad(loss, (hidden, weight, bias), retain_graph=True) for _ in range(2))
    torch.testing.assert_close(first, second)
    (grad,) = torch.autograd.grad(loss, weight, create_graph=True)
    with pytest.raises(NotImplementedError, match="backend='reference'"):
        grad.sum().backward()


@pytest.mark.parametrize("chunk_size", [None, 2])
def test_gradcheck_of_the_reference(chunk_size):
    hidden, weight, bias, target = layer(torch.float64, rows=4, classes=5, features=3)

    def function(*tensors):
        x, w, b = tensors
        return linear_cross_entropy(
            x, w, target, linear_bias=b, z_loss=0.1, softcap=3.0, label_smoothing=0.1, chunk_size=chunk_size
        )

    assert torch.autograd.gradcheck(function, (hidden, weight, bias))
    assert torch.autograd.gradgradcheck(function, (hidden, weight, bias))


def test_operator_registration(fused):
    hidden, weight, bias, target = layer()
    rows, wanted, options = (target, torch.rand(ROWS), IDS, 3), [True] * 4, (-100, 0.1, 1e-3, 0.0, fused, "")
    arguments = (hidden, weight, bias, *rows, torch.float32, 7, *wanted, *options)
    torch.library.opcheck(torch.ops.pycooldown.linear_cross_entropy.default, arguments)


def test_compiles_to_one_graph():
    hidden, weight, _, target = layer()

    def step(x, w):
        return linear_cross_entropy(x * 2, w, target, domain_ids=IDS, domain_weights=WEIGHTS) * 3

    results = []
    for function in (step, torch.compile(step, fullgraph=True, backend="aot_eager")):
        loss = function(hidden, weight)
        results.append((loss, *torch.autograd.grad(loss, (hidden, weight))))
    torch.testing.assert_close(*results)


def test_autocast():
    hidden, weight, bias, target = layer()
    with torch.autocast(torch.get_default_device().type, dtype=torch.bfloat16):
        loss = linear_cross_entropy(hidden, weight, target, linear_bias=bias, chunk_size=5)
        expected = F.cross_entropy(F.linear(hidden, weight, bias), target)
    assert loss.dtype == torch.float32
    for got, exact in zip(
        (loss, *torch.autograd.grad(loss, (hidden, weight, bias))),
        (expected, *torch.autograd.grad(expected, (hidden, weight, bias))),
        strict=True,
    ):
        assert got.dtype == torch.float32
        torch.testing.assert_close(got, exact, rtol=0, atol=2e-2 * float(exact.detach().abs().amax()))


class TestAgainstTorch:
    @pytest.mark.skipif(not hasattr(F, "linear_cross_entropy"), reason="torch has none")
    def test_same_arguments(self):
        for ours, theirs in ((linear_cross_entropy, F.linear_cross_entropy),):
            missing = set(inspect.signature(theirs).parameters) - set(inspect.signature(ours).parameters)
            assert not missing
        hidden, weight, bias, target = layer()
        options = torch.nn.LinearCrossEntropyOptions(batch_chunk_size=5)
        for kwargs in ({"linear_bias": bias}, {"options": options}, {"reduction": "sum", "ignore_index": None}):
            ours, theirs = (f(hidden, weight, target, **kwargs) for f in (linear_cross_entropy, F.linear_cross_entropy))
            torch.testing.assert_close(ours, theirs)

    @pytest.mark.skipif(not hasattr(torch.nn, "LinearCrossEntropyLoss"), reason="torch has none")
    @pytest.mark.parametrize("out_features", [(), (2, 3)])
    def test_module_takes_the_same_arguments(self, out_features):
        parameters = inspect.signature(torch.nn.LinearCrossEntropyLoss).parameters.values()
        defaults = {p.name: p.default for p in parameters if p.default is not p.empty}
        arguments = {**defaults, "out_features": out_features, "bias": True}
        theirs = torch.nn.LinearCrossEntropyLoss(FEATURES, CLASSES, **arguments)
        ours = LinearCrossEntropyLoss(FEATURES, CLASSES, **arguments)
        ours.load_state_dict(theirs.state_dict())
        hidden, target = layer()[0], torch.randint(CLASSES, (ROWS, *out_features))
        torch.testing.assert_close(ours(hidden, target), theirs(hidden, target))

    @pytest.mark.skipif(not hasattr(F, "linear_cross_entropy"), reason="torch has none")
    @pytest.mark.parametrize("chunk_size", [None, 5])
    @pytest.mark.parametrize("reduction", ["mean", "none"])
    @pytest.mark.parametrize("probabilities", [False, True])
    @pytest.mark.parametrize("dims", [(3,), (2, 4)])
    def test_weights_of_more_dimensions(self, dims, probabilities, reduction, chunk_size):
        hidden = torch.randn(9, 4, dtype=torch.float64, requires_grad=True)
        weight = torch.randn(5, *dims, 4, dtype=torch.float64, requires_grad=True)
        bias = torch.randn(5, *dims, dtype=torch.float64, requires_grad=True)
        target = torch.randint(5, (9, *dims))
        target[::4] = -100
        if probabilities:
            target = torch.rand(9, 5, *dims, dtype=torch.float64).softmax(1)
        options = {"linear_bias": bias, "weight": torch.linspace(0.5, 2, 5).double(), "reduction": reduction}
        losses = (
            linear_cross_entropy(hidden, weight, target, chunk_size=chunk_size, **options),
            F.linear_cross_entropy(hidden, weight, target, ignore_index=None, **options),
        )
        torch.testing.assert_close(*losses)
        torch.testing.assert_close(*(torch.autograd.grad(loss.sum(), (hidden, weight, bias)) for loss in losses))

    def test_module_ties_weights(self):
        embedding = torch.nn.Embedding(CLASSES, FEATURES)
        module = LinearCrossEntropyLoss(
            FEATURES, CLASSES, bias=True, domain_weights=WEIGHTS, return_stats=True, z_loss=0.1
        )
        module.linear.weight = embedding.weight
        _, _, _, target = layer()
        hidden = embedding(torch.arange(ROWS)).tanh()
        loss, stats = module(hidden, target, domain_ids=IDS)
        logits = F.linear(hidden, embedding.weight, module.linear.bias)
        expected, _ = cross_entropy(
            logits, target, domain_ids=IDS, domain_weights=WEIGHTS, z_loss=0.1, return_stats=True
        )
        torch.testing.assert_close(loss, expected)
        gradients = [torch.autograd.grad(x, embedding.weight, retain_graph=True)[0] for x in (loss, expected)]
        torch.testing.assert_close(*gradients)
        assert stats.token_count.sum() == (target != -100).sum()
        assert set(module.state_dict()) == {"linear.weight", "linear.bias"}


ERRORS = {
    "features": ({"linear_weight": torch.zeros(5, 3)}, ValueError, r"got \(3, 4\) and \(5, 3\)"),
    "one row of a weight by 3": (
        {"input": torch.zeros(4), "linear_weight": torch.zeros(5, 2, 4)},
        ValueError,
        r"input.unsqueeze\(0\)",
    ),
    "bias": ({"linear_bias": torch.zeros(4)}, ValueError, r"linear_bias must be \(5,\)"),
    "dtypes": ({"linear_weight": torch.zeros(5, 4).bfloat16()}, TypeError, "convert one, or use torch.autocast"),
    "integer input": ({"input": torch.zeros(3, 4).long()}, TypeError, "input must be floating point"),
    "device": ({"linear_weight": torch.zeros(5, 4, device="meta")}, ValueError, "move it there"),
    "chunk of 0": ({"chunk_size": 0}, ValueError, "chunk_size must be at least 1"),
    "options": ({"options": {"chunks": 4}}, TypeError, "LinearCrossEntropyOptions"),
    "target": ({"target": torch.tensor([0, 5, 1])}, IndexError, "target 5 at row 1"),
    "target shape": ({"target": torch.zeros(2).long()}, ValueError, r"target must have shape \(3,\)"),
    "probabilities": ({"target": torch.zeros(3, 4)}, ValueError, r"shape of the logits \(3, 5\)"),
    "domain ids alone": ({"domain_ids": torch.tensor([0, 1, 1])}, ValueError, "domain_weights"),
    "reduction": ({"reduction": "avg"}, ValueError, "reduction must be one of"),
    "cpp with class weights": ({"weight": torch.ones(5), "backend": "cpp"}, ValueError, "class weights"),
}


@pytest.mark.host  # values of tensors are not checked on a GPU
@pytest.mark.parametrize("case", ERRORS)
def test_errors_name_the_argument(case):
    changed, error, match = ERRORS[case]
    arguments = {"input": torch.zeros(3, 4), "linear_weight": torch.zeros(5, 4), "target": torch.tensor([0, 1, 2])}
    with pytest.raises(error, match=match):
        linear_cross_entropy(**arguments | changed)
