# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator"
"""The Triton kernels of `triton`, which launches them.

One program per row. A first pass keeps a running maximum and sum of exponentials in every lane (online softmax,
Milakov and Gimelshein, arXiv 1805.02867) and reduces them across lanes once, at the end of the row. A second pass, from
the end of the row to its start, while what was read last is still in cache, writes the gradient.

A row need not start on a 16-byte boundary (with V = 50,257 and 2 bytes each, seven rows of eight do not). Each is
split, by its own address, into a head and a tail of less than 16 bytes, the edges, and an aligned body between them, so
that the body moves in 128-bit accesses at any V. The edges stay in registers between the passes: when the gradient
overwrites the logits, one warp may have written them while another still has to read.

No integer is specialized and no pointer assumed aligned, so a variant depends on the dtype, the flags and LANES alone;
benchmarks/triton_aot.py compiles each of them. Only `tl` is used, no inline assembly and no libdevice.
"""

from __future__ import annotations

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)
THREAD_ELEMENTS = tl.constexpr(16)  # of a tile, per thread: 32 or 64 bytes in flight, and under 64 registers
STATS_ROWS = tl.constexpr(1024)  # rows per program of the domain sums
STATS_TILE = tl.constexpr(32)  # rows and domains that it looks at together


@triton.jit
def _tanh(z):
    """Hyperbolic tangent. (1 - e) / (1 + e) cancels near 0; a Taylor series there is exact to a rounding."""
    e = tl.exp(-2 * tl.abs(z))
    far = (1 - e) / (1 + e)
    y = z * z
    near = z * (1 + y * (-1 / 3 + y * (2 / 15 + y * (-17 / 315 + y * (62 / 2835)))))
    return tl.where(tl.abs(z) < 0.25, near, tl.where(z < 0, -far, far))


@triton.jit
def _load(pointers, mask, softcap, SOFTCAP: tl.constexpr, eviction_policy: tl.constexpr):
    """Logits in float32, soft-capped; -inf where masked."""
    x = tl.load(pointers, mask=mask, other=float("-inf"), eviction_policy=eviction_policy).to(tl.float32)
    if SOFTCAP:
        x = tl.where(mask, softcap * _tanh(x / softcap), float("-inf"))
    return x


@triton.jit
def _finite(m):
    """The maximum to subtract: 0 for an infinite one, so that no inf - inf hides what the row holds."""
    return tl.where(tl.abs(m) == float("inf"), 0.0, m)


@triton.jit
def _split(row, num_classes, VEC: tl.constexpr):
    """Lengths of a row's head and aligned body."""
    head = (((16 - (row.to(tl.int64) & 15)) & 15) * VEC // 16).to(tl.int32)
    head = tl.minimum(head, num_classes)
    return head, (num_classes - head) // VEC * VEC


@triton.jit
def _edges(head, body, num_classes, VEC: tl.constexpr):
    """Columns of the head, then of the tail, and which of the 2 VEC slots are in use."""
    slot = tl.arange(0, 2 * VEC)
    column = tl.where(slot < VEC, slot, head + body + slot - VEC)
    return column, tl.where(slot < VEC, slot < head, column < num_classes)


@triton.jit
def _tile(start, body, VEC: tl.constexpr, LANES: tl.constexpr):
    """Offsets into the body of a tile (tiles, LANES, VEC), of which a thread holds [:, lane, :], and their mask."""
    block = tl.arange(0, THREAD_ELEMENTS // VEC)[:, None, None] * (LANES * VEC)
    first = start + block + tl.arange(0, LANES)[None, :, None] * VEC
    return first + tl.arange(0, VEC)[None, None, :], first < body


@triton.jit
def _fill_zero(row, num_classes, VEC: tl.constexpr, LANES: tl.constexpr):
    head, body = _split(row, num_classes, VEC)
    edge_column, edge_mask = _edges(head, body, num_classes, VEC)
    tl.store(row + edge_column, tl.zeros_like(edge_column).to(row.dtype.element_ty), mask=edge_mask)
    aligned = tl.multiple_of(row + head, 16)
    for start in range(0, body, LANES * THREAD_ELEMENTS):
        offset, mask = _tile(start, body, VEC, LANES)
        tl.store(aligned + offset, tl.zeros_like(offset).to(row.dtype.element_ty), mask=mask)


@triton.jit
def _gradient(
    x, column, target, m, factor, at_target, everywhere, softcap, SMOOTHING: tl.constexpr, SOFTCAP: tl.constexpr
):
    g = factor * tl.exp2((x - m) * LOG2_E) - tl.where(column == target, at_target, 0.0)
    if SMOOTHING:
        g -= everywhere
    if SOFTCAP:
        x /= softcap
        g *= 1 - x * x
    return g


@triton.jit
def _write_gradient(
    aligned, grad, head, body, edge, edge_column, edge_mask, target, m, factor, at_target, everywhere, softcap,
    SMOOTHING: tl.constexpr, SOFTCAP: tl.constexpr, VEC: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    """From the end of the row to its start; aligned are the logits of the body."""
    edge = _gradient(edge, edge_column, target, m, factor, at_target, everywhere, softcap, SMOOTHING, SOFTCAP)
    tl.store(grad + edge_column, edge.to(grad.dtype.element_ty), mask=edge_mask)
    aligned_grad = tl.multiple_of(grad + head, 16)
    tiles = tl.cdiv(body, LANES * THREAD_ELEMENTS)
    for i in range(tiles):
        offset, mask = _tile((tiles - 1 - i) * (LANES * THREAD_ELEMENTS), body, VEC, LANES)
        x = _load(aligned + offset, mask, softcap, SOFTCAP, "evict_first")
        g = _gradient(x, head + offset, target, m, factor, at_target, everywhere, softcap, SMOOTHING, SOFTCAP)
        tl.store(aligned_grad + offset, g.to(grad.dtype.element_ty), mask=mask)


@triton.jit(
    do_not_specialize=["logits_stride", "grad_stride", "num_classes", "ignore_index", "want_stats"],
    do_not_specialize_on_alignment=["logits", "target", "scale", "loss", "lse", "correct", "grad"],
)
def rows_kernel(
    logits, target, scale, loss, lse, correct, grad,
    logits_stride: tl.int64, grad_stride: tl.int64, num_classes: tl.int32, ignore_index: tl.int64, want_stats: tl.int32,
    label_smoothing: tl.float32, z_loss: tl.float32, softcap: tl.float32,
    SMOOTHING: tl.constexpr, SOFTCAP: tl.constexpr, GRAD: tl.constexpr, SAME_ALIGNMENT: tl.constexpr,
    LANES: tl.constexpr,
):  # fmt: skip
    """Loss, log-sum-exp, whether correct, and the gradient of a row; see `contract.Backend.rows`."""
    VEC: tl.constexpr = 128 // logits.dtype.element_ty.primitive_bitwidth
    TILE: tl.constexpr = LANES * THREAD_ELEMENTS
    n = tl.program_id(0).to(tl.int64)
    logits += n * logits_stride
    grad += n * grad_stride
    t = tl.load(target + n)
    weight = tl.load(scale + n)
    if (t == ignore_index) | ((weight == 0) & (want_stats == 0)):
        tl.store(loss + n, 0.0)
        tl.store(lse + n, 0.0)
        tl.store(correct + n, 0)
        if GRAD:
            _fill_zero(grad, num_classes, VEC, LANES)
        return

    in_range = (t >= 0) & (t < num_classes)
    x_target = _load(logits + t, in_range, softcap, SOFTCAP, "")
    # Aligned is what is written; logits whose rows are aligned otherwise are read element by element.
    if GRAD:
        head, body = _split(grad, num_classes, VEC)
    else:
        head, body = _split(logits, num_classes, VEC)
    aligned = logits + head
    if SAME_ALIGNMENT:
        aligned = tl.multiple_of(aligned, 16)

    lane_max = tl.full((LANES,), float("-inf"), tl.float32)
    lane_sum = tl.zeros((LANES,), tl.float32)
    lane_total = tl.zeros((LANES,), tl.float32)
    for start in range(0, body, TILE):
        offset, mask = _tile(start, body, VEC, LANES)
        x = _load(aligned + offset, mask, softcap, SOFTCAP, "evict_last" if GRAD else "evict_first")
        new_max = tl.maximum(lane_max, tl.max(tl.max(x, 2), 0))
        m = _finite(new_max)
        lane_sum *= tl.exp2((lane_max - m) * LOG2_E)
        lane_sum += tl.sum(tl.sum(tl.exp2((x - m[None, :, None]) * LOG2_E), 2), 0)
        lane_max = new_max
        if SMOOTHING:
            lane_total += tl.sum(tl.sum(tl.where(mask, x, 0.0), 2), 0)

    edge_column, edge_mask = _edges(head, body, num_classes, VEC)
    edge = _load(logits + edge_column, edge_mask, softcap, SOFTCAP, "")
    row_max = tl.maximum(tl.max(lane_max, 0), tl.max(edge, 0))
    m = _finite(row_max)
    row_sum = tl.sum(lane_sum * tl.exp2((lane_max - m) * LOG2_E), 0) + tl.sum(tl.exp2((edge - m) * LOG2_E), 0)
    log_sum = tl.log(row_sum)
    row_lse = m + log_sum
    # As in torch, an infinite maximum makes loss and gradient NaN; so does a target that is no class.
    poison = tl.where(in_range & (tl.abs(row_max) != float("inf")), 0.0, float("nan"))
    row_loss = log_sum - (x_target - m) + poison
    if SMOOTHING:
        row_total = tl.sum(lane_total, 0) + tl.sum(tl.where(edge_mask, edge, 0.0), 0)
        row_loss = (1 - label_smoothing) * row_loss + label_smoothing * (log_sum - (row_total / num_classes - m))
    tl.store(loss + n, row_loss)
    tl.store(lse + n, row_lse)
    tl.store(correct + n, (in_range & (x_target >= row_max) & (row_loss == row_loss)).to(tl.int8))

    if GRAD:
        if weight == 0:
            _fill_zero(grad, num_classes, VEC, LANES)
        else:
            factor = weight * (1 + 2 * z_loss * row_lse) / row_sum + poison
            everywhere = weight * label_smoothing / num_classes
            _write_gradient(
                aligned, grad, head, body, edge, edge_column, edge_mask, t.to(tl.int32), m,
                factor, weight * (1 - label_smoothing), everywhere, softcap, SMOOTHING, SOFTCAP, VEC, LANES,
            )  # fmt: skip


@triton.jit(
    do_not_specialize=["logits_stride", "grad_stride", "num_classes", "ignore_index"],
    do_not_specialize_on_alignment=["logits", "target", "scale", "lse", "num_whole_classes", "grad"],
)
def slice_kernel(
    logits, target, scale, lse, num_whole_classes, grad,
    logits_stride: tl.int64, grad_stride: tl.int64, num_classes: tl.int32, ignore_index: tl.int64,
    label_smoothing: tl.float32, z_loss: tl.float32, softcap: tl.float32,
    SMOOTHING: tl.constexpr, SOFTCAP: tl.constexpr, SAME_ALIGNMENT: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    """The gradient of a slice of classes, where the log-sum-exp of all of them is known: the second pass alone."""
    VEC: tl.constexpr = 128 // logits.dtype.element_ty.primitive_bitwidth
    n = tl.program_id(0).to(tl.int64)
    logits += n * logits_stride
    grad += n * grad_stride
    t = tl.load(target + n)
    weight = tl.load(scale + n)
    if (t == ignore_index) | (weight == 0):
        _fill_zero(grad, num_classes, VEC, LANES)
        return
    row_lse = tl.load(lse + n)
    everywhere = weight * label_smoothing
    if SMOOTHING:
        everywhere /= tl.load(num_whole_classes)
    head, body = _split(grad, num_classes, VEC)
    aligned = logits + head
    if SAME_ALIGNMENT:
        aligned = tl.multiple_of(aligned, 16)
    edge_column, edge_mask = _edges(head, body, num_classes, VEC)
    edge = _load(logits + edge_column, edge_mask, softcap, SOFTCAP, "")
    _write_gradient(
        aligned, grad, head, body, edge, edge_column, edge_mask, t.to(tl.int32), row_lse,
        weight * (1 + 2 * z_loss * row_lse), weight * (1 - label_smoothing), everywhere, softcap, SMOOTHING, SOFTCAP,
        VEC, LANES,
    )  # fmt: skip


@triton.jit(do_not_specialize=["stride", "num_classes"], do_not_specialize_on_alignment=["grad", "factor"])
def scale_kernel(grad, factor, stride: tl.int64, num_classes: tl.int32, LANES: tl.constexpr):
    """Multiply a row by the factor, in place; leave it as it is if that is 1."""
    VEC: tl.constexpr = 128 // grad.dtype.element_ty.primitive_bitwidth
    f = tl.load(factor).to(tl.float32)
    if f == 1:
        return
    grad += tl.program_id(0).to(tl.int64) * stride
    head, body = _split(grad, num_classes, VEC)
    edge_column, edge_mask = _edges(head, body, num_classes, VEC)
    edge = tl.load(grad + edge_column, mask=edge_mask).to(tl.float32) * f
    tl.store(grad + edge_column, edge.to(grad.dtype.element_ty), mask=edge_mask)
    aligned = tl.multiple_of(grad + head, 16)
    for start in range(0, body, LANES * THREAD_ELEMENTS):
        offset, mask = _tile(start, body, VEC, LANES)
        g = tl.load(aligned + offset, mask=mask).to(tl.float32) * f
        tl.store(aligned + offset, g.to(grad.dtype.element_ty), mask=mask)


@triton.jit(
    do_not_specialize=["num_rows", "num_domains", "ignore_index"],
    do_not_specialize_on_alignment=["loss", "correct", "target", "domain_ids", "loss_sum", "counts"],
)
def stats_kernel(
    loss, correct, target, domain_ids, loss_sum, counts,
    num_rows: tl.int64, num_domains: tl.int32, ignore_index: tl.int64, HAS_DOMAINS: tl.constexpr,
):  # fmt: skip
    """Sums by domain over STATS_ROWS rows, in the order of the rows: no atomics, so the same bits every time."""
    chunk = tl.program_id(0).to(tl.int64)
    domain = tl.program_id(1) * STATS_TILE + tl.arange(0, STATS_TILE)
    loss_acc = tl.zeros((STATS_TILE, STATS_TILE), tl.float64)
    token_acc = tl.zeros((STATS_TILE, STATS_TILE), tl.int32)
    correct_acc = tl.zeros((STATS_TILE, STATS_TILE), tl.int32)
    for start in range(0, STATS_ROWS, STATS_TILE):
        n = chunk * STATS_ROWS + start + tl.arange(0, STATS_TILE)
        inside = n < num_rows
        valid = inside & (tl.load(target + n, mask=inside, other=0) != ignore_index)
        of_row = tl.load(domain_ids + n, mask=inside, other=-1) if HAS_DOMAINS else tl.zeros_like(n)
        member = valid[:, None] & (of_row[:, None] == domain[None, :])
        row_loss = tl.load(loss + n, mask=inside, other=0.0).to(tl.float64)
        row_correct = tl.load(correct + n, mask=inside, other=0).to(tl.int32)
        loss_acc += tl.where(member, row_loss[:, None], 0.0)
        token_acc += member.to(tl.int32)
        correct_acc += tl.where(member, row_correct[:, None], 0)
    at = chunk * num_domains + domain
    mask = domain < num_domains
    plane = tl.num_programs(0).to(tl.int64) * num_domains
    tl.store(loss_sum + at, tl.sum(loss_acc, 0), mask=mask)
    tl.store(counts + at, tl.sum(token_acc, 0).to(tl.int64), mask=mask)
    tl.store(counts + plane + at, tl.sum(correct_acc, 0).to(tl.int64), mask=mask)
