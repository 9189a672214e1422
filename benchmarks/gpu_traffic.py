"""A model of the memory traffic of the cross-entropy kernels on a GPU, per logit.

    python benchmarks/gpu_traffic.py [--device H100]     # the table of docs/gpu.md

Forward and backward of a loss with a kept gradient move at least 2 elements per logit: one read and one write.

* Rows that fit in registers move exactly these.
* A longer row is read twice, and written once. Let R be its bytes, P the rows in progress, and C the useful bytes in
  L2. The kernels load the first time with "evict_last" and the second with "evict_first". If the cache follows these
  hints, it provides the share min(1, C / (R P)) of the second read, and 3 minus that share elements are moved.
* If it instead drops the least recently used data ("LRU"): between two reads of the element at a share u from the end
  of a row, 2 u R bytes of the row are read and u R written, and as much of each other row, 3 u R P in total. So the
  share is min(1, C / (3 R P)).

Assumptions: C is half of L2, because an SM's half may hold copies of data of the other half. Rows in progress are at
evenly spread stages. Nothing else uses the cache. None of this was measured.
"""

from __future__ import annotations

import argparse
from typing import NamedTuple

from pycooldown.losses.backends.triton import READ_TWICE, choose_variant, rows_under_way


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
        return 2.0
    limit = rows_under_way(row_bytes, num_processors=device.num_processors, l2_bytes=device.l2_bytes)
    between = row_bytes * min(num_rows, limit) * (3 if lru else 1)
    return 3 - min(1.0, L2_OF_USE * device.l2_bytes / between)


def table(names: list[str]) -> str:
    """Return the model's results as a Markdown table."""
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
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=DEVICES, nargs="+", default=["H100", "B200"])
    print(table(parser.parse_args().device))


if __name__ == "__main__":
    main()
