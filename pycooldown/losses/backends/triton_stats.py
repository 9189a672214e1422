# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator"
"""The Triton kernel of the sums by domain, which `triton` launches."""

from __future__ import annotations

import triton
import triton.language as tl

STATS_ROWS = tl.constexpr(1024)  # rows per program
STATS_TILE = tl.constexpr(32)  # rows and domains that it looks at together


@triton.jit(
    do_not_specialize=["num_rows", "num_domains", "ignore_index"],
    do_not_specialize_on_alignment=["loss", "correct", "target", "domain_ids", "loss_sum", "counts"],
)
def stats_kernel(
    loss, correct, target, domain_ids, loss_sum, counts,
    num_rows: tl.int64, num_domains: tl.int32, ignore_index: tl.int64, HAS_DOMAINS: tl.constexpr,
):  # fmt: skip
    """Sum by domain over STATS_ROWS rows, in the order of the rows: without atomics, so always with the same bits."""
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
