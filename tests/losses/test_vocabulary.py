"""Ranks that share the vocabulary compute what one process with all of it computes."""

import pytest

torch = pytest.importorskip("torch")

from pycooldown.losses import CrossEntropyLoss, LinearCrossEntropyLoss, cross_entropy, linear_cross_entropy  # noqa: E402

dist = torch.distributed
pytestmark = pytest.mark.skipif(not dist.is_gloo_available(), reason="torch has no gloo")

ROWS, CLASSES, FEATURES = 24, 83, 12
IDS = torch.arange(ROWS) % 3
WEIGHTS = torch.tensor([0.5, 0.0, 2.0])
OPTIONS = {
    "bare": {},
    "domains": {"domain_ids": IDS, "domain_weights": WEIGHTS},
    "sum of weights": {"domain_ids": IDS, "domain_weights": WEIGHTS, "normalizer": "weight_sum"},
    "all at once": {
        "token_weights": torch.linspace(0, 2, ROWS),
        "z_loss": 1e-2,
        "softcap": 4.0,
        "label_smoothing": 0.1,
        "reduction": "sum",
    },
    "unreduced": {"reduction": "none", "z_loss": 1e-2, "label_smoothing": 0.2},
    "ignored class": {"ignore_index": 7},
    "smoothing alone": {"label_smoothing": 1.0},
    "ignored -1": {"ignore_index": -1},
    "ignored -2": {"ignore_index": -2},
    "unused classes": {},  # the classes of the last rank
}
# In units of the largest element. Two float32 kernels differ by some roundings. In half precision the logits and each
# rank's part of a sum are rounded.
TOLERANCE = {torch.float64: 1e-13, torch.float32: 1e-5, torch.bfloat16: 2.0**-6}


def sizes(world_size):
    """Return the sizes of the slices. They are uneven, and with four ranks one is empty."""
    return [50, 33] if world_size == 2 else [20, 0, 1, 62]


def layer(dtype, seed=0):
    generator = torch.Generator(torch.get_default_device()).manual_seed(seed)
    hidden, weight, bias = (
        torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)
        for shape in ((ROWS, FEATURES), (CLASSES, FEATURES), (CLASSES,))
    )
    target = torch.randint(CLASSES, (ROWS,), generator=generator)
    target[::5] = -100
    return hidden, weight, bias, target


def outcome(function, tensors, options):
    """Return the loss, the statistics and the gradients. A scalar loss is multiplied by 3 first."""
    tensors = [tensor.detach().clone().requires_grad_() for tensor in tensors]
    loss, stats = function(*tensors)
    factor = torch.linspace(-1, 2, ROWS, dtype=loss.dtype) if options.get("reduction") == "none" else 3.0
    return loss.detach(), stats, torch.autograd.grad((loss * factor).sum(), tensors)


def close(got, expected, dtype, name):
    size = expected.double().abs().amax() if expected.numel() else 0.0
    error = (got.double() - expected.double()).abs().amax() if got.numel() else 0.0
    assert got.dtype == expected.dtype, name
    assert error <= TOLERANCE[dtype] * size, (name, error, size)


def check(rank, world_size, dtype, name, inplace=False, chunk_size=None):
    options = dict(OPTIONS[name])
    hidden, weight, bias, target = layer(dtype)
    if "ignore_index" in options:
        target[target == -100] = options["ignore_index"]
    if name == "unused classes":
        used = CLASSES - sizes(world_size)[-1]
        bias[used:] = -torch.inf
        target = torch.where(target >= used, target % used, target)
    begin = sum(sizes(world_size)[:rank])
    mine = slice(begin, begin + sizes(world_size)[rank])
    options |= {"return_stats": True}
    group = {"process_group": dist.group.WORLD}

    def logits_of(x):  # a copy, since a leaf may not be overwritten
        return x * 1.0

    logits = torch.nn.functional.linear(hidden, weight, bias)
    expected = outcome(lambda x: cross_entropy(logits_of(x), target, **options), [logits], options)
    got = outcome(
        lambda x: cross_entropy(logits_of(x), target, inplace=inplace, **options, **group), [logits[:, mine]], options
    )
    compare(got, expected, [expected[2][0][:, mine]], dtype, f"logits, {name}")

    def layers(x, w, b, **more):
        return linear_cross_entropy(x, w, target, linear_bias=b, chunk_size=chunk_size, **options, **more)

    expected = outcome(layers, (hidden, weight, bias), options)
    got = outcome(lambda *t: layers(*t, **group), (hidden, weight[mine], bias[mine]), options)
    grads = [expected[2][0], expected[2][1][mine], expected[2][2][mine]]
    compare(got, expected, grads, dtype, f"layer, {name}")


def compare(got, expected, expected_grads, dtype, name):
    close(got[0], expected[0], dtype, name)
    close(got[1].loss_sum, expected[1].loss_sum, dtype, name)
    assert got[1].token_count.equal(expected[1].token_count), name
    assert got[1].correct.equal(expected[1].correct), name
    for gradient, theirs in zip(got[2], expected_grads, strict=True):
        close(gradient, theirs, dtype, name)


def check_frozen_sides_and_second_backward(rank, world_size):
    hidden, weight, _, target = layer(torch.float32)
    begin = sum(sizes(world_size)[:rank])
    mine = weight[begin : begin + sizes(world_size)[rank]].clone()
    group = {"process_group": dist.group.WORLD}
    whole = weight.clone().requires_grad_()
    linear_cross_entropy(hidden, whole, target).backward()
    mine.requires_grad_()
    loss = linear_cross_entropy(hidden, mine, target, chunk_size=5, **group)
    for _ in range(2):
        (gradient,) = torch.autograd.grad(loss, mine, retain_graph=True)
        close(gradient, whole.grad[begin : begin + len(mine)], torch.float32, "frozen hidden states")
    with torch.no_grad():
        again = linear_cross_entropy(hidden, mine, target, **group)
    assert torch.equal(again, loss.detach())


def check_modules(rank, world_size):
    hidden, weight, bias, target = layer(torch.float32)
    begin = sum(sizes(world_size)[:rank])
    mine = slice(begin, begin + sizes(world_size)[rank])
    logits = torch.nn.functional.linear(hidden, weight, bias)
    expected = torch.nn.functional.cross_entropy(logits, target)
    module = LinearCrossEntropyLoss(
        FEATURES, len(weight[mine]), bias=True, process_group=dist.group.WORLD, dtype=torch.float32
    )
    module.linear.load_state_dict({"weight": weight[mine], "bias": bias[mine]})
    torch.testing.assert_close(module(hidden, target), expected)
    torch.testing.assert_close(CrossEntropyLoss(process_group=dist.group.WORLD)(logits[:, mine], target), expected)
    everything_ignored = cross_entropy(
        logits[:, mine], torch.full_like(target, -100), reduction="sum", process_group=dist.group.WORLD
    )
    assert everything_ignored == 0


def check_errors(rank, world_size):
    x, target = torch.zeros(4, 3), torch.tensor([0, 1, 2, 3])
    group = {"process_group": dist.group.WORLD}
    subgroup = dist.new_group([0])

    def differing(name, value, other):
        return {"input": x, "target": target, **group, name: value if rank == 0 else other}

    ids, weights = torch.zeros(4).long(), torch.ones(2)
    cases = [
        (differing("target", target, target.flip(0)), ValueError, "disagree on target: rank 1"),
        (differing("label_smoothing", 0.0, 0.1), ValueError, "disagree on options"),
        (differing("input", x, x.bfloat16()), ValueError, "disagree on options"),
        (differing("token_weights", torch.ones(4), None), ValueError, "disagree on token_weights"),
        ({**differing("domain_weights", weights, 2 * weights), "domain_ids": ids}, ValueError, "on domain_weights"),
        ({**differing("domain_ids", ids, ids + 1), "domain_weights": weights}, ValueError, "on domain_ids"),
        (differing("input", x, x[:2]) | ({} if rank == 0 else {"target": target[:2]}), ValueError, "on options"),
        (
            {"input": x, "target": target + 3 * world_size - 3, **group},
            IndexError,
            f"target {3 * world_size} at row 3 is not in .0, {3 * world_size}.",
        ),
        ({"input": x, "target": target, "weight": torch.ones(3), **group}, ValueError, "not support class weights"),
        ({"input": x, "target": torch.rand(4, 3), **group}, ValueError, "class probabilities"),
        ({"input": x, "target": target, "process_group": "tp"}, TypeError, "ProcessGroup, as .* got 'tp'"),
    ]
    if rank > 0:
        cases.append(({"input": x, "target": target, "process_group": subgroup}, Exception, "process_group"))
    for arguments, error, message in cases:
        with pytest.raises(error, match=message):
            cross_entropy(**arguments)

    mesh = dist.device_mesh.init_device_mesh("cpu", (world_size,))
    whole = torch.linspace(-1, 1, world_size * 15).reshape(-1, 5).square()
    sharded = dist.tensor.distribute_tensor(whole, mesh, [dist.tensor.Shard(0)])
    for call, name in (
        (lambda: linear_cross_entropy(torch.zeros(4, 5), sharded, target), "linear_weight"),
        (lambda: cross_entropy(sharded, torch.zeros(len(whole)).long()), "input"),
    ):
        with pytest.raises(ValueError, match=rf"{name} is a DTensor .*{name}\.to_local\(\), with process_group="):
            call()
    local = linear_cross_entropy(torch.ones(4, 5), sharded.to_local(), target, process_group=mesh.get_group())
    torch.testing.assert_close(local, linear_cross_entropy(torch.ones(4, 5), whole, target))


def check_refusals(rank, world_size):
    """Check that what only plain torch operations compute is refused on all ranks, before any collective."""
    x, target, group = torch.zeros(4, 3), torch.tensor([0, 1, 2, 0]), {"process_group": dist.group.WORLD}
    ids, weights = torch.zeros(4).long(), torch.ones(2, requires_grad=True)
    with pytest.raises(ValueError, match="not support domain_weights that are differentiated"):
        cross_entropy(x, target, domain_ids=ids, domain_weights=weights, **group)
    with pytest.raises(ValueError, match=r"not support torch\.func transforms"):
        torch.func.grad(lambda x: cross_entropy(x, target, **group))(x)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, torch.ones_like(x))
        with pytest.raises(ValueError, match="not support forward-mode derivatives"):
            cross_entropy(dual, target, **group)
    with pytest.raises(ValueError, match="not support a linear_weight of more than two dimensions"):
        linear_cross_entropy(x, torch.zeros(5, 2, 3), target.unsqueeze(1).expand(4, 2), **group)


def check_collectives(rank, world_size):
    """Check that only the first call of a layer gathers the sizes of slices, and that traced calls check no values."""
    calls = []

    def counted(name):
        function = getattr(dist, name)

        def call(*args, **kwargs):
            calls.append(name)
            return function(*args, **kwargs)

        return function, call

    originals = {name: counted(name) for name in ("all_gather", "all_reduce")}
    for name, (_, call) in originals.items():
        setattr(dist, name, call)
    try:
        hidden, weight, _, target = layer(torch.float32)
        begin = sum(sizes(world_size)[:rank])
        mine = weight[begin : begin + sizes(world_size)[rank]].clone().requires_grad_()
        group = {"process_group": dist.group.WORLD}
        for _ in range(3):
            linear_cross_entropy(hidden, mine, target, **group)
        assert calls == ["all_gather", *3 * ["all_reduce"], *2 * ["all_gather", "all_reduce", "all_reduce"]]

        if world_size > 2:  # compiling is slow, and more ranks would show nothing more
            return
        calls.clear()
        logits = (hidden @ mine.detach().T).requires_grad_()

        def loss(x):
            return cross_entropy(x, target, **group)

        compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")(logits)
        (gradient,) = torch.autograd.grad(compiled, logits)
        assert calls == 2 * ["all_reduce"]
        (expected_gradient,) = torch.autograd.grad(loss(logits), logits)
        assert torch.equal(gradient, expected_gradient)
    finally:
        for name, (function, _) in originals.items():
            setattr(dist, name, function)


def run(rank, world_size, store, device):
    torch.set_num_threads(1)
    torch.set_default_device(device)
    for options in OPTIONS.values():
        options.update({k: v.to(device) for k, v in options.items() if isinstance(v, torch.Tensor)})
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world_size)
    for name in OPTIONS:
        check(rank, world_size, torch.float32, name, inplace=True, chunk_size=7)
    for name in OPTIONS if world_size == 2 else ("unreduced", "all at once"):
        check(rank, world_size, torch.float64, name)
    for name in ("domains", "all at once"):
        check(rank, world_size, torch.bfloat16, name, chunk_size=9)
    check_frozen_sides_and_second_backward(rank, world_size)
    check_modules(rank, world_size)
    check_refusals(rank, world_size)
    if device == "cpu":  # on a GPU the values of tensors are neither checked nor compared between ranks
        check_collectives(rank, world_size)
        check_errors(rank, world_size)
    dist.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize("world_size", [2, 4])
def test_ranks_that_share_the_classes_agree_with_one_process(world_size, tmp_path, device):
    """Ranks agree with one process, also on a GPU that they share, whose tensors gloo sums."""
    torch.multiprocessing.spawn(run, (world_size, tmp_path / "store", device.type), nprocs=world_size)
