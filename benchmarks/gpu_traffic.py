"""The model of what the cross-entropy kernels move between the chip and its memory, per logit.

    python benchmarks/gpu_traffic.py [--device H100]     # the table of docs/gpu.md

Forward and backward of a loss with a kept gradient move at the least 2 elements per logit: one is read, one written.

* Rows that registers keep move just these.
* A longer row is read twice, and written once. Let R be its bytes, P the rows under way, and C what L2 holds of use.
  The kernels load the first time with "evict_last" and the second with "evict_first". If the cache does as it is asked,
  the share min(1, C / (R P)) of the second reading comes from it, and 3 less that share are moved.
* If it does not, but drops what was used least recently ("LRU"), then between two readings of the element at a share u
  from the end of a row, 2 u R bytes of it are read and u R written, and as much of each other row: 3 u R P in all. So
  the share is min(1, C / (3 R P)).

Assumptions: C is half of L2, as an SM's half may keep a copy of what belongs to the other; rows under way are at stages
that are spread evenly; nothing else uses the cache. Nothing of this was measured.
"""

from __future__ import annotations

import argparse
from typing import NamedTuple

from pycooldown.losses.backends.triton import READ_TWICE, choose_variant, rows_under_way


class Device(NamedTuple):
    """What the model needs to know of a GPU."""

    num_processors: int
    l2_bytes: int
    capability: tuple[int, int]


# NVIDIA's data sheets: SXM versions.
DEVICES = {
    "A100": Device(108, 40 << 20, (8, 0)),
    "H100": Device(132, 50 << 20, (9, 0)),
    "H200": Device(132, 50 << 20, (9, 0)),
    "B200": Device(148, 126 << 20, (10, 0)),
}
L2_OF_USE = 0.5
CLASSES = (32_768, 50_257, 65_536, 98_304, 128_256, 151_936, 262_144)


def accesses(num_classes: int, itemsize: int, device: Device, *, num_rows: int = 4096, lru: bool = False) -> float:
    """Return the modelled number of elements that are moved per logit, forward and backward.

    Args:
        num_classes: V.
        itemsize: Bytes of a logit.
        device: Where.
        num_rows: N.
        lru: Whether the cache drops what was used least recently, whatever it is asked for.
    """
    row_bytes = num_classes * itemsize
    if choose_variant(row_bytes, capability=device.capability) != READ_TWICE:
        return 2.0
    limit = rows_under_way(row_bytes, num_processors=device.num_processors, l2_bytes=device.l2_bytes)
    between = row_bytes * min(num_rows, limit) * (3 if lru else 1)
    return 3 - min(1.0, L2_OF_USE * device.l2_bytes / between)


def table(names: list[str]) -> str:
    """Return the model as a table in Markdown."""
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
