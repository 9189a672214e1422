"""The losses take fake and meta tensors, and make_fx and FlopCounterMode trace and count them."""

import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.flop_counter import FlopCounterMode

from pycooldown.losses import cross_entropy, linear_cross_entropy

pytestmark = pytest.mark.usefixtures("device")

TARGET, IDS, WEIGHTS = torch.tensor([0, 1, 2, -100]), torch.tensor([0, 1, 1, 0]), torch.tensor([0.5, 2.0])


def dense(logits, target, ids, weights, **options):
    """Return loss, statistics and gradient."""
    loss, stats = cross_entropy(
        logits * 1, target, domain_ids=ids, domain_weights=weights, return_stats=True, **options
    )
    return loss, *stats, *torch.autograd.grad(loss, logits)


def linear(hidden, weight, target, ids, weights, **options):
    """Return loss, statistics and gradients."""
    loss, stats = linear_cross_entropy(
        hidden, weight, target, domain_ids=ids, domain_weights=weights, return_stats=True, **options
    )
    return loss, *stats, *torch.autograd.grad(loss, (hidden, weight))


CASES = {
    "logits": (dense, [(4, 6)], {}),
    "logits in place": (dense, [(4, 6)], {"inplace": True}),
    "logits by reference": (dense, [(4, 6)], {"backend": "reference"}),
    "layer": (linear, [(4, 3), (6, 3)], {}),
    "layer in chunks": (linear, [(4, 3), (6, 3)], {"chunk_size": 2}),
    "layer in chunks by reference": (linear, [(4, 3), (6, 3)], {"chunk_size": 2, "backend": "reference"}),
}


@pytest.fixture(params=CASES)
def case(request, device):
    """Return a function of tensors, and the tensors."""
    function, shapes, options = CASES[request.param]
    generator = torch.Generator(torch.get_default_device()).manual_seed(0)
    tensors = [torch.randn(shape, generator=generator).requires_grad_() for shape in shapes]
    return lambda *arguments: function(*arguments, **options), [*tensors, TARGET, IDS, WEIGHTS]


def described(tensors, device):
    return [(t.shape, t.dtype, torch.device(device).type) for t in tensors]


def test_fake_tensors(case, device):
    function, tensors = case
    mode = FakeTensorMode()
    fake = [mode.from_tensor(tensor) for tensor in tensors]
    with mode:
        results = function(*fake)
    assert [(t.shape, t.dtype, t.device.type) for t in results] == described(function(*tensors), device)


def test_meta_tensors(case):
    function, tensors = case
    meta = [t.detach().to("meta").requires_grad_(t.requires_grad) for t in tensors]
    results = function(*meta)
    assert [(t.shape, t.dtype, t.device.type) for t in results] == described(function(*tensors), "meta")


@pytest.mark.parametrize("mode", ["real", "fake", "symbolic"])
def test_make_fx(case, mode):
    function, tensors = case
    expected = function(*tensors)
    traced = make_fx(function, tracing_mode=mode)(*tensors)
    torch.testing.assert_close(traced(*tensors), expected, rtol=0, atol=0)


@pytest.mark.parametrize("frozen", [(), (0,), (1,), (0, 1), (0, 1, 2)])
def test_flops_are_those_of_the_products(frozen):
    generator = torch.Generator(torch.get_default_device()).manual_seed(0)
    tensors = [torch.randn(shape, generator=generator) for shape in ((4, 3), (6, 3), (6,))]
    for i, tensor in enumerate(tensors):
        tensor.requires_grad_(i not in frozen)

    def count(function):
        with FlopCounterMode(display=False) as counter:
            loss = function()
            if loss.requires_grad:
                loss.backward()
        return counter.get_total_flops()

    hidden, weight, bias = tensors
    plain = count(lambda: F.cross_entropy(F.linear(hidden, weight, bias), TARGET))
    assert plain > 0
    for chunk_size in (None, 3):
        ours = count(lambda: linear_cross_entropy(hidden, weight, TARGET, linear_bias=bias, chunk_size=chunk_size))  # noqa: B023
        assert ours == plain


def test_flops_of_unreduced_losses_count_the_logits_twice():
    """The backward pass computes the logits again, and this product is counted too."""
    hidden, weight = torch.randn(4, 3, requires_grad=True), torch.randn(6, 3, requires_grad=True)
    with FlopCounterMode(display=False) as counter:
        linear_cross_entropy(hidden, weight, TARGET, reduction="none").sum().backward()
    assert counter.get_total_flops() == 4 * 2 * 4 * 3 * 6


def test_operators_are_registered_as_torch_2_11_takes_them():
    """Tags are given as a list, since `custom_op` of torch 2.11 unpacks what it gets."""
    code = """
import torch
register = torch.library.custom_op
def strict(*arguments, tags=(), **options):
    return register(*arguments, tags=[*tags], **options)
torch.library.custom_op = strict
import pycooldown.losses
assert torch.Tag.cudagraph_unsafe in torch.ops.pycooldown.linear_cross_entropy.default.tags
"""
    subprocess.run([sys.executable, "-c", code], check=True)
