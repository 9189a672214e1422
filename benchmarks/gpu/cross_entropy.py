"""The fused cross-entropy against torch, torch.compile, Liger and quack: forward and backward, plain and by domains.

ms is the median of interleaved runs, with L2 flushed before each. Accesses are the elements per logit that a copy of
the logits would have moved in that time: 2 at the speed of a copy. The prediction of `gpu_traffic`'s model is beside
it. Losses that write the gradient over the logits get a copy of the logits; their time and accesses include those of
"clone".
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from common import DEVICE, ON_GPU, Run, close_to, median_ms, missing, parse, peak_mib, refusal

sys.path.append(str(Path(__file__).parents[1]))
import gpu_traffic

from pycooldown.losses import cross_entropy
from pycooldown.losses.backends import triton as kernels

NUM_DOMAINS = 8
OVERWRITE = ("pycooldown, in place", "liger-kernel")  # the logits, by the gradient
SHAPES = [(4096, 32_768), (8192, 50_257), (8192, 128_256), (4096, 151_936), (2048, 262_144)]
Loss = Callable[[torch.Tensor], torch.Tensor]


def contenders(target: torch.Tensor, dry: bool) -> dict[str, Loss | str]:
    """Return losses of logits by name; a string states why there is none."""
    torch.compiler.reset()  # after eight shapes torch.compile would go on without compiling
    ids = torch.arange(len(target), device=DEVICE) % NUM_DOMAINS
    domains = {"domain_ids": ids, "domain_weights": torch.linspace(0.2, 3, NUM_DOMAINS, device=DEVICE)}
    plain = partial(F.cross_entropy, target=target)
    losses: dict[str, Loss | str] = {
        "pycooldown": partial(cross_entropy, target=target, backend="triton"),
        "pycooldown, in place": lambda x: cross_entropy(x, target, backend="triton", inplace=True),
        "pycooldown, domains": lambda x: cross_entropy(x, target, backend="triton", return_stats=True, **domains)[0],
        "torch": plain,
        "torch.compile": torch.compile(plain, dynamic=False, backend="eager" if dry else "inductor"),
    }
    if absent := missing("liger_kernel"):
        losses["liger-kernel"] = absent
    else:
        from liger_kernel.transformers.functional import liger_cross_entropy

        losses["liger-kernel"] = lambda x: liger_cross_entropy(x, target)
    if absent := missing("quack") or (None if ON_GPU else "needs a GPU: it compiles for one"):
        losses["quack"] = absent
    else:
        from quack.cross_entropy import cross_entropy as quack_cross_entropy

        losses["quack"] = lambda x: quack_cross_entropy(x, target)
    return losses


def problem(num_rows: int, num_classes: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Return logits and targets; every tenth target is ignored."""
    torch.manual_seed(0)
    target = torch.randint(num_classes, (num_rows,), device=DEVICE)
    target[::10] = -100
    return torch.randn(num_rows, num_classes, device=DEVICE, dtype=dtype).mul_(3), target


def both(loss: Loss, logits: torch.Tensor, *, copy: bool = False) -> list[torch.Tensor]:
    """Return the loss and its gradient, for a copy of the logits if `copy` is set."""
    leaf = logits.detach().requires_grad_()
    value = loss(leaf.clone() if copy else leaf)
    return [value.detach(), torch.autograd.grad(value, leaf)[0]]


def check(run: Run) -> None:
    """Compare with float64."""
    for dtype in (torch.float32, torch.bfloat16):
        logits, target = problem(6 if run.dry else 24, 5027, dtype)
        before = logits.clone()
        exact = both(partial(F.cross_entropy, target=target), logits.double())
        for name, loss in contenders(target, run.dry).items():
            if isinstance(loss, str) or "domains" in name:
                continue
            try:
                got = both(loss, logits, copy=name in OVERWRITE)
            except Exception as error:
                run.write(check=name, dtype=str(dtype), skipped=refusal(name, error))
                continue
            if not logits.equal(before):
                raise SystemExit(f"{name} has overwritten the logits: add it to OVERWRITE, so that it is given a copy")
            error = close_to(got, exact, 1e-4 if dtype == torch.float32 else 5e-2)
            run.write(check=name, dtype=str(dtype), error=error)


def device() -> gpu_traffic.Device:
    """Return the properties of the present device that the model needs, or those of an H100."""
    if not ON_GPU:
        return gpu_traffic.DEVICES["H100"]
    found = torch.cuda.get_device_properties(DEVICE)
    return gpu_traffic.Device(found.multi_processor_count, found.L2_cache_size, (found.major, found.minor))


def compare(run: Run, num_rows: int, num_classes: int, dtype: torch.dtype) -> None:
    """Time all contenders at one shape."""
    where = {"rows": num_rows, "classes": num_classes, "dtype": str(dtype).removeprefix("torch.")}
    if run.written(**where, contender="copy"):
        return
    logits, target = problem(num_rows, num_classes, dtype)
    actions: dict[str, Callable[[], object]] = {}
    memory: dict[str, float | None] = {}
    for name, loss in contenders(target, run.dry).items():
        if isinstance(loss, str):
            run.write(**where, contender=name, skipped=loss)
            continue
        action = partial(both, loss, logits, copy=name in OVERWRITE)
        try:
            memory[name] = peak_mib(action)
            actions[name] = action
        except Exception as error:
            run.write(**where, contender=name, skipped=refusal(name, error))
    if ON_GPU and not run.dry:
        actions["pycooldown, graph"] = graphed(actions["pycooldown"])
    actions["clone"] = logits.clone  # included in the times of OVERWRITE
    out = torch.empty_like(logits)
    actions["copy"] = lambda: out.copy_(logits)
    times = median_ms(actions, runs=3 if run.dry else 20)
    copy = times["copy"]
    of_kernel = gpu_traffic.accesses(num_classes, dtype.itemsize, device(), num_rows=num_rows)
    for name, ms in times.items():
        accesses = 2 * ms / copy if ms and copy else None
        # A copy for those that overwrite the logits reads and writes each of them once more.
        modelled = of_kernel + 2 * (name in OVERWRITE) if name.startswith("pycooldown") else None
        run.write(**where, contender=name, ms=ms, mib=memory.get(name), accesses=accesses, modelled=modelled)


def graphed(action: Callable[[], object]) -> Callable[[], object]:
    """Return the action as a CUDA graph that is replayed."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        action()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        action()
    return graph.replay


def variants(num_classes: int, dtype: torch.dtype) -> Iterator[tuple[kernels.Variant, float]]:
    """Yield threads of a row, tiles, and share of L2, around the package's choices."""
    row_bytes = num_classes * dtype.itemsize
    for lanes, flight in ((256, 2), (512, 2), (512, 4), (1024, 2), (1024, 4)):
        for share in (0.3, 0.6, 0.9, 1e9):  # the last means all rows that there are registers for
            yield kernels.Variant(lanes, 0, flight), share
    for lanes in (128, 256, 512, 1024):
        tiles = -(-row_bytes // (16 * lanes))
        if tiles <= 8:
            yield kernels.Variant(lanes, tiles), 1e9


def sweep(run: Run, num_rows: int, num_classes: int, dtype: torch.dtype) -> None:
    """Time variants that the package might choose, with its own launcher."""
    where = {"rows": num_rows, "classes": num_classes, "dtype": str(dtype).removeprefix("torch.")}
    logits, target = problem(num_rows, num_classes, dtype)
    chosen, share = kernels.choose_variant, kernels.L2_SHARE
    try:
        for variant, of_l2 in variants(num_classes, dtype):
            row = {**where, "variant": list(variant), "l2_share": of_l2}
            if run.written(**row):
                continue
            kernels.choose_variant, kernels.L2_SHARE = lambda *_, _v=variant, **__: _v, of_l2
            action = partial(both, partial(cross_entropy, target=target, backend="triton"), logits)
            run.write(**row, ms=median_ms({"": action}, runs=10)[""])
    finally:
        kernels.choose_variant, kernels.L2_SHARE = chosen, share


def main() -> None:
    """Check and compare, or with --sweep time the possible variants."""
    run, rest = parse(__doc__.splitlines()[0])
    if "--sweep" in rest:
        for shape in [(2, 1000)] if run.dry else SHAPES[::2]:
            sweep(run, *shape, torch.bfloat16)
        return
    check(run)
    shapes = [(4, 1000), (1, 66_000)] if run.dry else SHAPES
    for dtype in (torch.bfloat16, torch.float32):
        for shape in shapes:
            compare(run, *shape, dtype)


if __name__ == "__main__":
    main()
