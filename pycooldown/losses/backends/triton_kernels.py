# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator,assignment"
"""The Triton kernels of rows, which `triton` launches.

A program takes a row at a time. Where the row fits, its registers keep what was read (TILES > 0), so that every logit
is read once and its gradient written once. A longer row is read twice (TILES == 0): the first pass keeps a running
maximum and sum of exponentials in every lane (online softmax, Milakov and Gimelshein, arXiv 1805.02867); the second
goes from the end of the row to its start, as what was read last is still in cache, and writes the gradient.

No integer is specialized and no pointer assumed aligned, so a variant depends on the dtype, the flags, LANES, TILES and
FLIGHT alone; benchmarks/triton_aot.py compiles each of them. See `triton_tiles` for how rows are read and written.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .triton_tiles import (
    bound,
    capped,
    edges,
    fill_zero,
    finite,
    join,
    load_tile,
    load_tiles,
    load_values,
    nothing_of,
    part_of,
    split_row,
    tile_of,
)

LOG2_E = tl.constexpr(1.4426950408889634)


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
def _store_gradient(
    words, pointer, offset, mask, head, target, m, factor, at_target, everywhere, softcap,
    SMOOTHING: tl.constexpr, SOFTCAP: tl.constexpr, DTYPE: tl.constexpr,
):  # fmt: skip
    """Write the gradient of one tile."""
    parts = ()
    PARTS: tl.constexpr = 32 // DTYPE.primitive_bitwidth
    for k in tl.static_range(PARTS):
        x = capped(part_of(words, k, DTYPE), mask, softcap, SOFTCAP)
        column = head + offset * PARTS + k
        g = _gradient(x, column, target, m, factor, at_target, everywhere, softcap, SMOOTHING, SOFTCAP)
        parts = parts + (g,)
    tl.store(pointer + offset, join(parts, DTYPE), mask=mask)


@triton.jit
def _write_gradient(
    kept, zero, logits, grad, head, words, edge, edge_column, edge_mask, target, m, factor, at_target, everywhere,
    softcap, SMOOTHING: tl.constexpr, SOFTCAP: tl.constexpr, SAME_ALIGNMENT: tl.constexpr, LANES: tl.constexpr,
    TILES: tl.constexpr,
):  # fmt: skip
    """Write the gradient of kept tiles, or from the row's end to its start. Pointers are at the row's first class."""
    DTYPE: tl.constexpr = grad.dtype.element_ty
    edge = _gradient(edge, edge_column, target, m, factor, at_target, everywhere, softcap, SMOOTHING, SOFTCAP)
    tl.store(grad + edge_column, edge.to(DTYPE), mask=edge_mask)
    pointer = tl.multiple_of((grad + head).to(tl.pointer_type(tl.int32)), 16)
    if TILES:
        for i in tl.static_range(TILES):
            offset, mask = tile_of(i, words, LANES)
            _store_gradient(
                kept[i] ^ zero, pointer, offset, mask, head, target, m, factor, at_target, everywhere, softcap,
                SMOOTHING, SOFTCAP, DTYPE,
            )  # fmt: skip
    else:
        tiles = tl.cdiv(words, LANES * 4)
        for i in range(bound(tiles)):
            offset, mask = tile_of(tiles - 1 - i, words, LANES)
            tile = load_tile(logits + head, offset, mask, SAME_ALIGNMENT, "evict_first")
            _store_gradient(
                tile, pointer, offset, mask, head, target, m, factor, at_target, everywhere, softcap,
                SMOOTHING, SOFTCAP, DTYPE,
            )  # fmt: skip


@triton.jit(
    do_not_specialize=["logits_stride", "grad_stride", "num_rows", "num_classes", "ignore_index", "want_stats", "zero"],
    do_not_specialize_on_alignment=["logits", "target", "scale", "loss", "lse", "correct", "grad"],
)
def rows_kernel(
    logits, target, scale, loss, lse, correct, grad,
    logits_stride: tl.int64, grad_stride: tl.int64, num_rows: tl.int32, num_classes: tl.int32, ignore_index: tl.int64,
    want_stats: tl.int32, zero: tl.int32, label_smoothing: tl.float32, z_loss: tl.float32, softcap: tl.float32,
    SMOOTHING: tl.constexpr, SOFTCAP: tl.constexpr, GRAD: tl.constexpr, SAME_ALIGNMENT: tl.constexpr,
    LANES: tl.constexpr, TILES: tl.constexpr, FLIGHT: tl.constexpr,
):  # fmt: skip
    """Compute losses and gradients of rows, see `contract.Backend.rows`; each program processes one row at a time.

    TILES are kept in registers, and hold the body of any row; if 0, FLIGHT tiles are loaded at a time. `zero` is 0, but
    the compiler does not know: it would keep the float32 values of kept halves, and run out of registers.
    """
    DTYPE: tl.constexpr = logits.dtype.element_ty
    VEC: tl.constexpr = 128 // DTYPE.primitive_bitwidth
    PARTS: tl.constexpr = VEC // 4
    OPTIONS: tl.constexpr = SMOOTHING or SOFTCAP
    POLICY: tl.constexpr = "evict_last" if GRAD and not TILES else "evict_first"
    for n in range(bound(tl.program_id(0)), bound(num_rows), bound(tl.num_programs(0))):
        row = logits + n * logits_stride
        grad_row = grad + n * grad_stride
        t = tl.load(target + n)
        weight = tl.load(scale + n)
        if (t == ignore_index) | ((weight == 0) & (want_stats == 0)):
            tl.store(loss + n, 0.0)
            tl.store(lse + n, 0.0)
            tl.store(correct + n, 0)
            if GRAD:
                fill_zero(grad_row, num_classes, VEC, LANES)
        else:
            in_range = (t >= 0) & (t < num_classes)
            x_target = load_values(row + t, in_range, softcap, SOFTCAP)
            # Aligned is what is written; logits whose rows are aligned otherwise are read element by element.
            if GRAD:
                head, body = split_row(grad_row, num_classes, VEC)
            else:
                head, body = split_row(row, num_classes, VEC)
            words = body // PARTS
            edge_column, edge_mask = edges(head, body, num_classes, VEC)
            edge = load_values(row + edge_column, edge_mask, softcap, SOFTCAP)

            lane_max = tl.full((LANES,), float("-inf"), tl.float32)
            lane_sum = tl.zeros((LANES,), tl.float32)
            lane_total = tl.zeros((LANES,), tl.float32)
            kept = ()
            if TILES:
                kept = load_tiles(row + head, 0, words, TILES, SAME_ALIGNMENT, POLICY, LANES)
                nothing = nothing_of(kept, zero, TILES) if OPTIONS else zero
                for i in tl.static_range(TILES):
                    _, mask = tile_of(i, words, LANES)
                    for k in tl.static_range(PARTS):
                        x = part_of(kept[i] ^ nothing if OPTIONS else kept[i], k, DTYPE)
                        x = capped(x, mask, softcap, SOFTCAP)
                        lane_max = tl.maximum(lane_max, tl.max(x, 1))
                        if SMOOTHING:
                            lane_total += tl.sum(tl.where(mask, x, 0.0), 1)
                row_max = tl.maximum(tl.max(lane_max, 0), tl.max(edge, 0))
                m = finite(row_max)
                for i in tl.static_range(TILES):
                    _, mask = tile_of(i, words, LANES)
                    for k in tl.static_range(PARTS):
                        x = capped(part_of(kept[i] | zero, k, DTYPE), mask, softcap, SOFTCAP)
                        lane_sum += tl.sum(tl.exp2((x - m) * LOG2_E), 1)
            else:
                for first in range(0, bound(tl.cdiv(words, LANES * 4)), FLIGHT):
                    tiles = load_tiles(row + head, first, words, FLIGHT, SAME_ALIGNMENT, POLICY, LANES)
                    if OPTIONS and FLIGHT > 1:
                        nothing, mixed = nothing_of(tiles, zero, FLIGHT), ()
                        for i in tl.static_range(FLIGHT):
                            mixed = mixed + (tiles[i] ^ nothing,)
                        tiles = mixed
                    new_max = lane_max
                    for i in tl.static_range(FLIGHT):
                        _, mask = tile_of(first + i, words, LANES)
                        for k in tl.static_range(PARTS):
                            x = capped(part_of(tiles[i], k, DTYPE), mask, softcap, SOFTCAP)
                            new_max = tl.maximum(new_max, tl.max(x, 1))
                            if SMOOTHING:
                                lane_total += tl.sum(tl.where(mask, x, 0.0), 1)
                    lane_m = finite(new_max)
                    lane_sum *= tl.exp2((lane_max - lane_m) * LOG2_E)
                    for i in tl.static_range(FLIGHT):
                        _, mask = tile_of(first + i, words, LANES)
                        for k in tl.static_range(PARTS):
                            x = capped(part_of(tiles[i], k, DTYPE), mask, softcap, SOFTCAP)
                            lane_sum += tl.sum(tl.exp2((x - lane_m[:, None]) * LOG2_E), 1)
                    lane_max = new_max
                row_max = tl.maximum(tl.max(lane_max, 0), tl.max(edge, 0))
                m = finite(row_max)
                lane_sum *= tl.exp2((lane_max - m) * LOG2_E)

            row_sum = tl.sum(lane_sum, 0) + tl.sum(tl.exp2((edge - m) * LOG2_E), 0)
            log_sum = tl.log(row_sum)
            row_lse = m + log_sum
            # As in torch, an infinite maximum makes loss and gradient NaN; so does a target that is no class.
            poison = tl.where(in_range & (tl.abs(row_max) != float("inf")), 0.0, float("nan"))
            row_loss = log_sum - (x_target - m) + poison
            if SMOOTHING:
                row_total = tl.sum(lane_total, 0) + tl.sum(tl.where(edge_mask, edge, 0.0), 0)
                row_loss = (1 - label_smoothing) * row_loss + label_smoothing * (
                    log_sum - (row_total / num_classes - m)
                )
            tl.store(loss + n, row_loss)
            tl.store(lse + n, row_lse)
            tl.store(correct + n, (in_range & (x_target >= row_max) & (row_loss == row_loss)).to(tl.int8))

            if GRAD:
                if OPTIONS:  # computed again, so that they do not occupy registers all the time
                    row, grad_row = logits + (n + zero) * logits_stride, grad + (n + zero) * grad_stride
                if weight == 0:
                    fill_zero(grad_row, num_classes, VEC, LANES)
                else:
                    factor = weight * (1 + 2 * z_loss * row_lse) / row_sum + poison
                    everywhere = weight * label_smoothing / num_classes
                    _write_gradient(
                        kept, zero, row, grad_row, head, words, edge, edge_column, edge_mask, t.to(tl.int32), m, factor,
                        weight * (1 - label_smoothing), everywhere, softcap, SMOOTHING, SOFTCAP, SAME_ALIGNMENT, LANES,
                        TILES,
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
    """Compute the gradient of a slice of classes from the log-sum-exp of all classes, with only the second pass."""
    VEC: tl.constexpr = 128 // logits.dtype.element_ty.primitive_bitwidth
    n = tl.program_id(0).to(tl.int64)
    logits += n * logits_stride
    grad += n * grad_stride
    t = tl.load(target + n)
    weight = tl.load(scale + n)
    if (t == ignore_index) | (weight == 0):
        fill_zero(grad, num_classes, VEC, LANES)
    else:
        row_lse = tl.load(lse + n)
        everywhere = weight * label_smoothing
        if SMOOTHING:
            everywhere /= tl.load(num_whole_classes)
        head, body = split_row(grad, num_classes, VEC)
        edge_column, edge_mask = edges(head, body, num_classes, VEC)
        edge = load_values(logits + edge_column, edge_mask, softcap, SOFTCAP)
        tl.debug_barrier()  # all warps have read the edges before one overwrites them
        _write_gradient(
            (), 0, logits, grad, head, body // (VEC // 4), edge, edge_column, edge_mask, t.to(tl.int32), row_lse,
            weight * (1 + 2 * z_loss * row_lse), weight * (1 - label_smoothing), everywhere, softcap, SMOOTHING,
            SOFTCAP, SAME_ALIGNMENT, LANES, 0,
        )  # fmt: skip


@triton.jit(do_not_specialize=["stride", "num_classes"], do_not_specialize_on_alignment=["grad", "factor"])
def scale_kernel(grad, factor, stride: tl.int64, num_classes: tl.int32, LANES: tl.constexpr):
    """Multiply rows by a scalar in place."""
    DTYPE: tl.constexpr = grad.dtype.element_ty
    VEC: tl.constexpr = 128 // DTYPE.primitive_bitwidth
    f = tl.load(factor).to(tl.float32)
    if f != 1:
        grad += tl.program_id(0).to(tl.int64) * stride
        head, body = split_row(grad, num_classes, VEC)
        edge_column, edge_mask = edges(head, body, num_classes, VEC)
        edge = tl.load(grad + edge_column, mask=edge_mask).to(tl.float32) * f
        tl.debug_barrier()  # all warps have read the edges before one overwrites them
        tl.store(grad + edge_column, edge.to(DTYPE), mask=edge_mask)
        pointer = tl.multiple_of((grad + head).to(tl.pointer_type(tl.int32)), 16)
        words = body // (VEC // 4)
        for i in range(bound(tl.cdiv(words, LANES * 4))):
            offset, mask = tile_of(i, words, LANES)
            tile = tl.load(pointer + offset, mask=mask)
            parts = ()
            for k in tl.static_range(VEC // 4):
                parts = parts + (part_of(tile, k, DTYPE) * f,)
            tl.store(pointer + offset, join(parts, DTYPE), mask=mask)
