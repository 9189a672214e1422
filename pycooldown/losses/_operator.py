"""The fused backends as one operator of torch: `torch.ops.pycooldown.cross_entropy`, with its autograd formula.

The gradient is computed in the forward pass, as all weights are known by then; backward multiplies it by a scalar and
gives it away. A second backward over the same graph, and that of unreduced losses, runs the kernel again.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch

Outputs = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


def backend_module(backend: str) -> ModuleType:
    return importlib.import_module(f"._{backend}", __package__)


def rows_function(backend: str, group: str, position: torch.Tensor | None) -> Callable[..., Any]:
    """The backend's `rows`; with the name of a process group, that of rows whose classes its ranks share."""
    if not group:
        return backend_module(backend).rows  # type: ignore[no-any-return]
    return functools.partial(backend_module("sharded").rows, backend=backend, group=group, position=position)


def scaled(loss: torch.Tensor, lse: torch.Tensor, scale: torch.Tensor, z_loss: float) -> torch.Tensor:
    """The losses of rows with z-loss and weight; 0 where the weight is."""
    if z_loss:
        loss = torch.addcmul(loss, lse, lse, value=z_loss)
    return torch.where(scale == 0, 0.0, scale * loss)


def _run(
    logits: torch.Tensor,
    target: torch.Tensor,
    scale: torch.Tensor,
    domain_ids: torch.Tensor | None,
    num_domains: int,
    ignore_index: int,
    label_smoothing: float,
    z_loss: float,
    softcap: float,
    backend: str,
    group: str,
    position: torch.Tensor | None,
    want_grad: bool,
    want_stats: bool,
    inplace: bool,
) -> Outputs:
    loss, lse, grad, loss_sum, token_count, correct = rows_function(backend, group, position)(
        logits.detach(),
        target.contiguous(),
        scale.contiguous(),
        None if domain_ids is None else domain_ids.contiguous(),
        num_domains,
        ignore_index=ignore_index,
        label_smoothing=label_smoothing,
        z_loss=z_loss,
        softcap=softcap,
        want_grad=want_grad,
        want_stats=want_stats,
        inplace=inplace,
    )
    losses = scaled(loss, lse, scale, z_loss)
    total = losses.sum(dtype=torch.float64).to(losses.dtype)
    if grad is None:
        grad = logits.new_empty(0)
    if not want_stats:
        loss_sum = loss.new_empty(0, dtype=torch.float64)
        token_count, correct = target.new_empty(0), target.new_empty(0)
    return total, losses, grad, loss_sum, token_count, correct


@torch.library.custom_op("pycooldown::cross_entropy", mutates_args=())
def cross_entropy(
    logits: torch.Tensor,
    target: torch.Tensor,
    scale: torch.Tensor,
    domain_ids: torch.Tensor | None,
    num_domains: int,
    ignore_index: int,
    label_smoothing: float,
    z_loss: float,
    softcap: float,
    backend: str,
    group: str,
    position: torch.Tensor | None,
    want_grad: bool,
    want_stats: bool,
) -> Outputs:
    """Sum of the scaled losses of rows, and what comes with it.

    Args:
        logits: (N, V) float32, bfloat16 or float16.
        target: (N,) int64.
        scale: (N,) float32, the weight of each row; 0 where ignored.
        domain_ids: (N,) int64 or None.
        num_domains: K.
        ignore_index: Target of ignored rows.
        label_smoothing: As in `pycooldown.losses.cross_entropy`.
        z_loss: Likewise.
        softcap: Likewise; 0 for none.
        backend: "cpp" or "triton"; with a group also "reference", and then float64 too.
        group: Name of the process group whose ranks share the classes, or "".
        position: (2,) int64, the first class here and the number of all, or None.
        want_grad: Whether to compute the gradient of the sum along with it.
        want_stats: Whether to compute sums by domain.

    Returns:
        The sum (), the scaled losses (N,), the gradient of the sum (N, V) or (0,), and the sums by domain (K,) or (0,).
    """
    return _run(
        logits,
        target,
        scale,
        domain_ids,
        num_domains,
        ignore_index,
        label_smoothing,
        z_loss,
        softcap,
        backend,
        group,
        position,
        want_grad,
        want_stats,
        inplace=False,
    )


@cross_entropy.register_fake
def _(
    logits: torch.Tensor,
    target: torch.Tensor,
    scale: torch.Tensor,
    domain_ids: torch.Tensor | None,
    num_domains: int,
    ignore_index: int,
    label_smoothing: float,
    z_loss: float,
    softcap: float,
    backend: str,
    group: str,
    position: torch.Tensor | None,
    want_grad: bool,
    want_stats: bool,
) -> Outputs:
    sums = num_domains if want_stats else 0
    return (
        scale.new_empty(()),
        torch.empty_like(scale),
        logits.new_empty(logits.shape if want_grad else 0),
        scale.new_empty(sums, dtype=torch.float64),
        target.new_empty(sums),
        target.new_empty(sums),
    )


@torch.library.custom_op("pycooldown::scale_gradient_", mutates_args=("grad",))
def scale_(grad: torch.Tensor, factor: torch.Tensor, backend: str) -> None:
    """Multiply `grad` by a scalar in place, without synchronization; free if that is 1."""
    backend_module(backend).scale_(grad, factor)


@scale_.register_fake
def _(grad: torch.Tensor, factor: torch.Tensor, backend: str) -> None:
    pass


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Outputs) -> None:
    logits, target, scale, *ctx.options = inputs
    ctx.options = ctx.options[2:9]  # from ignore_index to position
    _total, _losses, grad, *sums = output
    ctx.save_for_backward(logits, target, scale)
    ctx.grad = grad if grad.dim() == 2 else None
    ctx.mark_non_differentiable(grad, *sums)
    ctx.set_materialize_grads(False)


def _backward(
    ctx: Any, grad_total: torch.Tensor | None, grad_losses: torch.Tensor | None, *_: Any
) -> tuple[torch.Tensor | None, ...]:
    logits, target, scale = ctx.saved_tensors
    grad, ctx.grad = ctx.grad, None
    if grad_total is None and grad_losses is None:
        return (None,) * 14
    if grad is not None and grad_losses is None:
        assert grad_total is not None
        with torch.no_grad():
            scale_(grad, grad_total.detach(), ctx.options[4])
    else:
        factor = sum(g for g in (grad_total, grad_losses) if g is not None)
        rescaled = (scale * factor).detach().to(scale.dtype)
        grad = cross_entropy(
            logits.detach(), target, rescaled, None, 1, *ctx.options, want_grad=True, want_stats=False
        )[2]
    if torch.is_grad_enabled():  # create_graph=True
        grad = FirstDerivative.apply(grad, logits, grad_total, grad_losses)  # type: ignore[no-untyped-call]
    return (grad, *(None,) * 13)


class FirstDerivative(torch.autograd.Function):
    """The gradient, as a function of what it depends on, that says why it has no derivative."""

    @staticmethod
    def forward(ctx: Any, grad: torch.Tensor, *depends_on: torch.Tensor | None) -> torch.Tensor:
        return grad.view_as(grad)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        raise NotImplementedError(
            "the fused backends have first derivatives only; for higher ones use backend='reference', no process_group"
        )


cross_entropy.register_autograd(_backward, setup_context=_setup_context)


class InplaceCrossEntropy(torch.autograd.Function):
    """`cross_entropy` with the gradient written over the logits, whose version is bumped."""

    @staticmethod
    def forward(ctx: Any, logits: torch.Tensor, *args: Any) -> Outputs:
        *options, want_stats = args
        run: Any = _run
        outputs: Outputs = run(logits, *options, want_grad=True, want_stats=want_stats, inplace=True)
        torch.autograd.graph.increment_version(logits)
        ctx.grad = logits.detach()
        ctx.version = logits._version
        ctx.backend = args[-4]
        ctx.mark_non_differentiable(*outputs[1:])
        return outputs[0], outputs[1], logits.new_empty(0), *outputs[3:]

    @staticmethod
    def backward(ctx: Any, grad_total: torch.Tensor, *_: Any) -> tuple[torch.Tensor | None, ...]:
        grad, ctx.grad = ctx.grad, None
        if grad is None:
            raise RuntimeError(
                "cross_entropy: a second backward needs the logits, overwritten with inplace=True; use inplace=False"
            )
        if grad._version != ctx.version:
            raise RuntimeError(
                "cross_entropy: the logits, which with inplace=True hold the gradient, were written to before "
                "backward; use inplace=False"
            )
        with torch.no_grad():
            scale_(grad, grad_total.detach(), ctx.backend)
        if torch.is_grad_enabled():
            grad = FirstDerivative.apply(grad, grad_total)  # type: ignore[no-untyped-call]
        return (grad, *(None,) * 12)
