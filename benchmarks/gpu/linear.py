"""The output layer with its loss against torch, its compiler and chunks, Liger, CCE and quack: time and peak memory.

`products` are the three matrix products alone, the least that forward and backward take.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from common import DEVICE, ON_GPU, Run, close_to, median_ms, missing, parse, peak_mib, refusal

from pycooldown.losses import linear_cross_entropy

SHAPES = [(4096, 4096, 128_256), (8192, 4096, 128_256), (8192, 2048, 50_257)]
Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def contenders(target: torch.Tensor, dry: bool) -> dict[str, Loss | str]:
    """Return losses of (N, D) and (V, D) by name; a string states why there is none."""
    torch.compiler.reset()  # after eight shapes torch.compile would go on without compiling

    def plain(hidden: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(F.linear(hidden, weight), target)

    losses: dict[str, Loss | str] = {
        "pycooldown": partial(linear_cross_entropy, target=target, backend="triton"),
        "torch": plain,
        "torch.compile": torch.compile(plain, dynamic=False, backend="eager" if dry else "inductor"),
    }
    if hasattr(F, "linear_cross_entropy"):
        chunks = torch.nn.LinearCrossEntropyOptions()
        losses["torch, chunked"] = lambda x, w: F.linear_cross_entropy(x, w, target, options=chunks)
    losses["liger-kernel"] = missing("liger_kernel") or liger(target)
    needs_gpu = None if ON_GPU else "needs a GPU: it autotunes or compiles for one, which the interpreter cannot"
    losses["cut-cross-entropy"] = missing("cut_cross_entropy") or needs_gpu or cce(target)
    losses["quack"] = missing("quack") or needs_gpu or quack(target)
    return losses


def liger(target: torch.Tensor) -> Loss:
    """Liger's loss."""
    from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy

    return lambda x, w: liger_fused_linear_cross_entropy(x, w, target)


def cce(target: torch.Tensor) -> Loss:
    """Apple's loss."""
    from cut_cross_entropy import linear_cross_entropy as cut

    return lambda x, w: cut(x, w, target)


def quack(target: torch.Tensor) -> Loss:
    """Return quack's loss, in the one of its two ways that it chooses itself."""
    from quack.linear_cross_entropy import chunked_linear_cross_entropy

    return lambda x, w: chunked_linear_cross_entropy(x, w, target)


def problem(rows: int, features: int, classes: int, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    """Return hidden states, weight and targets; every tenth target is ignored."""
    torch.manual_seed(0)
    hidden = torch.randn(rows, features, device=DEVICE, dtype=dtype)
    weight = torch.randn(classes, features, device=DEVICE, dtype=dtype).mul_(3 * features**-0.5)
    target = torch.randint(classes, (rows,), device=DEVICE)
    target[::10] = -100
    return hidden, weight, target


def both(loss: Loss, hidden: torch.Tensor, weight: torch.Tensor) -> list[torch.Tensor]:
    """Return the loss and its gradients."""
    leaves = hidden.detach().requires_grad_(), weight.detach().requires_grad_()
    value = loss(*leaves)
    return [value.detach(), *torch.autograd.grad(value, leaves)]


def products(hidden: torch.Tensor, weight: torch.Tensor) -> None:
    """Compute the logits' product and two of the same size, for rows that are not ignored."""
    logits = hidden @ weight.t()
    logits @ weight
    logits.t() @ hidden


def compare(run: Run, rows: int, features: int, classes: int) -> None:
    """Time all contenders at one shape."""
    where = {"rows": rows, "features": features, "classes": classes, "dtype": "bfloat16"}
    if run.written(**where, contender="products"):
        return
    hidden, weight, target = problem(rows, features, classes, torch.bfloat16)
    actions: dict[str, Callable[[], object]] = {}
    memory: dict[str, float | None] = {}
    for name, loss in contenders(target, run.dry).items():
        if isinstance(loss, str):
            run.write(**where, contender=name, skipped=loss)
            continue
        action = partial(both, loss, hidden, weight)
        try:
            memory[name] = peak_mib(action)
            actions[name] = action
        except Exception as error:
            run.write(**where, contender=name, skipped=refusal(name, error))
    counted = hidden[target != -100]
    actions["products"] = partial(products, counted, weight)
    times = median_ms(actions, runs=10)
    least = times["products"]
    for name, ms in times.items():
        over = ms / least if ms and least else None
        run.write(**where, contender=name, ms=ms, mib=memory.get(name), over_products=over)


def main() -> None:
    """Check, compare."""
    run, _ = parse(__doc__.splitlines()[0])
    hidden, weight, target = problem(24, 32, 1003, torch.float32)
    exact = both(lambda x, w: F.cross_entropy(F.linear(x, w), target), hidden.double(), weight.double())
    for name, loss in contenders(target, run.dry).items():
        if not isinstance(loss, str):
            try:
                got = both(loss, hidden, weight)
            except Exception as error:  # for example from a peer that does not support float32
                run.write(check=name, skipped=refusal(name, error))
                continue
            run.write(check=name, error=close_to(got, exact, 1e-4))
    for shape in [(8, 16, 300)] if run.dry else SHAPES:
        compare(run, *shape)


if __name__ == "__main__":
    main()
