"""The core runs the kernels of the best instruction set that the processor supports."""

import platform
from pathlib import Path

import pytest

from pycooldown import _core

NEEDED = {
    "avx2": {"avx2", "fma", "f16c", "bmi2"},
    "avx512": {"avx2", "fma", "f16c", "bmi2", "avx512f", "avx512bw", "avx512dq", "avx512vl"},
}
CPUINFO = Path("/proc/cpuinfo")


@pytest.mark.skipif(
    platform.machine() != "x86_64" or not CPUINFO.exists(),
    reason="the flags are read from Linux's /proc/cpuinfo on x86-64",
)
def test_the_best_instruction_set_is_chosen(monkeypatch):
    monkeypatch.delenv("PYCOOLDOWN_ISA", raising=False)
    flags = set(next(line for line in CPUINFO.read_text().splitlines() if line.startswith("flags")).split())
    assert _core.isa() == [name for name, needed in {"baseline": set(), **NEEDED}.items() if needed <= flags][-1]
