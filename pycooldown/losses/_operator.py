"""The losses of rows as one torch operator, `torch.ops.pycooldown.cross_entropy`, with its autograd formula.

The gradient is computed in the forward pass, because all weights are known then. Backward multiplies it by a scalar and
passes it on. A second backward over the same graph, and the backward of unreduced losses, runs the kernel again.
"""

from __future__ import annotations

from typing import Any, NamedTuple, get_type_hints

import torch

from . import _vocabulary, backends
from ._checks import has_tangent
from ._statistics import DomainStats
from .backends import KernelOptions, Outputs

_SCHEMA_TYPES = {int: "int", float: "float", str: "str"}
# The operators' last arguments. Their schema takes no records, so options are flattened there and rebuilt at once.
OPTIONS_SCHEMA = ", ".join(f"{_SCHEMA_TYPES[hint]} {name}" for name, hint in get_type_hints(KernelOptions).items())


class Losses(NamedTuple):
    """The results of the operator; unrequested ones have no elements.

    Attributes:
        total: (), sum of `losses`.
        losses: (N,), with z-loss and scaled.
        grad: (N, V), of `total`.
        loss_sum: (K,) float64, of each domain; see `DomainStats`.
        token_count: (K,) int64.
        correct: (K,) int64.
    """

    total: torch.Tensor
    losses: torch.Tensor
    grad: torch.Tensor
    loss_sum: torch.Tensor
    token_count: torch.Tensor
    correct: torch.Tensor

    @property
    def stats(self) -> DomainStats:
        """The sums by domain."""
        return DomainStats(self.loss_sum, self.token_count, self.correct)


class LossRows(NamedTuple):
    """The tensors of the operator, except for the logits.

    Attributes:
        target: (N,) int64.
        scale: (N,) float32, the weight of each row; 0 where ignored.
        domain_ids: (N,) int64 or None.
        num_domains: K.
    """

    target: torch.Tensor
    scale: torch.Tensor
    domain_ids: torch.Tensor | None = None
    num_domains: int = 1


def compute(
    logits: torch.Tensor, rows: LossRows, options: KernelOptions, *, want_grad: bool, want_stats: bool, inplace: bool
) -> Outputs:
    """Return the backend's outputs; with a process group, those of rows whose classes its ranks share."""
    function = _vocabulary.rows if options.group else backends.load_fused(options.backend).rows
    return function(
        logits.detach(),
        rows.target.contiguous(),
        rows.scale.contiguous(),
        None if rows.domain_ids is None else rows.domain_ids.contiguous(),
        rows.num_domains,
        options,
        want_grad=want_grad,
        want_stats=want_stats,
        inplace=inplace,
    )


def scaled(outputs: Outputs, scale: torch.Tensor, z_loss: float) -> torch.Tensor:
    """Return the losses of rows (N,), with z-loss and multiplied by their weights; 0 if the weight is 0."""
    loss = outputs.loss
    if z_loss:
        loss = torch.addcmul(loss, outputs.lse, outputs.lse, value=z_loss)
    return torch.where(scale == 0, 0.0, scale * loss)


def cross_entropy_rows(
    logits: torch.Tensor, rows: LossRows, options: KernelOptions, *, want_grad: bool, want_stats: bool
) -> Losses:
    """Call the operator, which is one node for torch.compile and autograd.

    Args:
        logits: (N, V) float32, bfloat16 or float16; with a group and "reference" float64 too.
        rows: Of the logits.
        options: For the backend.
        want_grad: Whether to compute the gradient of the sum along with it.
        want_stats: Whether to compute sums by domain.
    """
    return Losses(*_cross_entropy(logits, *rows, want_grad, want_stats, *options))


def _run(
    logits: torch.Tensor, rows: LossRows, options: KernelOptions, *, want_grad: bool, want_stats: bool, inplace: bool
) -> Losses:
    outputs = compute(logits, rows, options, want_grad=want_grad, want_stats=want_stats, inplace=inplace)
    losses = scaled(outputs, rows.scale, options.z_loss)
    total = losses.sum(dtype=torch.float64).to(losses.dtype)
    grad = logits.new_empty(0) if outputs.grad is None else outputs.grad
    if want_stats:
        return Losses(total, losses, grad, *outputs.stats)
    nothing = (rows.target.new_empty(0, dtype=dtype) for dtype in (torch.float64, torch.int64, torch.int64))
    return Losses(total, losses, grad, *nothing)


@torch.library.custom_op(
    "pycooldown::cross_entropy",
    mutates_args=(),
    schema="(Tensor logits, Tensor target, Tensor scale, Tensor? domain_ids, int num_domains, bool want_grad, "
    f"bool want_stats, {OPTIONS_SCHEMA}) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    tags=(torch.Tag.needs_exact_strides,),  # the strides of the gradient may depend on those of the logits
)
def _cross_entropy(
    logits: torch.Tensor,
    target: torch.Tensor,
    scale: torch.Tensor,
    domain_ids: torch.Tensor | None,
    num_domains: int,
    want_grad: bool,
    want_stats: bool,
    *options: Any,
) -> tuple[torch.Tensor, ...]:
    refuse_tangents(logits, scale)
    rows = LossRows(target, scale, domain_ids, num_domains)
    return _run(logits, rows, KernelOptions(*options), want_grad=want_grad, want_stats=want_stats, inplace=False)


@_cross_entropy.register_fake
def _(
    logits: torch.Tensor,
    target: torch.Tensor,
    scale: torch.Tensor,
    domain_ids: torch.Tensor | None,
    num_domains: int,
    want_grad: bool,
    want_stats: bool,
    *_options: Any,
) -> tuple[torch.Tensor, ...]:
    sums = num_domains if want_stats else 0
    return Losses(
        scale.new_empty(()),
        torch.empty_like(scale),
        backends.empty_gradient(logits) if want_grad else logits.new_empty(0),
        scale.new_empty(sums, dtype=torch.float64),
        target.new_empty(sums),
        target.new_empty(sums),
    )


@torch.library.custom_op("pycooldown::scale_gradient_", mutates_args=("grad",))
def scale_(grad: torch.Tensor, factor: torch.Tensor, backend: str) -> None:
    """Multiply grad (N, V) by a scalar in place, without synchronization. A factor of 1 costs nothing."""
    backends.load(backend).scale_(grad, factor)


@scale_.register_fake
def _(grad: torch.Tensor, factor: torch.Tensor, backend: str) -> None:
    pass


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, ...]) -> None:
    logits, target, scale, _domain_ids, _num_domains, want_grad, _want_stats, *options = inputs
    losses = Losses(*output)
    ctx.options = KernelOptions(*options)
    ctx.save_for_backward(logits, target, scale)
    ctx.grad = losses.grad if want_grad else None
    ctx.mark_non_differentiable(losses.grad, *losses.stats)
    ctx.set_materialize_grads(False)


def _backward(
    ctx: Any, grad_total: torch.Tensor | None, grad_losses: torch.Tensor | None, *_: Any
) -> tuple[torch.Tensor | None, ...]:
    logits, target, scale = ctx.saved_tensors
    grad, ctx.grad = ctx.grad, None
    if grad_total is None and grad_losses is None:
        return padded(ctx)
    if grad is not None and grad_losses is None:
        assert grad_total is not None
        with torch.no_grad():
            scale_(grad, grad_total.detach(), ctx.options.backend)
    else:
        rows = LossRows(target, rescaled(scale, grad_total, grad_losses))
        grad = cross_entropy_rows(logits.detach(), rows, ctx.options, want_grad=True, want_stats=False).grad
    if torch.is_grad_enabled():  # create_graph=True
        grad = FirstDerivative.apply(grad, logits, grad_total, grad_losses)  # type: ignore[no-untyped-call]
    return padded(ctx, grad)


_cross_entropy.register_autograd(_backward, setup_context=_setup_context)


def padded(ctx: Any, *grads: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
    """Return the gradients of an operator's first arguments, and None for all others."""
    return (*grads, *[None] * (len(ctx.needs_input_grad) - len(grads)))


def refuse_tangents(*tensors: torch.Tensor | None) -> None:
    """Raise if a forward-mode derivative would be lost: a compiled function may later be called with tangents."""
    try:
        lost = any(tensor is not None and has_tangent(tensor) for tensor in tensors)
    except RuntimeError:  # AOTAutograd hides tangents from operators, and outside a dual_level there are none
        lost = True
    if lost:
        raise NotImplementedError(
            "the fused backends have no forward-mode derivatives; use backend='reference' inside torch.compile"
        )


def rescaled(scale: torch.Tensor, grad_total: torch.Tensor | None, grad_losses: torch.Tensor | None) -> torch.Tensor:
    """Return the weights of rows, times the gradients of the sum and of each loss."""
    factor = sum(grad for grad in (grad_total, grad_losses) if grad is not None)
    return (scale * factor).detach().to(scale.dtype)


class FirstDerivative(torch.autograd.Function):
    """The gradient as a function of its inputs. Its derivative raises an error that explains why there is none."""

    @staticmethod
    def forward(ctx: Any, grad: torch.Tensor, *depends_on: torch.Tensor | None) -> torch.Tensor:
        """Return the gradient unchanged."""
        return grad.view_as(grad)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        """Raise an error: a fused backend has no second derivative."""
        raise NotImplementedError(
            "the fused backends have first derivatives only; for higher ones use backend='reference', no process_group"
        )


class InplaceCrossEntropy(torch.autograd.Function):
    """The operator with the gradient written over the logits, whose version counter is incremented."""

    @staticmethod
    def forward(
        ctx: Any, logits: torch.Tensor, rows: LossRows, options: KernelOptions, want_stats: bool
    ) -> tuple[torch.Tensor, ...]:
        """Return `Losses` without the gradient, which lies in the logits."""
        losses = _run(logits, rows, options, want_grad=True, want_stats=want_stats, inplace=True)
        torch.autograd.graph.increment_version(logits)
        ctx.grad = logits.detach()
        ctx.version = logits._version
        ctx.backend = options.backend
        losses = losses._replace(grad=logits.new_empty(0))
        ctx.mark_non_differentiable(*losses[1:])
        return tuple(losses)

    @staticmethod
    def backward(ctx: Any, grad_total: torch.Tensor, *_: Any) -> tuple[torch.Tensor | None, ...]:
        """Return the gradient, times the gradient of the sum."""
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
        return padded(ctx, grad)
