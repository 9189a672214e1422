"""Linear layer and cross-entropy as one operator of torch: `torch.ops.pycooldown.linear_cross_entropy`.

One sweep over chunks of rows, and nothing is computed twice: a product gives the logits of a chunk, the kernel of
`_fused` overwrites them with their gradient, as all weights are known by then, a second product takes it to the layer's
input, and a third, of as many chunks at once as it can, to the weight. Backward multiplies those by a scalar and gives
them away. A second backward over the same graph, and that of unreduced losses, sweeps again.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from ._fused import FirstDerivative, backend_module, rows_function, scale_, scaled
from ._weight_gradient import SLICE, WeightGradient

Outputs = tuple[
    torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor
]

CHUNK_BYTES = 20 << 20  # of logits
# Rows of a chunk at the least. With fewer, the products wait for the weight to come from memory, which on a GPU allows
# several hundred operations per byte.
MIN_ROWS_CPU, MIN_ROWS_GPU = 96, 512


def default_chunk_size(num_rows: int, num_classes: int, dtype: torch.dtype, device: torch.device) -> int:
    """Rows per chunk: even chunks of at most CHUNK_BYTES of logits, or of the least number of rows if that is more."""
    least = MIN_ROWS_CPU if device.type == "cpu" else MIN_ROWS_GPU
    limit = max(CHUNK_BYTES // (max(num_classes, 1) * dtype.itemsize), least)
    chunks = max(math.ceil(num_rows / limit), 1)
    return max(math.ceil(num_rows / chunks), 1)


def _linear(
    input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None, out: torch.Tensor | None = None
) -> torch.Tensor:
    """The product input (N, D) @ weight (V, D).T + bias (V,); in out, if there is one."""
    dense = weight.is_contiguous() or weight.t().is_contiguous()
    if _has_onednn(input.device, input.dtype) and dense and weight.numel() and input.numel():
        if out is None:
            return torch.ops.mkldnn._linear_pointwise(input.contiguous(), weight, bias, "none", [], "")  # type: ignore[no-any-return]
        # Its output is freshly allocated. A slice at a time keeps that small: large blocks, freed, break up the heap.
        biases = [None] * math.ceil(len(weight) / SLICE) if bias is None else torch.split(bias, SLICE)
        for part, of_part, columns in zip(
            torch.split(weight, SLICE), biases, torch.split(out, SLICE, dim=1), strict=True
        ):
            columns.copy_(_linear(input, part.contiguous(), of_part))
        return out
    if bias is None:
        return torch.mm(input, weight.t(), out=out)
    return torch.addmm(bias, input, weight.t(), out=out)


def _has_onednn(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether oneDNN should multiply. torch leaves float32 to MKL: half as fast on AMD's processors with AVX-512."""
    return (
        device.type == "cpu"
        and dtype == torch.float32
        and bool(torch.backends.mkldnn.is_available())  # type: ignore[no-untyped-call]
        and bool(torch.backends.mkldnn.enabled)
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    )


@torch.library.custom_op("pycooldown::linear_cross_entropy", mutates_args=())
def linear_cross_entropy(
    input: torch.Tensor,
    linear_weight: torch.Tensor,
    linear_bias: torch.Tensor | None,
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
    dtype: torch.dtype,
    chunk_size: int | None,
    want_input_grad: bool,
    want_weight_grad: bool,
    want_bias_grad: bool,
    want_stats: bool,
) -> Outputs:
    """Sum of the scaled losses of rows, and what comes with it.

    Args:
        input: (N, D).
        linear_weight: (V, D).
        linear_bias: (V,) or None.
        target: (N,) int64.
        scale: (N,) float32, the weight of each row; 0 where ignored.
        domain_ids: (N,) int64 or None.
        num_domains: K.
        ignore_index: Target of ignored rows.
        label_smoothing: As in `pycooldown.losses.cross_entropy`.
        z_loss: Likewise.
        softcap: Likewise; 0 for none.
        backend: "cpp" or "triton"; with a group also "reference".
        group: Name of the process group whose ranks share the classes, or "".
        position: (2,) int64, the first class here and the number of all, or None.
        dtype: Of the logits and the products: float32, bfloat16 or float16; float64 for "reference".
        chunk_size: Rows per chunk, or None for a default that fits the memory.
        want_input_grad: Whether to compute the gradient of the sum over input along with it.
        want_weight_grad: Likewise over linear_weight.
        want_bias_grad: Likewise over linear_bias.
        want_stats: Whether to compute sums by domain.

    Returns:
        The sum (), the scaled losses (N,), the gradients of the sum over input, weight and bias, and the sums by domain
        (K,) three times; what is not wanted has no elements.
    """
    # Rows that count neither in the loss nor in the sums take no part in the products.
    keep = target != ignore_index if want_stats else scale != 0
    kept = keep.nonzero().squeeze(1)
    num_rows, all_rows = len(kept), len(kept) == len(keep)
    num_classes = len(linear_weight)
    want_grad = want_input_grad or want_weight_grad or want_bias_grad

    step = chunk_size or default_chunk_size(num_rows, num_classes, dtype, input.device)

    losses = torch.zeros_like(scale)
    buffer = input.new_empty(min(step, num_rows), num_classes, dtype=dtype)
    grad_input = input.new_empty(input.shape if want_input_grad else 0)
    if want_input_grad and not all_rows:
        grad_input.zero_()
    grad_weight = WeightGradient(linear_weight, dtype, num_rows, step) if want_weight_grad else None
    rows_at_once = max(grad_weight.rows_at_once if grad_weight else step, 1)
    grad_bias = scale.new_zeros(num_classes if want_bias_grad else 0)
    loss_sum = scale.new_zeros(num_domains if want_stats else 0, dtype=torch.float64)
    token_count, correct = (torch.zeros_like(loss_sum, dtype=torch.int64) for _ in range(2))

    with torch.autocast(input.device.type, enabled=False):
        weight = linear_weight.to(dtype)
        bias = None if linear_bias is None else linear_bias.to(dtype)
        for start in range(0, num_rows, rows_at_once):
            stop = min(start + rows_at_once, num_rows)
            all_hidden = input[slice(start, stop) if all_rows else kept[start:stop]].to(dtype)
            for begin in range(start, stop, step):
                end = min(begin + step, stop)
                hidden = all_hidden[begin - start : end - start]
                logits = _linear(hidden, weight, bias, out=buffer[: end - begin])
                rows = slice(begin, end) if all_rows else kept[begin:end]
                loss, lse, grad, *sums = rows_function(backend, group, position)(
                    logits,
                    target[rows].contiguous(),
                    scale[rows].contiguous(),
                    None if domain_ids is None else domain_ids[rows].contiguous(),
                    num_domains,
                    ignore_index=ignore_index,
                    label_smoothing=label_smoothing,
                    z_loss=z_loss,
                    softcap=softcap,
                    want_grad=want_grad,
                    want_stats=want_stats,
                    inplace=True,
                )
                losses[rows] = scaled(loss, lse, scale[rows], z_loss)
                if want_stats:
                    for total, part in zip((loss_sum, token_count, correct), sums, strict=True):
                        total += part
                if want_input_grad:
                    grad_input[rows] = _linear(grad, weight.t()).to(input.dtype)
                if grad_weight:
                    grad_weight.keep(grad, begin - start)
                if want_bias_grad:
                    grad_bias += grad.sum(0, dtype=grad_bias.dtype)
            if grad_weight:
                grad_weight.add(all_hidden)
            del all_hidden, hidden

    if group and want_input_grad:  # of which each rank has the part that its classes make
        backend_module("sharded").sum_(grad_input, group)
    total = losses.sum(dtype=torch.float64).to(losses.dtype)
    return (
        total,
        losses,
        grad_input,
        grad_weight.finish() if grad_weight else linear_weight.new_empty(0),
        grad_bias if linear_bias is None else grad_bias.to(linear_bias.dtype),
        loss_sum,
        token_count,
        correct,
    )


@linear_cross_entropy.register_fake
def _(
    input: torch.Tensor,
    linear_weight: torch.Tensor,
    linear_bias: torch.Tensor | None,
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
    dtype: torch.dtype,
    chunk_size: int | None,
    want_input_grad: bool,
    want_weight_grad: bool,
    want_bias_grad: bool,
    want_stats: bool,
) -> Outputs:
    sums = num_domains if want_stats else 0
    bias = scale if linear_bias is None else linear_bias
    return (
        scale.new_empty(()),
        torch.empty_like(scale),
        input.new_empty(input.shape if want_input_grad else 0),
        linear_weight.new_empty(linear_weight.shape if want_weight_grad else 0),
        bias.new_empty(len(linear_weight) if want_bias_grad else 0),
        scale.new_empty(sums, dtype=torch.float64),
        target.new_empty(sums),
        target.new_empty(sums),
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Outputs) -> None:
    *ctx.options, want_input_grad, want_weight_grad, want_bias_grad, _want_stats = inputs[7:]
    _total, _losses, *grads = output[:5]
    wanted = (want_input_grad, want_weight_grad, want_bias_grad)
    ctx.save_for_backward(*inputs[:5])
    ctx.grads = [grad if want else None for grad, want in zip(grads, wanted, strict=True)] if any(wanted) else None
    ctx.mark_non_differentiable(*output[2:])
    ctx.set_materialize_grads(False)


def _backward(
    ctx: Any, grad_total: torch.Tensor | None, grad_losses: torch.Tensor | None, *_: Any
) -> tuple[torch.Tensor | None, ...]:
    input, linear_weight, linear_bias, target, scale = ctx.saved_tensors
    grads, ctx.grads = ctx.grads, None
    if grad_total is None and grad_losses is None:
        return (None,) * 20
    if grads is not None and grad_losses is None:
        assert grad_total is not None
        backend = ctx.options[4]
        with torch.no_grad():
            for grad in grads:
                if grad is not None:
                    scale_(grad if grad.dim() == 2 else grad.unsqueeze(0), grad_total.detach(), backend)
    else:
        factor = sum(g for g in (grad_total, grad_losses) if g is not None)
        rescaled = (scale * factor).detach().to(scale.dtype)
        wanted = [
            tensor is not None and need
            for tensor, need in zip((input, linear_weight, linear_bias), ctx.needs_input_grad[:3], strict=True)
        ]
        operands = (None if t is None else t.detach() for t in (input, linear_weight, linear_bias))
        outputs = linear_cross_entropy(*operands, target, rescaled, None, 1, *ctx.options, *wanted, False)
        grads = [grad if want else None for grad, want in zip(outputs[2:5], wanted, strict=True)]
    if torch.is_grad_enabled():  # create_graph=True
        depends_on = (input, linear_weight, linear_bias, grad_total, grad_losses)
        grads = [None if g is None else FirstDerivative.apply(g, *depends_on) for g in grads]  # type: ignore[no-untyped-call]
    return (*grads, *(None,) * 17)


linear_cross_entropy.register_autograd(_backward, setup_context=_setup_context)
