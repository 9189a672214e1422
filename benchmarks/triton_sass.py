"""Measure the machine code of a variant: registers, spills, accesses to memory, and their order."""

from __future__ import annotations

import re
import subprocess
import tempfile
from pathlib import Path
from typing import NamedTuple

import triton
from triton_variants import Variant, compile_variant

# Shared memory in bytes, blocks and warps of a multiprocessor (CUDA C++ Programming Guide, compute capabilities).
MULTIPROCESSOR = {80: (164 << 10, 32, 64), 90: (228 << 10, 32, 64), 100: (228 << 10, 32, 64)}
BINARIES = Path(triton.__file__).parent / "backends/nvidia/bin"


class Figures(NamedTuple):
    """Figures of a variant's machine code. Accesses are instructions on global memory, not how often they run.

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
    by_shared = shared_limit // (compiled.metadata.shared + 1024)  # the driver reserves 1 KiB per block
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
    """Return the lines from the first wide load to the first use of its result."""
    load = re.compile(r"\bLDG\.\S*128 R(\d+),")
    first = next((i for i, line in enumerate(lines) if load.search(line)), None)
    if first is None:
        return range(0)
    register = int(load.search(lines[first])[1])  # the first of four registers
    loaded = re.compile(r"\bR(" + "|".join(str(register + i) for i in range(4)) + r")\b")
    return range(first, next(i for i in range(first + 1, len(lines)) if loaded.search(lines[i])))


def tile_loops(lines: list[str]) -> list[range]:
    """Return the lines of the innermost loops with wide accesses. A loop with a barrier is the one over rows."""
    labels = {line[:-1]: i for i, line in enumerate(lines) if line.startswith(".L_")}
    jumps = ((i, re.search(r"\bBRA\b.*`\((\.L_\w+)\)", line)) for i, line in enumerate(lines))
    loops = [range(labels[jump[1]], i) for i, jump in jumps if jump and labels[jump[1]] < i]
    return [
        loop
        for loop in loops
        if any(re.search(r"\b(LDG|STG)\.\S*128", lines[i]) for i in loop)
        and not any("BAR.SYNC" in lines[i] for i in loop)
    ]
