# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator,assignment"
"""Rows in Triton: where their edges and tiles are, and how values are read from them and written to them.

A row need not start on a 16-byte boundary (with V = 50,257 and 2 bytes each, seven rows of eight do not). Each is
split by its own address into an aligned body and two edges, a head and a tail of less than 16 bytes. So
the body moves in 128-bit accesses at any V. The edges stay in registers between the passes: when the gradient
overwrites the logits, one warp may have written them while another still has to read.

The body is read as 32-bit words, of one float32 or two halves, in tiles of (LANES, 4): a thread has the four words of
one lane. Tiles of two dimensions keep this layout in every version of Triton, and a kept row of halves needs half the
registers that its float32 values would.

Only `tl` is used, no inline assembly and no libdevice.
"""

from __future__ import annotations

import triton
import triton.language as tl

if triton.knobs.runtime.interpret:

    def bound(n):
        """Return the bound of a loop. `range` needs an integer, which Triton 3.6 makes in a way NumPy 2.4 refuses."""
        return n.handle.data.item()

else:

    @triton.jit
    def bound(n):
        """Return the bound of a loop."""
        return n


@triton.jit
def _tanh(z):
    """Return tanh(z). (1 - e) / (1 + e) cancels near 0; a Taylor series there is exact up to rounding."""
    e = tl.exp(-2 * tl.abs(z))
    far = (1 - e) / (1 + e)
    y = z * z
    near = z * (1 + y * (-1 / 3 + y * (2 / 15 + y * (-17 / 315 + y * (62 / 2835)))))
    return tl.where(tl.abs(z) < 0.25, near, tl.where(z < 0, -far, far))


@triton.jit
def capped(x, mask, softcap, SOFTCAP: tl.constexpr):
    """Return soft-capped logits; -inf where masked."""
    if SOFTCAP:
        x = tl.where(mask, softcap * _tanh(x / softcap), float("-inf"))
    return x


@triton.jit
def load_values(pointers, mask, softcap, SOFTCAP: tl.constexpr):
    """Return logits in float32, loaded one by one."""
    x = tl.load(pointers, mask=mask, other=float("-inf")).to(tl.float32)
    return capped(x, mask, softcap, SOFTCAP)


@triton.jit
def finite(m):
    """Return the maximum to subtract: 0 if it is infinite, so that no inf - inf hides the values of the row."""
    return tl.where(tl.abs(m) == float("inf"), 0.0, m)


@triton.jit
def split_row(row, num_classes, VEC: tl.constexpr):
    """Return the lengths of a row's head and aligned body, in classes."""
    head = (((16 - (row.to(tl.int64) & 15)) & 15) * VEC // 16).to(tl.int32)
    head = tl.minimum(head, num_classes)
    return head, (num_classes - head) // VEC * VEC


@triton.jit
def edges(head, body, num_classes, VEC: tl.constexpr):
    """Return the columns of the head, then of the tail, and which of the 2 VEC slots are used."""
    slot = tl.arange(0, 2 * VEC)
    column = tl.where(slot < VEC, slot, head + body + slot - VEC)
    return column, tl.where(slot < VEC, slot < head, column < num_classes)


@triton.jit
def tile_of(i, words, LANES: tl.constexpr):
    """Return the offsets of tile i of a body of this many words, (LANES, 4), and their mask, (LANES, 1)."""
    first = (i * LANES + tl.arange(0, LANES)) * 4
    return first[:, None] + tl.arange(0, 4)[None, :], (first < words)[:, None]


@triton.jit
def join(parts, DTYPE: tl.constexpr):
    """Return words of float32 values, given as one tensor, or as two for the two halves of a word."""
    if DTYPE == tl.float32:
        words = parts[0].to(tl.int32, bitcast=True)
    else:
        low = parts[0].to(DTYPE).to(tl.int16, bitcast=True).to(tl.int32)
        high = parts[1].to(DTYPE).to(tl.int16, bitcast=True).to(tl.int32)
        words = (low & 0xFFFF) | (high << 16)
    return words


@triton.jit
def part_of(words, k: tl.constexpr, DTYPE: tl.constexpr):
    """Return the values of words in float32: all of them, or half number k of each word."""
    if DTYPE == tl.float32:
        x = words.to(tl.float32, bitcast=True)
    elif DTYPE == tl.bfloat16:
        x = (words << 16 if k == 0 else words & -65536).to(tl.float32, bitcast=True)
    else:
        x = (words & 0xFFFF if k == 0 else words >> 16).to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32)
    return x


@triton.jit
def load_tile(body, offset, mask, SAME_ALIGNMENT: tl.constexpr, POLICY: tl.constexpr):
    """Return words of the body of a row of logits; -inf where masked."""
    DTYPE: tl.constexpr = body.dtype.element_ty
    PARTS: tl.constexpr = 32 // DTYPE.primitive_bitwidth
    if SAME_ALIGNMENT:
        INFINITY: tl.constexpr = -8388608 if PARTS == 1 else -8323200 if DTYPE == tl.bfloat16 else -67044352
        pointer = tl.multiple_of(body.to(tl.pointer_type(tl.int32)), 16)
        words = tl.load(pointer + offset, mask=mask, other=INFINITY, eviction_policy=POLICY)
    else:
        parts = ()
        for k in tl.static_range(PARTS):
            x = tl.load(body + offset * PARTS + k, mask=mask, other=float("-inf"), eviction_policy=POLICY)
            parts = parts + (x.to(tl.float32),)
        words = join(parts, DTYPE)
    return words


@triton.jit
def load_tiles(
    body, first, words, COUNT: tl.constexpr, SAME_ALIGNMENT: tl.constexpr, POLICY: tl.constexpr, LANES: tl.constexpr
):
    """Return COUNT tiles from number `first` on."""
    tiles = ()
    for i in tl.static_range(COUNT):
        offset, mask = tile_of(first + i, words, LANES)
        tiles = tiles + (load_tile(body, offset, mask, SAME_ALIGNMENT, POLICY),)
    return tiles


@triton.jit
def nothing_of(tiles, zero, COUNT: tl.constexpr):
    """Return zeros that depend on all tiles, (LANES, 1), to be mixed into each tile by `^`.

    With much arithmetic, the assembler would place that of one tile before the load of the next. Then that load would
    wait for memory once more.
    """
    every = tiles[0]
    for i in tl.static_range(1, COUNT):
        every |= tiles[i]
    return tl.max(every, 1, keep_dims=True) & zero


@triton.jit
def fill_zero(row, num_classes, VEC: tl.constexpr, LANES: tl.constexpr):
    """Write zeros over a row."""
    head, body = split_row(row, num_classes, VEC)
    edge_column, edge_mask = edges(head, body, num_classes, VEC)
    tl.store(row + edge_column, tl.zeros_like(edge_column).to(row.dtype.element_ty), mask=edge_mask)
    pointer = tl.multiple_of((row + head).to(tl.pointer_type(tl.int32)), 16)
    words = body // (VEC // 4)
    for i in range(bound(tl.cdiv(words, LANES * 4))):
        offset, mask = tile_of(i, words, LANES)
        tl.store(pointer + offset, tl.zeros_like(offset), mask=mask)
