"""Compile every variant of the Triton kernels for GPUs that are not present, and check the machine code's budget.

    python benchmarks/triton_aot.py [--all | --targets 80 90 100] [--kernels rows scale] [--jobs N] [--write]

Needs triton, which brings its assembler and disassembler, and no GPU. Compiles for one target unless more are asked
for, prints the worst figures of each group of variants, and exits with 1 if any variant

* needs more than 64 registers per thread, or leaves room for fewer than 32 warps on a multiprocessor;
* spills other than what KNOWN_SPILLS lists, or in a loop over tiles;
* takes 4 KiB of shared memory, the size of the smallest tile: tiles belong in registers;
* moves the body of a row other than in 128-bit loads and stores. Rows are split by their own address at run time, so
  that one variant serves every V, 50,257 too. Only scalars and the edges of a row, counted here, may move in narrow
  accesses, and the loads of logits whose rows are aligned otherwise than those of the gradient ("unlike");
* loads a tile of a row that registers keep more than once, or stores its gradient more than once;
* waits for a tile before it has asked for all those that it loads together, or all but the last;
* shuffles values between threads in a loop over tiles, or between such loads: a tile's layout is then not that of its
  loads;
* has other figures than `results/triton_aot.csv`, where that has figures of this version of triton.

--write puts the figures into that table in place of older ones. No speed is measured: that takes a GPU and
benchmarks/gpu_suite.py.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import os
import sys
import time
from collections import defaultdict
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

try:
    import triton
except ImportError as error:
    sys.exit(f"triton_aot: {error}. The check needs triton (Linux): pip install 'pycooldown[all]'")

sys.path.append(str(Path(__file__).parent))  # PYTHONSAFEPATH may keep a script from what lies beside it

from triton_sass import BINARIES, MULTIPROCESSOR, Figures, measure
from triton_variants import POINTERS, Variant, variants

from pycooldown.losses.backends import triton as launches

MAX_REGISTERS = launches.MAX_REGISTERS
MIN_WARPS = 32
MAX_SHARED = 4096
TABLE = Path(__file__).parent / "results/triton_aot.csv"
# Bytes that a thread spills once a row, outside of loops over tiles: 64 registers are too few. The assembler of 3.7.1
# needs them where that of 3.6.0 does without. One load at a time instead of two, at 128 lanes, makes float32 spill.
KNOWN_SPILLS = {
    ("3.7.1", "sm_100", "rows", dtype, f"{options} GRAD=1 SAME_ALIGNMENT=1 {shape}"): 8
    for dtype, options, shape in (
        ("bf16", "SMOOTHING=0 SOFTCAP=0", "LANES=512 TILES=4 FLIGHT=1"),
        ("fp16", "SMOOTHING=1 SOFTCAP=1", "LANES=128 TILES=0 FLIGHT=2"),
        ("fp16", "SMOOTHING=1 SOFTCAP=1", "LANES=1024 TILES=0 FLIGHT=2"),
    )
}


def violations(variant: Variant, target: int, figures: Figures) -> list[str]:
    """Return the limits that a variant violates."""
    found = []
    spills = KNOWN_SPILLS.get(variant.row(target), 0)
    if figures.registers > MAX_REGISTERS:
        found.append(f"{figures.registers} registers > {MAX_REGISTERS}")
    if figures.spills != spills:
        found.append(f"{figures.spills} bytes of spills, not {spills}")
    if figures.loop_spills:
        found.append(f"{figures.loop_spills} accesses to spilled registers between tiles")
    if figures.shared >= MAX_SHARED:
        found.append(f"{figures.shared} bytes of shared memory, not less than {MAX_SHARED}")
    if figures.warps < MIN_WARPS:
        found.append(f"{figures.warps} warps < {MIN_WARPS}")
    if figures.together < variant.together - 1:  # some assemblers delay the last one
        found.append(f"{figures.together} wide loads together, not {variant.together}")
    if figures.loop_shuffles:
        found.append(f"{figures.loop_shuffles} shuffles between tiles")
    tiles = dict(variant.constants).get("TILES")
    if tiles and figures.wide_loads != tiles:
        found.append(f"{figures.wide_loads} wide loads of {tiles} tiles that are kept")
    if tiles and figures.wide_stores != variant.stores_kept:
        found.append(f"{figures.wide_stores} wide stores of {tiles} tiles that are kept, not {variant.stores_kept}")
    for name in ("loads", "stores"):
        allowed = getattr(variant, f"narrow_{name}")
        narrow, wide = getattr(figures, f"narrow_{name}"), getattr(figures, f"wide_{name}")
        if allowed is not None and (narrow > allowed or not wide):
            found.append(f"{wide} wide and {narrow} narrow {name}, of which {allowed} may be")
    return found


def read_table() -> dict[tuple[str, ...], tuple[str, ...]]:
    """Return figures by triton version, target, kernel, dtype and constants."""
    if not TABLE.exists():
        return {}
    with TABLE.open(newline="") as file:
        return {tuple(row[:5]): tuple(row[5:]) for row in itertools.islice(csv.reader(file), 1, None)}


def write_table(figures: dict[tuple[str, ...], tuple[str, ...]]) -> None:
    """Write figures into the table, replacing all others of the same triton version and target."""
    renewed = {key[:2] for key in figures}
    rows = {key: row for key, row in read_table().items() if key[:2] not in renewed} | figures
    with TABLE.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("triton", "target", "kernel", "dtype", "constants", *Figures._fields))
        writer.writerows(key + rows[key] for key in sorted(rows))


def print_groups(results: list[tuple[tuple[Variant, int], Figures]]) -> None:
    """Print the worst figures of each group of variants."""
    groups = defaultdict(list)
    for (variant, target), figures in results:
        groups[variant.group, variant.dtype, target].append(figures)
    print(f"triton {triton.__version__}; the worst of each group; wide: 128-bit accesses of a row's body")
    print(f"{'':24}{'':12}variants registers spills shared warps/SM  wide loads stores  narrow loads stores  together")
    for (group, dtype, target), group_figures in sorted(groups.items()):
        columns = list(zip(*group_figures))
        registers, spills, shared, narrow_loads, narrow_stores = (max(columns[i]) for i in (0, 1, 2, 6, 7))
        warps, wide_loads, wide_stores, together = (min(columns[i]) for i in (3, 4, 5, 8))
        print(
            f"{group:24}{dtype} sm_{target:<4}{len(group_figures):8}{registers:10}{spills:7}{shared:7}{warps:9}"
            f"{wide_loads:12}{wide_stores:7}{narrow_loads:14}{narrow_stores:7}{together:10}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--targets", type=int, nargs="+", choices=MULTIPROCESSOR, default=[90])
    parser.add_argument("--all", action="store_true", help="every target")
    parser.add_argument("--kernels", nargs="+", choices=POINTERS, default=list(POINTERS))
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--write", action="store_true", help=f"renew {TABLE.name}")
    options = parser.parse_args()
    if launches.INTERPRETED:
        sys.exit("triton_aot: TRITON_INTERPRET is set, and the interpreter compiles nothing; unset it")
    if options.write and set(options.kernels) != set(POINTERS):
        parser.error("--write renews the figures of all kernels; leave out --kernels")
    missing = [tool for tool in ("cuobjdump", "nvdisasm") if not (BINARIES / tool).exists()]
    if missing:
        sys.exit(f"triton_aot: triton {triton.__version__} does not bring {missing} in {BINARIES}; use one that does")

    began = time.monotonic()
    targets = MULTIPROCESSOR if options.all else options.targets
    jobs = [
        (variant, target) for target in targets for variant in variants(target) if variant.kernel in options.kernels
    ]
    with ProcessPoolExecutor(options.jobs, mp_context=get_context("spawn")) as pool:
        results = list(zip(jobs, pool.map(measure, *zip(*jobs), chunksize=4)))
    print_groups(results)

    figures_of = {variant.row(target): tuple(map(str, figures)) for (variant, target), figures in results}
    if options.write:
        write_table(figures_of)
    table = read_table()
    known = any(key[0] == triton.__version__ for key in table)
    if not known:
        print(f"{TABLE.name} has no figures of triton {triton.__version__}: nothing to compare with")
    failed = 0
    for (variant, target), figures in results:
        found = violations(variant, target, figures)
        expected = table.get(variant.row(target))
        if known and expected != tuple(map(str, figures)):
            found.append(
                f"{tuple(figures)}, but {TABLE.name} has {expected}; update it with --write if the change is intended"
            )
        for violation in found:
            failed += 1
            print(f"FAILED {variant.kernel} {variant.dtype} sm_{target} {dict(variant.constants)}: {violation}")
    print(f"{len(jobs)} compilations in {time.monotonic() - began:.0f} s, {failed} violations")
    sys.exit(failed > 0)


if __name__ == "__main__":
    main()
