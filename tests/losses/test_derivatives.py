"""Forward-mode derivatives and derivatives by weights are computed or refused, never silently left out."""

import pytest
import torch
import torch.nn.functional as F
from torch.autograd import forward_ad

from pycooldown.losses import cross_entropy, linear_cross_entropy

pytestmark = pytest.mark.usefixtures("device")

TARGET = torch.tensor([0, 1, -100, 3, 4])
IDS = torch.tensor([0, 1, 1, 0, 2])


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator(torch.get_default_device()).manual_seed(seed))


def dense(logits):
    return cross_entropy(logits, TARGET)


def linear(hidden, weight, bias, **options):
    return linear_cross_entropy(hidden, weight, TARGET, linear_bias=bias, **options)


def plain_linear(hidden, weight, bias):
    return F.cross_entropy(F.linear(hidden, weight, bias), TARGET)


CASES = {
    "logits": (dense, lambda x: F.cross_entropy(x, TARGET), [(5, 7)]),
    "layer": (linear, plain_linear, [(5, 3), (7, 3), (7,)]),
    "layer in chunks": (lambda *t: linear(*t, chunk_size=2), plain_linear, [(5, 3), (7, 3), (7,)]),
}


@pytest.mark.parametrize("case", CASES)
def test_forward_mode(case):
    """Derivatives agree through torch.func, through dual tensors of one operand at a time, and under torch.compile."""
    ours, theirs, shapes = CASES[case]
    primals = tuple(random(*shape, seed=i) for i, shape in enumerate(shapes))
    tangents = tuple(random(*shape, seed=i + 9) for i, shape in enumerate(shapes))
    torch.testing.assert_close(torch.func.jvp(ours, primals, tangents), torch.func.jvp(theirs, primals, tangents))
    for i in range(len(shapes)):
        found = []
        for function in (ours, theirs):
            with forward_ad.dual_level():
                dual = [forward_ad.make_dual(p, t) if j == i else p for j, (p, t) in enumerate(zip(primals, tangents))]
                found.append(forward_ad.unpack_dual(function(*dual)).tangent)
        torch.testing.assert_close(*found)

    def compiled(*primals):
        return torch.func.jvp(ours, primals, tangents)[1]

    result = torch.compile(compiled, fullgraph=True, backend="eager")(*primals)
    torch.testing.assert_close(result, torch.func.jvp(theirs, primals, tangents)[1])


@pytest.mark.parametrize("transform", [torch.func.grad, torch.func.hessian])
def test_compiled_transforms(transform):
    logits = random(5, 7)
    compiled = torch.compile(lambda x: transform(dense)(x), fullgraph=True, backend="aot_eager")(logits)
    torch.testing.assert_close(compiled, transform(lambda x: F.cross_entropy(x, TARGET))(logits))


def test_a_named_backend_refuses_forward_mode(fused):
    logits = random(5, 7)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(logits, torch.ones_like(logits))
        with pytest.raises(ValueError, match="does not support forward-mode derivatives; use backend='reference'"):
            cross_entropy(dual, TARGET, backend=fused)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_a_compiled_loss_refuses_tangents(case, backend):
    """torch.compile traces tensors without their tangents, so the error comes when the operator runs."""
    function, _, shapes = CASES[case]
    tensors = [random(*shape, seed=i) for i, shape in enumerate(shapes)]
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(tensors[0], torch.ones_like(tensors[0]))
        with pytest.raises(NotImplementedError, match="no forward-mode derivatives; use backend='reference'"):
            torch.compile(function, backend=backend)(dual, *tensors[1:])


def weighted(logits, domain_weights, token_weights, **options):
    return cross_entropy(
        logits, TARGET, domain_ids=IDS, domain_weights=domain_weights, token_weights=token_weights, **options
    )


@pytest.mark.parametrize("normalizer", ["count", "weight_sum"])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("through_layer", [False, True])
def test_weights_are_differentiated(reduction, normalizer, through_layer, fused):
    """Derivatives by weights are those of torch. A weight of 0 has one too: the losses of its rows."""
    logits, tokens = random(5, 7).double(), torch.linspace(0.5, 2, 5, dtype=torch.float64, requires_grad=True)
    domains = torch.tensor([0.0, 1.5, 2.0], dtype=torch.float64, requires_grad=True)
    options = {"domain_ids": IDS, "domain_weights": domains, "token_weights": tokens}
    options |= {"normalizer": normalizer, "reduction": reduction, "z_loss": 0.1}
    if through_layer:
        loss = linear_cross_entropy(logits, torch.eye(7, dtype=torch.float64), TARGET, chunk_size=2, **options)
    else:
        loss = cross_entropy(logits, TARGET, **options)
    valid = TARGET != -100
    weights = torch.where(valid, domains[IDS] * tokens, 0)
    losses = F.cross_entropy(logits, TARGET, reduction="none") + 0.1 * logits.logsumexp(1).square()
    expected = weights * losses
    if reduction != "none":
        expected = expected.sum()
    if reduction == "mean":
        expected = expected / (weights.sum() if normalizer == "weight_sum" else valid.sum())
    torch.testing.assert_close(loss, expected)
    gradients = [torch.autograd.grad(x.sum(), (domains, tokens)) for x in (loss, expected)]
    torch.testing.assert_close(*gradients)
    for name, weight in (("domain_weights", domains), ("token_weights", tokens)):
        others = {key: value.detach() for key, value in (("domain_weights", domains), ("token_weights", tokens))}
        with pytest.raises(ValueError, match=f"does not support {name} that are differentiated"):
            cross_entropy(logits.float(), TARGET, domain_ids=IDS, backend=fused, **others | {name: weight})


def test_weights_that_require_grad_without_grad_mode_change_nothing(fused):
    logits = random(5, 7)
    domains, tokens = torch.tensor([0.0, 1.5, 2.0]), torch.linspace(0.5, 2, 5)
    expected = weighted(logits, domains, tokens)
    with torch.no_grad():
        assert weighted(logits, domains.requires_grad_(), tokens.requires_grad_(), backend=fused).equal(expected)


def test_forward_mode_by_weights():
    logits, domains, tokens = random(5, 7), torch.tensor([0.5, 1.5, 2.0]), torch.linspace(0.5, 2, 5)
    tangents = (random(3).abs(), random(5).abs())
    jvp = torch.func.jvp(lambda d, t: weighted(logits, d, t), (domains, tokens), tangents)[1]
    derivatives = torch.func.grad(lambda d, t: weighted(logits, d, t), argnums=(0, 1))(domains, tokens)
    torch.testing.assert_close(jvp, sum((a * b).sum() for a, b in zip(derivatives, tangents)))


def test_class_weights_and_probabilities():
    """As in torch, class weights and probabilities as a target have derivatives."""
    logits, weight = random(5, 7), torch.linspace(0.5, 2, 7, requires_grad=True)
    probabilities = random(5, 7, seed=1).softmax(1).requires_grad_()
    gradients = [
        torch.autograd.grad(loss(logits, probabilities, weight), (probabilities, weight))
        for loss in (cross_entropy, F.cross_entropy)
    ]
    torch.testing.assert_close(*gradients)
    with pytest.raises(ValueError, match=r"weight \(of classes\) is differentiated.*weight.detach"):
        cross_entropy(logits, TARGET, weight)
