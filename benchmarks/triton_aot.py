"""Compile every variant of the Triton kernels for GPUs that are not there, and hold the machine code to its budget.

    python benchmarks/triton_aot.py [--all | --targets 80 90 100] [--jobs N] [--write]

Needs triton, which brings its assembler and disassembler, and no GPU. Compiles for one target unless more are asked
for, prints the worst figures of each group of variants, and exits with 1 if any variant

* needs more than 64 registers per thread, or leaves room for fewer than 32 warps on a multiprocessor;
* spills: at all, or with smoothing or a soft cap, in a loop over tiles or more than 16 bytes per thread and row;
* takes 4 KiB of shared memory, the size of the smallest tile: tiles belong in registers;
* moves the body of a row other than in 128-bit loads and stores. Rows are split by their own address at run time, so
  that one variant serves every V, 50,257 too. Only scalars and the edges of a row, counted here, may move in narrow
  accesses, and the loads of logits whose rows are aligned otherwise than those of the gradient ("unlike");
* waits, where the loss is plain, for a tile before it has asked for all those that it loads together;
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
import re
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

try:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource
except ImportError as error:
    sys.exit(f"triton_aot: {error}. The check needs triton (Linux): pip install 'pycooldown[all]'")

from pycooldown.losses.backends import triton as launches
from pycooldown.losses.backends import triton_kernels, triton_stats

MAX_REGISTERS = launches.MAX_REGISTERS
MIN_WARPS = 32
MAX_SHARED = 4096
MAX_SPILL = 16
# Shared memory in bytes, blocks and warps of a multiprocessor (CUDA C++ Programming Guide, compute capabilities).
MULTIPROCESSOR = {80: (164 << 10, 32, 64), 90: (228 << 10, 32, 64), 100: (228 << 10, 32, 64)}
TABLE = Path(__file__).parent / "results/triton_aot.csv"
BINARIES = Path(triton.__file__).parent / "backends/nvidia/bin"
POINTERS = {
    "rows": {"target": "*i64", "scale": "*fp32", "loss": "*fp32", "lse": "*fp32", "correct": "*i8"},
    "slice": {"target": "*i64", "scale": "*fp32", "lse": "*fp32", "num_whole_classes": "*i64"},
    "scale": {"factor": "*fp32"},
    "stats": {"loss": "*fp32", "correct": "*i8", "target": "*i64", "domain_ids": "*i64"}
    | {"loss_sum": "*fp64", "counts": "*i64"},
}


class Variant(NamedTuple):
    """One compilation and how many narrow accesses it may have; None: any, as it has no wide ones to make."""

    kernel: str
    group: str
    dtype: str
    num_warps: int
    constants: tuple[tuple[str, int], ...]
    narrow_loads: int | None
    narrow_stores: int | None

    @property
    def together(self) -> int:
        """How many wide loads it must issue before it computes with any of them."""
        constants = dict(self.constants)
        if self.narrow_loads is None or constants.get("SMOOTHING") or constants.get("SOFTCAP"):
            return 0  # the assembler takes turns: while it computes, other warps' loads are under way
        return constants.get("TILES") or constants.get("FLIGHT", 1)

    def row(self, target: int) -> tuple[str, ...]:
        """What names it in the table."""
        constants = " ".join(f"{name}={value}" for name, value in self.constants)
        return triton.__version__, f"sm_{target}", self.kernel, self.dtype, constants


class Figures(NamedTuple):
    """What the assembler made of it. Accesses are to global memory: instructions, not how often they run.

    `spills` are bytes per thread. `together` counts the wide loads that are issued before anything waits for the first
    of them. `loop_shuffles` and `loop_spills` are shuffles and accesses to spilled registers in loops over tiles and
    between these loads; all other shuffles are those of sums over a whole row.
    """

    registers: int
    spills: int
    shared: int
    warps: int
    wide_loads: int
    wide_stores: int
    narrow_loads: int
    narrow_stores: int
    together: int
    shuffles: int
    loop_shuffles: int
    loop_spills: int


def shapes(plain: bool, target: int) -> list[tuple[launches.Variant, int]]:
    """What `choose_variant` may choose on a target, and whether logits and gradient are aligned alike."""
    capability = target // 10, target % 10
    widths = (*launches.KEPT, 1 << 20)
    chosen = [launches.choose_variant(width, plain=plain, capability=capability) for width in widths]
    return [*((shape, 1) for shape in dict.fromkeys(chosen)), (launches.UNLIKE, 0)]


def variants(target: int) -> Iterator[Variant]:
    """What can be launched, but for a soft cap alone, which needs no more than one with smoothing."""
    for dtype, options in itertools.product(("fp32", "bf16", "fp16"), ("", "smoothing", "soft cap")):
        flags = {"SMOOTHING": int(options != ""), "SOFTCAP": int(options == "soft cap")}
        plain = f" +{options}" if options else ""
        for shape, same in shapes(not options, target):
            for grad in (0, 1) if same else (1,):
                # Loads: target, scale, the target's logit, the edges. Stores: loss, lse and whether correct, with
                # and without exponentials; the edges with a gradient, without weight and ignored.
                loads, stores = 4 if same else None, 9 if grad else None
                group = "rows unlike" if not same else "rows kept" if shape.TILES else "rows read twice"
                group += plain if grad else f", loss{plain}"
                constants = flags | {"GRAD": grad, "SAME_ALIGNMENT": same} | shape._asdict()
                yield Variant("rows", group, dtype, shape.LANES // 32, tuple(constants.items()), loads, stores)
        for lanes, same in itertools.product(sorted({shape.LANES for shape in launches.KEPT.values()}), (0, 1)):
            # Loads: target, scale, the log-sum-exp, the number of classes, the edges. Stores: the edges, twice.
            constants = tuple((flags | {"SAME_ALIGNMENT": same, "LANES": lanes}).items())
            group = f"slice{'' if same else ' unlike'}{plain}"
            yield Variant("slice", group, dtype, lanes // 32, constants, 4 + bool(options) if same else None, 2)
            if same and not options:
                yield Variant("scale", "scale", dtype, lanes // 32, (("LANES", lanes),), 2, 1)  # factor and edges
    for has_domains in (0, 1):
        yield Variant("stats", "stats", "fp32", launches.STATS_WARPS, (("HAS_DOMAINS", has_domains),), None, None)


def compile_variant(variant: Variant, target: int) -> Any:
    """The kernel as any launch compiles it, which takes that no argument is specialized by its value."""
    kernel = getattr(triton_stats if variant.kernel == "stats" else triton_kernels, f"{variant.kernel}_kernel")
    integers = {"LANES", "TILES", "FLIGHT"}
    constants = {name: value if name in integers else bool(value) for name, value in variant.constants}
    signature = {}
    for p in kernel.params:
        pointer = POINTERS[variant.kernel].get(p.name, f"*{variant.dtype}")
        signature[p.name] = "constexpr" if p.is_constexpr else p.annotation_type or pointer
        fixed = p.is_constexpr or p.do_not_specialize or p.do_not_specialize_on_alignment or "fp" in p.annotation_type
        if not fixed:
            raise SystemExit(f"triton_aot: {variant.kernel}_kernel would be specialized by the value of {p.name}")
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants)
    return triton.compile(
        source, target=GPUTarget("cuda", target, 32), options={"num_warps": variant.num_warps, "maxnreg": MAX_REGISTERS}
    )


def read_back(tool: str, *arguments: str) -> str:
    return subprocess.run([BINARIES / tool, *arguments], capture_output=True, text=True, check=True).stdout


def measure(variant: Variant, target: int) -> Figures:
    compiled = compile_variant(variant, target)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        usage = read_back("cuobjdump", "-res-usage", file.name)
        sass = read_back("nvdisasm", "-c", file.name)
    registers, stack, local = (int(re.findall(rf"\b{key}:(\d+)", usage)[0]) for key in ("REG", "STACK", "LOCAL"))
    shared_limit, block_limit, warp_limit = MULTIPROCESSOR[target]
    by_registers = 65536 // (-(-registers // 8) * 8 * 32) // variant.num_warps
    by_shared = shared_limit // (compiled.metadata.shared + 1024)  # of each block the driver keeps 1 KiB
    blocks = min(by_registers, by_shared, block_limit, warp_limit // variant.num_warps)
    lines = sass.splitlines()
    together = loads_together(lines)
    watched = {i for part in [*tile_loops(lines), together] for i in part}
    loads, stores = (re.findall(rf"\b{name}\.\S*", sass) for name in ("LDG", "STG"))
    wide_loads, wide_stores = (sum(".128" in access for access in accesses) for accesses in (loads, stores))
    return Figures(
        registers=registers,
        spills=stack + local,
        shared=compiled.metadata.shared,
        warps=blocks * variant.num_warps,
        wide_loads=wide_loads,
        wide_stores=wide_stores,
        narrow_loads=len(loads) - wide_loads,
        narrow_stores=len(stores) - wide_stores,
        together=sum(bool(re.search(r"\bLDG\.\S*128", lines[i])) for i in together),
        shuffles=sum("SHFL" in line for line in lines),
        loop_shuffles=sum("SHFL" in lines[i] for i in watched),
        loop_spills=sum(bool(re.search(r"\b(LDL|STL)\b", lines[i])) for i in watched),
    )


def loads_together(lines: list[str]) -> range:
    """From the first wide load to the first use of what it loads."""
    load = re.compile(r"\bLDG\.\S*128 R(\d+),")
    first = next((i for i, line in enumerate(lines) if load.search(line)), None)
    if first is None:
        return range(0)
    register = int(load.search(lines[first])[1])  # and the next three
    loaded = re.compile(r"\bR(" + "|".join(str(register + i) for i in range(4)) + r")\b")
    return range(first, next(i for i in range(first + 1, len(lines)) if loaded.search(lines[i])))


def tile_loops(lines: list[str]) -> list[range]:
    """The lines of the innermost loops with wide accesses; a loop with a barrier is that over rows."""
    labels = {line[:-1]: i for i, line in enumerate(lines) if line.startswith(".L_")}
    jumps = ((i, re.search(r"\bBRA\b.*`\((\.L_\w+)\)", line)) for i, line in enumerate(lines))
    loops = [range(labels[jump[1]], i) for i, jump in jumps if jump and labels[jump[1]] < i]
    return [
        loop
        for loop in loops
        if any(re.search(r"\b(LDG|STG)\.\S*128", lines[i]) for i in loop)
        and not any("BAR.SYNC" in lines[i] for i in loop)
    ]


def violations(variant: Variant, figures: Figures) -> list[str]:
    found = []
    if figures.registers > MAX_REGISTERS:
        found.append(f"{figures.registers} registers > {MAX_REGISTERS}")
    if figures.spills > (MAX_SPILL if "+" in variant.group else 0) or figures.loop_spills:
        found.append(f"{figures.spills} bytes of spills and {figures.loop_spills} accesses to them between tiles")
    if figures.shared >= MAX_SHARED:
        found.append(f"{figures.shared} bytes of shared memory, not less than {MAX_SHARED}")
    if figures.warps < MIN_WARPS:
        found.append(f"{figures.warps} warps < {MIN_WARPS}")
    if figures.together < variant.together - 1:  # some assemblers leave the last for later
        found.append(f"{figures.together} wide loads together, not {variant.together}")
    if figures.loop_shuffles:
        found.append(f"{figures.loop_shuffles} shuffles between tiles")
    for name in ("loads", "stores"):
        allowed = getattr(variant, f"narrow_{name}")
        narrow, wide = getattr(figures, f"narrow_{name}"), getattr(figures, f"wide_{name}")
        if allowed is not None and (narrow > allowed or not wide):
            found.append(f"{wide} wide and {narrow} narrow {name}, of which {allowed} may be")
    return found


def read_table() -> dict[tuple[str, ...], tuple[str, ...]]:
    """Figures by triton, target, kernel, dtype and constants."""
    if not TABLE.exists():
        return {}
    with TABLE.open(newline="") as file:
        return {tuple(row[:5]): tuple(row[5:]) for row in itertools.islice(csv.reader(file), 1, None)}


def write_table(figures: dict[tuple[str, ...], tuple[str, ...]]) -> None:
    """Put figures into the table, in place of all others of the same triton and target."""
    renewed = {key[:2] for key in figures}
    rows = {key: row for key, row in read_table().items() if key[:2] not in renewed} | figures
    with TABLE.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("triton", "target", "kernel", "dtype", "constants", *Figures._fields))
        writer.writerows(key + rows[key] for key in sorted(rows))


def print_groups(results: list[tuple[tuple[Variant, int], Figures]]) -> None:
    """The worst of each group of variants."""
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
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--write", action="store_true", help=f"renew {TABLE.name}")
    options = parser.parse_args()
    if launches.INTERPRETED:
        sys.exit("triton_aot: TRITON_INTERPRET is set, and the interpreter compiles nothing; unset it")
    missing = [tool for tool in ("cuobjdump", "nvdisasm") if not (BINARIES / tool).exists()]
    if missing:
        sys.exit(f"triton_aot: triton {triton.__version__} does not bring {missing} in {BINARIES}; use one that does")

    began = time.monotonic()
    targets = MULTIPROCESSOR if options.all else options.targets
    jobs = [(variant, target) for target in targets for variant in variants(target)]
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
        found = violations(variant, figures)
        expected = table.get(variant.row(target))
        if known and expected != tuple(map(str, figures)):
            found.append(f"{tuple(figures)}, but {TABLE.name} has {expected}; renew it with --write if that is meant")
        for violation in found:
            failed += 1
            print(f"FAILED {variant.kernel} {variant.dtype} sm_{target} {dict(variant.constants)}: {violation}")
    print(f"{len(jobs)} compilations in {time.monotonic() - began:.0f} s, {failed} violations")
    sys.exit(failed > 0)


if __name__ == "__main__":
    main()
