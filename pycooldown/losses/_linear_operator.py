"""Linear layer and losses as one torch operator, `torch.ops.pycooldown.linear_cross_entropy`, with its formulas.

There is one sweep over chunks of rows, and nothing is computed twice. A matrix product gives the logits of a chunk. The
kernel overwrites them with their gradient, because all weights are known then. A second product gives the gradient of
the layer's input. A third one, for as many chunks at once as possible, gives that of the weight. Backward multiplies
these gradients by a scalar and passes them on. A second backward over the same graph, and the backward of unreduced
losses, sweeps again.
"""

from __future__ import annotations

import itertools
from typing import Any, NamedTuple

import torch
from torch.utils.flop_counter import register_flop_formula

from . import _vocabulary
from ._operator import (
    OPTIONS_SCHEMA,
    FirstDerivative,
    LossRows,
    compute,
    padded,
    refuse_tangents,
    rescaled,
    scale_,
    scaled,
)
from ._products import WeightGradient, default_chunk_size, empty_logits, linear
from ._statistics import DomainStats
from .backends import KernelOptions


class LinearLosses(NamedTuple):
    """The results of the operator; unrequested ones have no elements.

    Attributes:
        total: (), sum of `losses`.
        losses: (N,), with z-loss and scaled.
        grad_input: (N, D), of `total`.
        grad_weight: (V, D), of `total`.
        grad_bias: (V,), of `total`.
        loss_sum: (K,) float64, of each domain; see `DomainStats`.
        token_count: (K,) int64.
        correct: (K,) int64.
    """

    total: torch.Tensor
    losses: torch.Tensor
    grad_input: torch.Tensor
    grad_weight: torch.Tensor
    grad_bias: torch.Tensor
    loss_sum: torch.Tensor
    token_count: torch.Tensor
    correct: torch.Tensor

    @property
    def stats(self) -> DomainStats:
        """The sums by domain."""
        return DomainStats(self.loss_sum, self.token_count, self.correct)

    def grads(self, wanted: Wanted) -> list[torch.Tensor | None]:
        """Return the gradients over input, weight and bias; None for unrequested ones."""
        each = (self.grad_input, self.grad_weight, self.grad_bias)
        return [grad if want else None for grad, want in zip(each, wanted, strict=False)]


class Operands(NamedTuple):
    """The operator's tensors that have gradients: (N, D), (V, D) and (V,) or None."""

    input: torch.Tensor
    weight: torch.Tensor
    bias: torch.Tensor | None


class Wanted(NamedTuple):
    """The results to compute besides the losses: gradients over input, weight and bias, and sums by domain."""

    input_grad: bool
    weight_grad: bool
    bias_grad: bool
    stats: bool = False

    @property
    def any_grad(self) -> bool:
        """Whether a gradient is wanted."""
        return self.input_grad or self.weight_grad or self.bias_grad


def linear_cross_entropy_rows(
    operands: Operands,
    rows: LossRows,
    options: KernelOptions,
    wanted: Wanted,
    *,
    dtype: torch.dtype,
    chunk_size: int | None,
) -> LinearLosses:
    """Call the operator, which is one node for torch.compile and autograd.

    Args:
        operands: Input and layer.
        rows: Targets, weights and domains of the rows.
        options: Options of the backend.
        wanted: The results to compute.
        dtype: Dtype of the logits and the products: float32, bfloat16 or float16; float64 for "reference".
        chunk_size: Rows per chunk, or None for a default that fits the memory.
    """
    return LinearLosses(*_linear_cross_entropy(*operands, *rows, dtype, chunk_size, *wanted, *options))


class Call(NamedTuple):
    """The operator's arguments by name. Its schema allows no records, so they are flattened there and rebuilt here."""

    operands: Operands
    rows: LossRows
    dtype: torch.dtype
    chunk_size: int | None
    wanted: Wanted
    options: KernelOptions

    @classmethod
    def of(cls, arguments: tuple[Any, ...]) -> Call:
        """Return the call of the operator's arguments."""
        rest = iter(arguments)

        def take(record: type[NamedTuple]) -> Any:
            return record(*itertools.islice(rest, len(record._fields)))

        return cls(take(Operands), take(LossRows), next(rest), next(rest), take(Wanted), take(KernelOptions))


@torch.library.custom_op(
    "pycooldown::linear_cross_entropy",
    mutates_args=(),
    schema="(Tensor input, Tensor weight, Tensor? bias, Tensor target, Tensor scale, Tensor? domain_ids, "
    "int num_domains, ScalarType dtype, SymInt? chunk_size, bool want_input_grad, bool want_weight_grad, "
    f"bool want_bias_grad, bool want_stats, {OPTIONS_SCHEMA}) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    tags=(torch.Tag.cudagraph_unsafe,),  # the host waits for the number of rows, so graphs can only be made around it
)
def _linear_cross_entropy(*arguments: Any) -> tuple[torch.Tensor, ...]:
    call = Call.of(arguments)
    refuse_tangents(*call.operands, call.rows.scale)
    return _sweep(*call)


def _sweep(
    operands: Operands,
    rows: LossRows,
    dtype: torch.dtype,
    chunk_size: int | None,
    wanted: Wanted,
    options: KernelOptions,
) -> LinearLosses:
    """Compute the operator's results."""
    input, device, scale = operands.input, operands.input.device, rows.scale
    num_classes = len(operands.weight)
    # Rows that count neither in the loss nor in the sums are left out of the products. Their number is known only by
    # waiting for the device, which is not possible while a CUDA graph is captured.
    kept = torch.arange(0)
    num_rows, all_rows = len(scale), True
    if not (torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing()):  # type: ignore[no-untyped-call]
        keep = rows.target != options.ignore_index if wanted.stats else scale != 0
        kept = keep.nonzero().squeeze(1)
        num_rows, all_rows = len(kept), len(kept) == len(keep)

    step = chunk_size
    if step is None:  # equal on all ranks, although their slices differ
        widest = _vocabulary.largest_slice(operands.weight, options.group) if options.group else num_classes
        step = default_chunk_size(num_rows, widest, dtype, device)

    losses = torch.zeros_like(scale)
    buffer = empty_logits(min(step, num_rows), num_classes, dtype, device)
    grad_input = input.new_empty(input.shape if wanted.input_grad else 0)
    if wanted.input_grad and not all_rows:
        grad_input.zero_()
    grad_weight = WeightGradient(operands.weight, dtype, num_rows, step) if wanted.weight_grad else None
    rows_at_once = max(grad_weight.rows_at_once if grad_weight else step, 1)
    grad_bias = scale.new_zeros(num_classes if wanted.bias_grad else 0)
    loss_sum = scale.new_zeros(rows.num_domains if wanted.stats else 0, dtype=torch.float64)
    sums = DomainStats(loss_sum, *(torch.zeros_like(loss_sum, dtype=torch.int64) for _ in range(2)))

    with torch.autocast(device.type, enabled=False):
        weight = operands.weight.to(dtype)
        bias = None if operands.bias is None else operands.bias.to(dtype)
        for start in range(0, num_rows, rows_at_once):
            stop = min(start + rows_at_once, num_rows)
            all_hidden = input[slice(start, stop) if all_rows else kept[start:stop]].to(dtype)
            for begin in range(start, stop, step):
                end = min(begin + step, stop)
                chunk = slice(begin, end) if all_rows else kept[begin:end]
                hidden = all_hidden[begin - start : end - start]
                domain_ids = None if rows.domain_ids is None else rows.domain_ids[chunk]
                outputs = compute(
                    linear(hidden, weight, bias, out=buffer[: end - begin]),
                    LossRows(rows.target[chunk], scale[chunk], domain_ids, rows.num_domains),
                    options,
                    want_grad=wanted.any_grad,
                    want_stats=wanted.stats,
                    inplace=True,
                )
                losses[chunk] = scaled(outputs, scale[chunk], options.z_loss)
                if wanted.stats:
                    for total, part in zip(sums, outputs.stats, strict=True):
                        total += part
                grad = outputs.grad
                if grad is None:
                    continue
                if wanted.input_grad:
                    grad_input[chunk] = linear(grad, weight.t()).to(input.dtype)
                if grad_weight:
                    grad_weight.keep(grad, begin - start)
                if wanted.bias_grad:
                    grad_bias += grad.sum(0, dtype=grad_bias.dtype)
            if grad_weight:
                grad_weight.add(all_hidden)
            del all_hidden, hidden

    if options.group and wanted.input_grad:  # each rank has the part of its own classes
        _vocabulary.sum_(grad_input, options.group)
    return LinearLosses(
        losses.sum(dtype=torch.float64).to(losses.dtype),
        losses,
        grad_input,
        grad_weight.finish() if grad_weight else operands.weight.new_empty(0),
        grad_bias if operands.bias is None else grad_bias.to(operands.bias.dtype),
        *sums,
    )


@_linear_cross_entropy.register_fake
def _(*arguments: Any) -> tuple[torch.Tensor, ...]:
    call = Call.of(arguments)
    (input, weight, bias), (target, scale, _, num_domains), wanted = call.operands, call.rows, call.wanted
    sums = num_domains if wanted.stats else 0
    return LinearLosses(
        scale.new_empty(()),
        torch.empty_like(scale),
        input.new_empty(input.shape if wanted.input_grad else 0),
        weight.new_empty(weight.shape if wanted.weight_grad else 0),
        (scale if bias is None else bias).new_empty(len(weight) if wanted.bias_grad else 0),
        scale.new_empty(sums, dtype=torch.float64),
        target.new_empty(sums),
        target.new_empty(sums),
    )


@register_flop_formula(torch.ops.pycooldown.linear_cross_entropy)
def _flops(*arguments: Any, out_shape: Any = None, **_: Any) -> int:
    """Count the operations of the products as torch does. Rows of weight 0 count too: no shape has their number."""
    call = Call.of(arguments)  # with shapes instead of tensors
    products = 1 + call.wanted.input_grad + call.wanted.weight_grad
    num_rows, num_classes = call.rows.target[0], call.operands.weight[0]
    return int(2 * products * num_rows * call.operands.input[1] * num_classes)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, ...]) -> None:
    call, losses = Call.of(inputs), LinearLosses(*output)
    ctx.save_for_backward(*call.operands, call.rows.target, call.rows.scale)
    ctx.options, ctx.dtype, ctx.chunk_size = call.options, call.dtype, call.chunk_size
    ctx.grads = losses.grads(call.wanted) if call.wanted.any_grad else None
    ctx.mark_non_differentiable(*output[2:])
    ctx.set_materialize_grads(False)


def _backward(
    ctx: Any, grad_total: torch.Tensor | None, grad_losses: torch.Tensor | None, *_: Any
) -> tuple[torch.Tensor | None, ...]:
    *operands, target, scale = ctx.saved_tensors
    grads, ctx.grads = ctx.grads, None
    if grad_total is None and grad_losses is None:
        return padded(ctx)
    if grads is not None and grad_losses is None:
        assert grad_total is not None
        with torch.no_grad():
            for grad in grads:
                if grad is not None:
                    scale_(grad if grad.dim() == 2 else grad.unsqueeze(0), grad_total.detach(), ctx.options.backend)
    else:
        needed = zip(operands, ctx.needs_input_grad[: len(operands)], strict=True)
        wanted = Wanted(*(tensor is not None and need for tensor, need in needed))
        input, weight, bias = operands
        losses = linear_cross_entropy_rows(
            Operands(input.detach(), weight.detach(), None if bias is None else bias.detach()),
            LossRows(target, rescaled(scale, grad_total, grad_losses)),
            ctx.options,
            wanted,
            dtype=ctx.dtype,
            chunk_size=ctx.chunk_size,
        )
        grads = losses.grads(wanted)
    if torch.is_grad_enabled():  # create_graph=True
        depends_on = (*operands, grad_total, grad_losses)
        grads = [None if g is None else FirstDerivative.apply(g, *depends_on) for g in grads]  # type: ignore[no-untyped-call]
    return padded(ctx, *grads)


_linear_cross_entropy.register_autograd(_backward, setup_context=_setup_context)
