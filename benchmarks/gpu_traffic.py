"""A model of the memory traffic of the cross-entropy kernels on a GPU.

    python benchmarks/gpu_traffic.py [--device H100]     # the tables of docs/gpu.md

`MOVES` states what each kernel loads and stores, byte by byte; tests/test_gpu_traffic.py counts in Triton's interpreter
that the kernels do exactly that. `accesses` states how much of it reaches the memory. Forward and backward of a loss
with a kept gradient move at least 2 elements per logit: one read and one write.

* Rows that fit in registers move exactly these.
* A longer row is read twice, and written once. Let R be its bytes, P the rows in progress, and C the useful bytes in
  L2. The kernels load the first time with "evict_last" and the second with "evict_first". If the cache follows these
  hints, it provides the share min(1, C / (R P)) of the second read, and 3 minus that share elements are moved.
* If it instead drops the least recently used data ("LRU"): between two reads of the element at a share u from the end
  of a row, 2 u R bytes of the row are read and u R written, and as much of each other row, 3 u R P in total. So the
  share is min(1, C / (3 R P)).

Assumptions of `accesses`: C is half of L2, because an SM's half may hold copies of data of the other half. Rows in
progress are at evenly spread stages. Nothing else uses the cache. None of this was measured.
"""

from __future__ import annotations

import argparse
from typing import NamedTuple

from pycooldown.losses.backends.triton import READ_TWICE, choose_variant, rows_under_way
from pycooldown.losses.backends.triton_stats import STATS_ROWS, STATS_TILE


class Moves(NamedTuple):
    """What a kernel loads and stores for a row of a kind.

    Attributes:
        rows: The kernel and the kind of row, as the page names them.
        reads: How often it loads each logit; after the first time, all but the edges of a row.
        writes: How often it stores each element of the gradient.
        target_reads: How often it loads the logit of the target besides.
        other_read: Bytes that it loads of other tensors.
        other_written: Bytes that it stores to other tensors.
    """

    rows: str
    reads: int
    writes: int
    target_reads: int
    other_read: int
    other_written: int

    def read(self, num_classes: int, itemsize: int, *, num_edges: int = 0) -> int:
        """Return the bytes that are loaded for a row.

        Args:
            num_classes: V.
            itemsize: Bytes of a logit.
            num_edges: Classes before the first and after the last multiple of 16 bytes.
        """
        logits = self.reads * num_classes - max(self.reads - 1, 0) * num_edges + self.target_reads
        return logits * itemsize + self.other_read

    def written(self, num_classes: int, itemsize: int) -> int:
        """Return the bytes that are stored for a row of V classes."""
        return self.writes * num_classes * itemsize + self.other_written


# rows_kernel reads the target (8 bytes) and the weight (4) of a row, and writes its loss (4), log-sum-exp (4) and
# whether it is correct (1). slice_kernel reads target, weight and log-sum-exp (4), and with smoothing the number of
# classes (8). scale_kernel reads the factor (4).
MOVES = {
    "kept": Moves("`rows_kernel`, registers keep the row", 1, 1, 1, 12, 9),
    "twice": Moves("`rows_kernel`, the row is read twice", 2, 1, 1, 12, 9),
    "loss": Moves("`rows_kernel` without a gradient", 1, 0, 1, 12, 9),
    "unweighted": Moves("`rows_kernel`, weight 0, sums by domain wanted", 1, 1, 1, 12, 9),
    "ignored": Moves("`rows_kernel`, the row is ignored, or of weight 0 without sums", 0, 1, 0, 12, 9),
    "ignored loss": Moves("the same without a gradient", 0, 0, 0, 12, 9),
    "slice": Moves("`slice_kernel`", 1, 1, 0, 16, 0),
    "smoothed slice": Moves("`slice_kernel` with label smoothing", 1, 1, 0, 24, 0),
    "ignored slice": Moves("`slice_kernel`, the row is ignored or of weight 0", 0, 1, 0, 12, 0),
    "scaled": Moves("`scale_kernel`", 1, 1, 0, 4, 0),
    "factor 1": Moves("`scale_kernel`, the factor is 1", 0, 0, 0, 4, 0),
}
# stats_kernel reads loss (4), target (8), whether correct (1) and domain (8) of each row, for every STATS_TILE domains.
# Of each domain it writes the sum of losses and two counts (8 each), for every STATS_ROWS rows.
STATS_READ, STATS_READ_DOMAIN, STATS_WRITTEN = 13, 8, 24


def stats_traffic(num_rows: int, num_domains: int, *, has_domains: bool) -> tuple[int, int]:
    """Return the bytes that stats_kernel reads and writes.

    Args:
        num_rows: N.
        num_domains: K.
        has_domains: Whether the rows have domain ids.
    """
    of_row = STATS_READ + (STATS_READ_DOMAIN if has_domains else 0)
    tiles, chunks = -(-num_domains // STATS_TILE.value), -(-num_rows // STATS_ROWS.value)
    return of_row * num_rows * tiles, STATS_WRITTEN * num_domains * chunks


class Device(NamedTuple):
    """The properties of a GPU that the model needs."""

    num_processors: int
    l2_bytes: int
    capability: tuple[int, int]


# From NVIDIA's data sheets of the SXM versions.
DEVICES = {
    "A100": Device(108, 40 << 20, (8, 0)),
    "H100": Device(132, 50 << 20, (9, 0)),
    "H200": Device(132, 50 << 20, (9, 0)),
    "B200": Device(148, 126 << 20, (10, 0)),
}
L2_OF_USE = 0.5
CLASSES = (32_768, 50_257, 65_536, 98_304, 128_256, 151_936, 262_144)


def accesses(num_classes: int, itemsize: int, device: Device, *, num_rows: int = 4096, lru: bool = False) -> float:
    """Return the modelled number of elements moved per logit, forward and backward.

    Args:
        num_classes: V.
        itemsize: Bytes of a logit.
        device: The GPU.
        num_rows: N.
        lru: Whether the cache drops the least recently used data and ignores hints.
    """
    row_bytes = num_classes * itemsize
    if choose_variant(row_bytes, capability=device.capability) != READ_TWICE:
        return float(MOVES["kept"].reads + MOVES["kept"].writes)
    limit = rows_under_way(row_bytes, num_processors=device.num_processors, l2_bytes=device.l2_bytes)
    between = row_bytes * min(num_rows, limit) * (3 if lru else 1)
    return MOVES["twice"].reads + MOVES["twice"].writes - min(1.0, L2_OF_USE * device.l2_bytes / between)


def table_of_moves() -> str:
    """Return what each kernel moves, as a table in Markdown."""
    lines = [
        "| kernel, and kind of row | each logit read | each gradient written | bytes read besides | bytes written |"
    ]
    lines.append("|---|---:|---:|---:|---:|")
    for moves in MOVES.values():
        reads = f"{moves.other_read}, and 1 logit" if moves.target_reads else str(moves.other_read)
        lines.append(f"| {moves.rows} | {moves.reads} | {moves.writes} | {reads} | {moves.other_written} |")
    lines.append(
        f"| `stats_kernel`, for every {STATS_TILE.value} domains | 0 | 0 | {STATS_READ}, and {STATS_READ_DOMAIN} with "
        f"domains | {STATS_WRITTEN} for each domain and {STATS_ROWS.value:,} rows |"
    )
    return "\n".join(lines)


def table(names: list[str]) -> str:
    """Return the accesses to memory as a Markdown table."""
    columns = [(name, label, size) for name in names for label, size in (("bf16", 2), ("fp32", 4))]
    lines = ["| V | " + " | ".join(f"{name} {label}" for name, label, _ in columns) + " |"]
    lines.append("|---:|" + "---:|" * len(columns))
    for num_classes in CLASSES:
        cells = []
        for name, _, size in columns:
            hinted, lru = (accesses(num_classes, size, DEVICES[name], lru=lru) for lru in (False, True))
            cells.append(f"{hinted:.2f}" if hinted == lru else f"{hinted:.2f} (LRU {lru:.2f})")
        lines.append(f"| {num_classes:,} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=DEVICES, nargs="+", default=["H100", "B200"])
    names = parser.parse_args().device
    print(table_of_moves(), table(names), sep="\n\n")


if __name__ == "__main__":
    main()
