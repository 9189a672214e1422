"""Compile every variant of the Triton kernels for GPUs that are not there, and hold the machine code to its budget.

    python benchmarks/triton_aot.py [--targets 80 90 100] [--jobs N]

Needs triton, which brings its assembler and disassembler, and no GPU. Prints the worst figures of each group of
variants and exits with 1 if any variant

* needs more than 64 registers per thread, spills, or leaves room for fewer than 32 warps on a multiprocessor;
* takes 4 KiB of shared memory, the size of the smallest tile: tiles belong in registers;
* moves the body of a row other than in 128-bit loads and stores. Rows are split by their own address at run time, so
  that one variant serves every V, 50,257 too. Only scalars and the edges of a row, counted here, may move in narrow
  accesses, and the loads of logits whose rows are aligned otherwise than those of the gradient ("unlike").

No speed is measured: that takes a GPU and benchmarks/gpu_cross_entropy.py.
"""

from __future__ import annotations

import argparse
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
# Shared memory in bytes, blocks and warps of a multiprocessor (CUDA C++ Programming Guide, compute capabilities).
MULTIPROCESSOR = {80: (164 << 10, 32, 64), 90: (228 << 10, 32, 64), 100: (228 << 10, 32, 64)}
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


class Figures(NamedTuple):
    """What the assembler made of it. Accesses are to global memory: instructions, not how often they run."""

    registers: int
    spills: int
    shared: int
    warps: int
    wide_loads: int
    wide_stores: int
    narrow_loads: int
    narrow_stores: int


def variants() -> Iterator[Variant]:
    """What can be launched, but for single options, which need no more than all of them together."""
    for dtype, options in itertools.product(("fp32", "bf16", "fp16"), (0, 1)):
        flags = {"SMOOTHING": options, "SOFTCAP": options}
        plain = "" if not options else " +options"
        for shape in (*launches.KEPT.values(), launches.READ_TWICE, launches.UNLIKE):
            same = int(shape != launches.UNLIKE)
            if options and shape.TILES > 6:
                continue  # `choose_variant` reads such rows twice
            for grad in (0, 1) if shape in (launches.KEPT[8 << 10], launches.READ_TWICE) else (1,):
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
            yield Variant("slice", group, dtype, lanes // 32, constants, 4 + options if same else None, 2)
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
    loads, stores = (re.findall(rf"\b{name}\.\S*", sass) for name in ("LDG", "STG"))
    wide_loads, wide_stores = (sum(".128" in access for access in accesses) for accesses in (loads, stores))
    return Figures(
        registers=registers,
        spills=stack + local + len(re.findall(r"\b(?:LDL|STL)\b", sass)),
        shared=compiled.metadata.shared,
        warps=blocks * variant.num_warps,
        wide_loads=wide_loads,
        wide_stores=wide_stores,
        narrow_loads=len(loads) - wide_loads,
        narrow_stores=len(stores) - wide_stores,
    )


def violations(variant: Variant, figures: Figures) -> list[str]:
    found = []
    if figures.registers > MAX_REGISTERS:
        found.append(f"{figures.registers} registers > {MAX_REGISTERS}")
    if figures.spills:
        found.append("spills")
    if figures.shared >= MAX_SHARED:
        found.append(f"{figures.shared} bytes of shared memory, not less than {MAX_SHARED}")
    if figures.warps < MIN_WARPS:
        found.append(f"{figures.warps} warps < {MIN_WARPS}")
    for name in ("loads", "stores"):
        allowed = getattr(variant, f"narrow_{name}")
        narrow, wide = getattr(figures, f"narrow_{name}"), getattr(figures, f"wide_{name}")
        if allowed is not None and (narrow > allowed or not wide):
            found.append(f"{wide} wide and {narrow} narrow {name}, of which {allowed} may be")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--targets", type=int, nargs="+", choices=MULTIPROCESSOR, default=list(MULTIPROCESSOR))
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)))
    options = parser.parse_args()
    if launches.INTERPRETED:
        sys.exit("triton_aot: TRITON_INTERPRET is set, and the interpreter compiles nothing; unset it")
    missing = [tool for tool in ("cuobjdump", "nvdisasm") if not (BINARIES / tool).exists()]
    if missing:
        sys.exit(f"triton_aot: triton {triton.__version__} does not bring {missing} in {BINARIES}; use one that does")

    began = time.monotonic()
    jobs = list(itertools.product(variants(), options.targets))
    with ProcessPoolExecutor(options.jobs, mp_context=get_context("spawn")) as pool:
        results = list(zip(jobs, pool.map(measure, *zip(*jobs), chunksize=4)))

    groups = defaultdict(list)
    for (variant, target), figures in results:
        groups[variant.group, variant.dtype, target].append(figures)
    print(f"triton {triton.__version__}; the worst of each group; wide: 128-bit accesses of a row's body")
    print(f"{'':24}{'':12}variants registers spills shared warps/SM  wide loads stores  narrow loads stores")
    for (group, dtype, target), group_figures in sorted(groups.items()):
        columns = list(zip(*group_figures))
        registers, spills, shared, narrow_loads, narrow_stores = (max(columns[i]) for i in (0, 1, 2, 6, 7))
        warps, wide_loads, wide_stores = (min(columns[i]) for i in (3, 4, 5))
        print(
            f"{group:24}{dtype} sm_{target:<4}{len(group_figures):8}{registers:10}{spills:7}{shared:7}{warps:9}"
            f"{wide_loads:12}{wide_stores:7}{narrow_loads:14}{narrow_stores:7}"
        )
    failed = 0
    for (variant, target), figures in results:
        for violation in violations(variant, figures):
            failed += 1
            print(f"FAILED {variant.kernel} {variant.dtype} sm_{target} {dict(variant.constants)}: {violation}")
    print(f"{len(jobs)} compilations in {time.monotonic() - began:.0f} s, {failed} violations")
    sys.exit(failed > 0)


if __name__ == "__main__":
    main()
