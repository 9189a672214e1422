"""Every backend agrees with float64, as `pycooldown.losses.backends.contract` requires."""

import contextlib
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from pycooldown import _core
from pycooldown.losses import backends, cross_entropy

ISAS = []
for _isa in ("baseline", "avx2", "avx512"):
    os.environ["PYCOOLDOWN_ISA"] = _isa
    try:
        ISAS.append(_core.isa())
    except ValueError:
        continue
    finally:
        del os.environ["PYCOOLDOWN_ISA"]

BACKENDS = ["reference", *(f"cpp-{isa}" for isa in ISAS)]
if importlib.util.find_spec("triton"):
    BACKENDS.append("triton")

HALF_ULP = {torch.float32: 2.0**-24, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}


@pytest.fixture(params=BACKENDS)
def backend(request, monkeypatch, kernel_device):
    name, _, isa = request.param.partition("-")
    if isa:
        monkeypatch.setenv("PYCOOLDOWN_ISA", isa)
    on_gpu = name == "triton" and kernel_device == "cuda"
    with torch.device("cuda") if on_gpu else contextlib.nullcontext():
        yield name


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def outcome(logits, target, backend, output_weights=None, **options):
    """Return loss, gradient and statistics. With unreduced losses, `output_weights` is the gradient of the output."""
    logits = logits.detach().requires_grad_()
    options = {k: v.to(logits.device) if isinstance(v, torch.Tensor) else v for k, v in options.items()}
    if output_weights is not None:
        output_weights = output_weights.to(logits.device)
    loss, stats = cross_entropy(logits, target, backend=backend, return_stats=True, **options)
    (loss if output_weights is None else loss * output_weights).sum().backward()
    return loss.detach().double(), logits.grad.double(), stats


def assert_agrees(logits, target, backend, **options):
    """Assert that errors against float64 are within a small multiple of the errors of torch in the same dtype."""
    loss, grad, stats = outcome(logits, target, backend, **options)
    exact_loss, exact_grad, exact_stats = outcome(logits.double(), target, "reference", **options)
    eager_loss, eager_grad, _ = outcome(logits, target, "reference", **options)
    torch.testing.assert_close(loss.isnan(), exact_loss.isnan())
    torch.testing.assert_close(grad.isnan(), exact_grad.isnan())
    if softcap := options.get(
        "softcap"
    ):  # its derivative, 1 - tanh^2, cancels: errors scale with the gradient before it
        capped, uncapped = softcap * torch.tanh(logits.double() / softcap), {**options, "softcap": None}
        scale = outcome(capped, target, "reference", **uncapped)[1]
    else:
        scale = exact_grad
    scale = scale.nan_to_num(0, 0, 0).abs().amax() if scale.numel() else 0.0
    ulp = 2 * HALF_ULP[logits.dtype]
    for got, exact, eager, size, unit in (
        (
            loss,
            exact_loss,
            eager_loss,
            exact_loss.nan_to_num(0, 0, 0).abs().amax() if exact_loss.numel() else 0.0,
            2e-7,
        ),
        (grad, exact_grad, eager_grad, scale, ulp),
    ):
        error = (eager - exact).nan_to_num(0, 0, 0).abs().amax() if exact.numel() else 0.0
        torch.testing.assert_close(got, exact, rtol=0, atol=float(4 * error + 2 * unit * size), equal_nan=True)
    torch.testing.assert_close(stats.loss_sum, exact_stats.loss_sum, rtol=1e-6, atol=1e-5, equal_nan=True)
    assert stats.token_count.tolist() == exact_stats.token_count.tolist()
    assert stats.correct.tolist() == exact_stats.correct.tolist()


def problem(rows, classes, dtype=torch.float32, seed=0, ignored=0.2, spread=3.0):
    generator = torch.Generator(torch.get_default_device()).manual_seed(seed)
    logits = (torch.randn(rows, classes, generator=generator) * spread).to(dtype)
    target = torch.randint(classes, (rows,), generator=generator)
    target[torch.rand(rows, generator=generator) < ignored] = -100
    return logits, target


@pytest.mark.parametrize("dtype", HALF_ULP, ids=str)
@pytest.mark.parametrize("classes", [1, 2, 17, 65, 1000, 4097, 12345])
def test_any_number_of_classes(backend, dtype, classes):
    assert_agrees(*problem(5, classes, dtype), backend)


EXTRAS = [
    {"label_smoothing": 0.1},
    {"label_smoothing": 1.0},
    {"z_loss": 1e-2},
    {"softcap": 4.0},
    {"softcap": 4.0, "label_smoothing": 0.1, "z_loss": 1e-2, "token_weights": torch.linspace(0, 2, 7)},
    {"reduction": "sum"},
    {"reduction": "none", "output_weights": torch.linspace(-1, 2, 7)},
    {"reduction": "none", "output_weights": torch.tensor(2.0).expand(7)},  # a gradient of stride 0
    {"normalizer": "weight_sum", "token_weights": torch.linspace(0.5, 2, 7)},
    {"output_weights": torch.tensor(0.25)},
    {"ignore_index": 3},
]


@pytest.mark.parametrize("options", EXTRAS, ids=lambda options: "-".join(options))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_options(backend, dtype, options):
    logits, target = problem(7, 333, dtype, ignored=0.0 if "ignore_index" in options else 0.2)
    assert_agrees(logits, target, backend, **options)


@pytest.mark.parametrize("num_domains", [1, 4, 500])
def test_domains(backend, num_domains):
    logits, target = problem(64, 50)
    ids = torch.arange(64) * 37 % num_domains
    assert_agrees(logits, target, backend, domain_ids=ids, domain_weights=torch.linspace(0, 2, num_domains))


@pytest.mark.parametrize("rows", [0, 1, 3])
def test_all_rows_ignored(backend, rows):
    logits, target = problem(rows, 40, ignored=2.0)
    for reduction in ("mean", "sum", "none"):
        assert_agrees(logits, target, backend, reduction=reduction)


SPECIAL = {
    "minus infinity": lambda x: x[:, 1::2].fill_(-torch.inf),
    "a block of minus infinity": lambda x: x[:, :4096].fill_(-torch.inf),
    "only minus infinity": lambda x: x[1].fill_(-torch.inf),
    "infinity": lambda x: x[1, 5].fill_(torch.inf),
    "nan": lambda x: x[1, 4500].fill_(torch.nan),
    "large": lambda x: x.mul_(1e4),
    "equal": lambda x: x.fill_(7.0),
    "equal and far": lambda x: x.fill_(1e30),
    "equal and lowest": lambda x: x.fill_(torch.finfo(torch.float32).min),
    "rising": lambda x: x.copy_(torch.arange(x.shape[1]) * 0.01),
    "falling": lambda x: x.copy_(-torch.arange(x.shape[1]) * 0.1),
}


@pytest.mark.parametrize("special", SPECIAL)
def test_special_values(backend, special):
    logits, _ = problem(3, 5000)
    SPECIAL[special](logits)
    assert_agrees(logits, torch.tensor([4200, 4400, -100]), backend, label_smoothing=0.0)


@pytest.mark.parametrize("layout", ["transposed", "padded", "sequence", "offset", "expanded"])
def test_layouts(backend, layout):
    logits, target = problem(6, 35)
    logits = {
        "transposed": lambda x: x.t().contiguous().t(),
        "padded": lambda x: F.pad(x, (3, 4))[:, 3:-4],
        "sequence": lambda x: x.reshape(2, 3, 35).movedim(-1, 1),
        "offset": lambda x: torch.cat([x.flatten()[:1], x.flatten()])[1:].view(6, 35),
        "expanded": lambda x: x[:1].expand(6, 35),
    }[layout](logits)
    assert_agrees(logits, target.view(2, 3) if layout == "sequence" else target, backend)


def test_offsets_beyond_32_bits(backend):
    if backend == "triton" and torch.get_default_device().type == "cpu":
        pytest.skip("the interpreter computes offsets with Python's integers, which do not overflow")
    storage = torch.empty(2**31 + 4096, dtype=torch.bfloat16)  # untouched pages take no memory
    logits = storage.as_strided((2, 64), (2**31, 1))
    logits.copy_(problem(2, 64)[0])
    assert_agrees(logits, torch.tensor([3, 9]), backend)


@pytest.mark.parametrize("isa", ISAS)
def test_the_same_bits_on_any_number_of_threads(isa, monkeypatch):
    monkeypatch.setenv("PYCOOLDOWN_ISA", isa)
    logits, target = problem(50, 3001)
    results = []
    for num_threads in (1, 2, 5):
        torch.set_num_threads(num_threads)
        results.append(outcome(logits, target, "cpp", label_smoothing=0.1))
    for loss, grad, stats in results[1:]:
        assert torch.equal(loss, results[0][0])
        assert torch.equal(grad, results[0][1])
        assert torch.equal(stats.loss_sum, results[0][2].loss_sum)


def test_rows_without_weight_are_not_read(backend):
    logits, target = problem(4, 20, ignored=0.0)
    logits[1], logits[2], target[1] = torch.nan, torch.nan, -100
    weights = torch.tensor([1.0, 1.0, 0.0, 1.0])
    logits.requires_grad_()
    loss = cross_entropy(logits, target, token_weights=weights, backend=backend, reduction="sum")
    loss.backward()
    rest = [0, 3]
    assert loss.item() == pytest.approx(F.cross_entropy(logits[rest], target[rest], reduction="sum").item(), rel=1e-6)
    if backend != "reference":  # torch's own gradient of such a row is NaN
        assert logits.grad[1:3].eq(0).all()


def test_forked_children_compute():
    code = """
import os, torch
from pycooldown.losses import cross_entropy
x, t = torch.randn(64, 999), torch.zeros(64, dtype=torch.long)
torch.set_num_threads(2)
expected = cross_entropy(x, t, backend="cpp")
child = os.fork()
if child == 0:
    os._exit(0 if cross_entropy(x, t, backend="cpp").equal(expected) else 1)
raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=280)


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(0, 9),
    classes=st.integers(1, 70),
    dtype=st.sampled_from(list(HALF_ULP)),
    num_domains=st.integers(1, 5),
    seed=st.integers(0, 99),
    options=st.fixed_dictionaries(
        {
            "reduction": st.sampled_from(["mean", "sum", "none"]),
            "normalizer": st.sampled_from(["count", "weight_sum"]),
            "label_smoothing": st.sampled_from([0.0, 0.1, 0.9]),
            "z_loss": st.sampled_from([0.0, 1e-3]),
            "softcap": st.sampled_from([None, 2.0, 30.0]),
            "ignore_index": st.sampled_from([-100, 0]),
        }
    ),
)
def test_any_options(rows, classes, dtype, num_domains, seed, options):
    logits, target = problem(rows, classes, dtype, seed, ignored=0.0 if options["ignore_index"] == 0 else 0.2)
    ids = torch.arange(rows) % num_domains
    assert_agrees(logits, target, "cpp", domain_ids=ids, domain_weights=torch.linspace(0.1, 3, num_domains), **options)


def test_an_old_triton_is_refused_by_name_and_never_chosen(monkeypatch):
    monkeypatch.setattr(backends, "TRITON_SHORTCOMING", "triton 3.2.0; expected 3.7 or newer")
    gpu = torch.device("cuda")
    assert backends.choose("auto", gpu, torch.float32, None) == "reference"
    with pytest.raises(ValueError, match=r"backend='triton' does not support triton 3\.2\.0; expected 3\.7 or newer"):
        backends.choose("triton", gpu, torch.float32, None)
    monkeypatch.setattr(backends, "TRITON_SHORTCOMING", None)
    assert backends.choose("auto", gpu, torch.float32, None) == "triton"


def test_the_oldest_triton_is_that_of_the_extra():
    text = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    assert '"triton>={}.{},'.format(*backends.MINIMUM_TRITON) in text
