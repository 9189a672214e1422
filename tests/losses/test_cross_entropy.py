"""`cross_entropy` agrees with torch's loss and works with autograd, compilation and transforms."""

import pytest
import torch
import torch.nn.functional as F

from pycooldown.losses import CrossEntropyLoss, cross_entropy

pytestmark = pytest.mark.usefixtures("device")


def logits_and_target(*shape, dtype=torch.float32):
    generator = torch.Generator(torch.get_default_device()).manual_seed(0)
    logits = torch.randn(*shape, generator=generator).to(dtype).requires_grad_()
    rows = shape[:1] + shape[2:] if len(shape) > 1 else ()
    return logits, torch.randint(shape[min(1, len(shape) - 1)], rows, generator=generator)


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("shape", [(9,), (6, 9), (0, 9), (2, 9, 3), (2, 9, 3, 4)])
@pytest.mark.parametrize("kind", ["classes", "class weights", "probabilities", "float64", "uint8"])
def test_gives_torchs_answer(shape, reduction, backend, kind):
    logits, target = logits_and_target(*shape, dtype=torch.float64 if kind == "float64" else torch.float32)
    weight = torch.linspace(0.5, 2, 9) if kind == "class weights" else None
    if kind == "probabilities":
        target = logits.detach().softmax(0 if len(shape) == 1 else 1)
    if kind == "uint8":
        if len(shape) > 2:
            pytest.skip("torch does not take uint8 targets of this shape")
        target = target.byte()
    results = []
    options = {"reduction": reduction, "label_smoothing": 0.1}
    if target.dtype == torch.int64 and target.dim():
        options["ignore_index"] = 3
    for function in (lambda *args, **kw: cross_entropy(*args, backend=backend, **kw), F.cross_entropy):
        loss = function(logits, target, weight, **options)
        results.append((loss, *torch.autograd.grad(loss.sum(), logits)))
    torch.testing.assert_close(*results, equal_nan=True)


def test_module_holds_the_functions_options():
    logits, target = logits_and_target(6, 9)
    ids, weights = torch.tensor([0, 1, 1, 0, 1, 0]), torch.tensor([0.5, 2.0])
    module = CrossEntropyLoss(domain_weights=weights, z_loss=1e-3, return_stats=True)
    loss, stats = module(logits, target, domain_ids=ids)
    expected, _ = cross_entropy(logits, target, domain_ids=ids, domain_weights=weights, z_loss=1e-3, return_stats=True)
    assert loss.equal(expected)
    assert stats.token_count.tolist() == [3, 3]
    assert "z_loss=0.001" in repr(module)
    assert not module.state_dict()
    assert CrossEntropyLoss()(logits, target).equal(cross_entropy(logits, target))


def test_module_refuses_unknown_options():
    with pytest.raises(TypeError, match=r"has no option lable_smoothing; the options are .*label_smoothing"):
        CrossEntropyLoss(lable_smoothing=0.1)


def test_scalarization_has_the_gradient_of_temperature_sampling():
    """On a full batch, weights p(i; τ) / p(i; 1) give the gradient of the sum of domain means under p(i; τ)."""
    sizes = torch.tensor([50, 10, 4])
    ids = torch.repeat_interleave(torch.arange(3), sizes)
    logits, target = logits_and_target(64, 7, dtype=torch.float64)
    proportional = sizes / sizes.sum(dtype=torch.float64)
    target_distribution = proportional ** (1 / 5) / (proportional ** (1 / 5)).sum()
    scalarized = cross_entropy(logits, target, domain_ids=ids, domain_weights=target_distribution / proportional)
    losses = F.cross_entropy(logits, target, reduction="none")
    sampled = sum(target_distribution[i] * losses[ids == i].mean() for i in range(3))
    gradients = [torch.autograd.grad(loss, logits)[0] for loss in (scalarized, sampled)]
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-12)


def test_count_is_unbiased_and_weight_sum_is_not():
    """The expectation is over all equally likely batches of 2 of 3 rows with different losses and weights."""
    logits = torch.tensor([[3.0, 0.0], [0.0, 0.0], [0.0, 3.0]], dtype=torch.float64)
    ids, weights, target = (
        torch.tensor([0, 1, 2]),
        torch.tensor([0.2, 0.8, 2.0], dtype=torch.float64),
        torch.zeros(3).long(),
    )

    def loss(rows, normalizer):
        return cross_entropy(
            logits[rows], target[rows], domain_ids=ids[rows], domain_weights=weights, normalizer=normalizer
        ).item()

    batches = [[i, j] for i in range(3) for j in range(3)]
    for normalizer, unbiased in (("count", True), ("weight_sum", False)):
        expectation = sum(loss(rows, normalizer) for rows in batches) / 9
        full = loss([0, 1, 2], normalizer)
        assert (abs(expectation - full) < 1e-12) == unbiased


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_operator_registration(reduction, fused):
    logits, target = logits_and_target(5, 9)
    scale, ids = torch.rand(5), torch.tensor([0, 1, 1, 0, 2])
    operators = torch.ops.pycooldown
    arguments = (logits, target, scale, ids, 3, reduction == "mean", True, -100, 0.1, 1e-3, 0.0, fused, "")
    torch.library.opcheck(operators.cross_entropy.default, arguments)
    torch.library.opcheck(operators.scale_gradient_.default, (torch.rand(2, 3), torch.tensor(2.0), fused))


@pytest.mark.parametrize(("padding", "kept"), [(0, True), (1, True), (2, False)])
def test_padded_rows_have_padded_gradients(padding, kept, fused):
    """Padding below an eighth of a row is kept, both eagerly and as torch.compile expects it."""
    logits, target = torch.zeros(5, 9 + padding)[:, :9].copy_(logits_and_target(5, 9)[0]), logits_and_target(5, 9)[1]
    arguments = (logits, target, torch.rand(5), None, 1, True, False, -100, 0.0, 0.0, 0.0, fused, "")
    torch.library.opcheck(torch.ops.pycooldown.cross_entropy.default, arguments)
    grad = torch.ops.pycooldown.cross_entropy(*arguments)[2]
    assert grad.stride() == (9 + padding * kept, 1)
    logits.requires_grad_()
    for function in (cross_entropy, torch.compile(cross_entropy, fullgraph=True, backend="aot_eager")):
        (grad,) = torch.autograd.grad(function(logits, target), logits)
        torch.testing.assert_close(grad, torch.autograd.grad(F.cross_entropy(logits, target), logits)[0])


def test_compiles_to_one_graph():
    logits, target = logits_and_target(5, 9)
    ids, weights = torch.tensor([0, 1, 1, 0, 1]), torch.tensor([0.5, 2.0])

    def step(x):
        loss, stats = cross_entropy(x * 2, target, domain_ids=ids, domain_weights=weights, return_stats=True)
        return loss * 3, stats

    expected, expected_stats = step(logits)
    compiled, stats = torch.compile(step, fullgraph=True, backend="aot_eager")(logits)
    torch.testing.assert_close(compiled, expected)
    torch.testing.assert_close(tuple(stats), tuple(expected_stats))
    torch.testing.assert_close(torch.autograd.grad(compiled, logits), torch.autograd.grad(expected, logits))


def test_gradcheck_of_the_reference():
    logits, target = logits_and_target(4, 6, dtype=torch.float64)
    function = lambda x: cross_entropy(x, target, z_loss=0.1, softcap=3.0, label_smoothing=0.1)  # noqa: E731
    assert torch.autograd.gradcheck(function, logits)
    assert torch.autograd.gradgradcheck(function, logits)


def test_torch_func():
    logits, target = logits_and_target(3, 4, 6)[0].detach(), torch.tensor([[0, 1, 2, 3], [4, 5, 0, 1], [2, 3, 4, 5]])
    for function in (
        lambda loss: torch.func.grad(loss)(logits[0], target[0]),
        lambda loss: torch.func.vmap(torch.func.grad(loss))(logits, target),
        lambda loss: torch.func.jvp(lambda x: loss(x, target[0]), (logits[0],), (logits[1],))[1],
    ):
        torch.testing.assert_close(function(cross_entropy), function(F.cross_entropy))


def test_autocast_gives_a_float32_loss():
    hidden, weight = torch.randn(4, 8), torch.randn(9, 8, requires_grad=True)
    with torch.autocast(torch.get_default_device().type, dtype=torch.bfloat16):
        logits = F.linear(hidden, weight)
        loss = cross_entropy(logits, torch.tensor([1, 2, 3, 4]))
        expected = F.cross_entropy(logits, torch.tensor([1, 2, 3, 4]))
    assert loss.dtype == expected.dtype == torch.float32
    torch.testing.assert_close(loss, expected)
    loss.backward()
    assert weight.grad.isfinite().all()


def test_backward_twice(fused):
    logits, target = logits_and_target(4, 6)
    loss = cross_entropy(logits, target, backend=fused) * 2
    first, second = (torch.autograd.grad(loss, logits, retain_graph=True)[0] for _ in range(2))
    torch.testing.assert_close(first, second)


def test_second_derivative_raises(fused):
    logits, target = logits_and_target(4, 6)
    (grad,) = torch.autograd.grad(cross_entropy(logits, target, backend=fused), logits, create_graph=True)
    with pytest.raises(NotImplementedError, match="backend='reference'"):
        grad.sum().backward()


class TestInplace:
    def test_gradient_lies_in_the_logits(self):
        leaf, target = logits_and_target(4, 6)
        logits = leaf * 1
        place = logits.data_ptr()
        (cross_entropy(logits, target, inplace=True) * 2).backward()
        expected = torch.autograd.grad(F.cross_entropy(leaf, target) * 2, leaf)[0]
        torch.testing.assert_close(leaf.grad, expected)
        assert logits.data_ptr() == place
        torch.testing.assert_close(logits.detach(), expected)

    def test_autograd_detects_logits_saved_before(self):
        leaf, target = logits_and_target(4, 6)
        logits = leaf * 1
        penalty = logits.square().sum()
        loss = cross_entropy(logits, target, inplace=True) + penalty
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()

    def test_sums_of_a_domain_without_weight(self):
        leaf, target = logits_and_target(4, 6)
        ids, weights = torch.tensor([0, 1, 1, 0]), torch.tensor([1.0, 0.0])
        expected, stats = (
            cross_entropy(leaf * 1, target, domain_ids=ids, domain_weights=weights, return_stats=True, inplace=inplace)
            for inplace in (False, True)
        )
        torch.testing.assert_close(expected, stats)

    def test_leaf(self):
        logits, target = logits_and_target(4, 6)
        with pytest.raises(ValueError, match="leaf that requires grad"):
            cross_entropy(logits, target, inplace=True)

    def test_view_of_a_leaf(self):
        logits, target = logits_and_target(28)[0], torch.tensor([0, 1, 2, 3])
        with pytest.raises(ValueError, match="leaf that requires grad"):
            cross_entropy(logits.view(4, 7), target, inplace=True)

    @pytest.mark.parametrize("strides", [(0, 1), (1, 0), (2, 1), (5, 1), (1, 3)])
    def test_logits_that_share_memory(self, strides):
        logits = logits_and_target(1, 24)[0] * 1
        with pytest.raises(ValueError, match=r"share memory, got \(4, 6\) with strides .*; clone it"):
            cross_entropy(logits.as_strided((4, 6), strides), torch.tensor([0, 1, 2, 3]), inplace=True)

    @pytest.mark.parametrize("strides", [(6, 1), (1, 4), (8, 1), (13, 2)])
    def test_logits_of_any_strides(self, strides):
        storage, target = logits_and_target(1, 64)[0] * 1, torch.tensor([0, 1, 2, 3])
        logits = storage.as_strided((4, 6), strides)
        expected = cross_entropy(logits.detach().clone(), target)
        assert cross_entropy(logits, target, inplace=True).equal(expected)

    def test_logits_written_to_afterwards(self):
        leaf, target = logits_and_target(4, 6)
        logits = leaf * 1
        loss = cross_entropy(logits, target, inplace=True)
        logits.zero_()
        with pytest.raises(RuntimeError, match="written to before backward"):
            loss.backward()

    def test_second_backward(self):
        leaf, target = logits_and_target(4, 6)
        loss = cross_entropy(leaf * 1, target, inplace=True)
        loss.backward(retain_graph=True)
        with pytest.raises(RuntimeError, match="second backward"):
            loss.backward()

    def test_nothing_is_written_without_a_gradient(self):
        logits = logits_and_target(4, 6)[0].detach()
        before = logits.clone()
        cross_entropy(logits, torch.tensor([0, 1, 2, 3]), inplace=True)
        assert logits.equal(before)


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("rows", [0, 2])
def test_no_classes(rows, backend):
    logits, target = torch.zeros(rows, 0), torch.full((rows,), -100)
    assert cross_entropy(logits, target, backend=backend).isnan()
    assert F.cross_entropy(logits, target).isnan()


def test_class_weights_under_autocast():
    logits, target = logits_and_target(6, 9, dtype=torch.bfloat16)
    weight = torch.linspace(0.5, 2, 9)
    with torch.autocast(torch.get_default_device().type, dtype=torch.bfloat16):
        torch.testing.assert_close(
            cross_entropy(logits, target, weight), F.cross_entropy(logits, target, weight).float()
        )


ONES = torch.ones(2)
IDS = torch.tensor([0, 1, 1])
ERRORS = {
    "target": ({"target": torch.tensor([0, 9, 1])}, IndexError, "target 9 at row 1"),
    "target dtype": ({"target": torch.tensor([0, 1, 1]).int()}, TypeError, "int64"),
    "target shape": ({"target": torch.tensor([0, 1])}, ValueError, r"target must have shape \(3,\)"),
    "integer logits": ({"input": torch.zeros(3, 5).long()}, TypeError, "floating point"),
    "domain id": ({"domain_ids": IDS + 1, "domain_weights": ONES}, IndexError, "holds 2 at row 1"),
    "domain ids alone": ({"domain_ids": IDS}, ValueError, r"torch.ones\(num_domains\)"),
    "domain weights alone": ({"domain_weights": ONES}, ValueError, "domain_weights needs domain_ids"),
    "negative weight": ({"domain_ids": IDS, "domain_weights": -ONES}, ValueError, "not negative"),
    "NaN weight": ({"token_weights": torch.full((3,), torch.nan)}, ValueError, "finite"),
    "integer weight": ({"token_weights": IDS}, TypeError, r"token_weights.float\(\)"),
    "weights by two": ({"token_weights": torch.ones(2)}, ValueError, "per token"),
    "class weight": ({"weight": torch.ones(4)}, ValueError, "one weight per class"),
    "device": ({"token_weights": torch.ones(3, device="meta")}, ValueError, "move it there"),
    "reduction": ({"reduction": "avg"}, ValueError, "reduction must be one of"),
    "smoothing": ({"label_smoothing": 1.5}, ValueError, "label_smoothing"),
    "softcap": ({"softcap": 0.0}, ValueError, "None for no cap"),
    "z-loss": ({"z_loss": -1.0}, ValueError, "z_loss"),
    "softcap as a tensor": ({"softcap": torch.tensor(3.0)}, TypeError, r"softcap must be a number.*softcap.item\(\)"),
    "ignore_index as text": ({"ignore_index": "x"}, TypeError, "ignore_index must be an integer, got 'x'"),
    "no ignore_index": ({"ignore_index": None}, TypeError, "ignore_index must be an integer, got None"),
    "a fraction": ({"ignore_index": 1.5}, TypeError, "ignore_index must be an integer, got 1.5"),
    "beyond int64": ({"ignore_index": 2**63}, ValueError, r"ignore_index must be in \[-2\^63, 2\^63\)"),
    "z-loss as a tensor": ({"z_loss": torch.tensor(0.1)}, TypeError, "z_loss must be a number"),
    "cpp with class weights": ({"weight": torch.ones(5), "backend": "cpp"}, ValueError, "class weights"),
    "cpp with float64": ({"input": torch.zeros(3, 5).double(), "backend": "cpp"}, ValueError, "float64"),
}


@pytest.mark.host  # values of tensors are not checked on a GPU
@pytest.mark.parametrize("case", ERRORS)
def test_errors_name_the_argument(case):
    changed, error, match = ERRORS[case]
    arguments = {"input": torch.zeros(3, 5), "target": torch.tensor([0, 1, 2])} | changed
    with pytest.raises(error, match=match):
        cross_entropy(**arguments)
