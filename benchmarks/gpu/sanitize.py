"""Every kernel once under a tool of compute-sanitizer: memcheck or racecheck. A dry run has a stand-in for the tool."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from common import Run, parse

HERE = Path(__file__).resolve().parent
TOOLS = ("memcheck", "racecheck")
FOUND = 9  # the exit status if the tool has found a fault
SUMMARY = re.compile(r"^=+ (?:ERROR|RACECHECK) SUMMARY: (\d+) (?:error|hazard)", re.MULTILINE)


def command(run: Run, tool: str) -> list[str]:
    """Return the command line of a tool around the kernels."""
    sanitizer = [sys.executable, str(HERE / "sanitizer_stand_in.py")] if run.dry else ["compute-sanitizer"]
    kernels = [sys.executable, str(HERE / "checks.py"), "--kernels", "--output", str(run.output), "--task", run.task]
    return [*sanitizer, "--tool", tool, "--error-exitcode", str(FOUND), *kernels, *(["--dry-run"] if run.dry else [])]


def faults(output: str) -> int | None:
    """Return how many faults the tool has found; None if it did not come to its summary."""
    counts = SUMMARY.findall(output)
    return sum(map(int, counts)) if counts else None


def sanitize(run: Run, tool: str) -> None:
    """Run a tool and write what it found; raise SystemExit unless that is nothing."""
    # Memory that torch keeps for later allocations would hide accesses beyond the end of a tensor.
    environment = {**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    result = subprocess.run(command(run, tool), env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    output = result.stdout.decode(errors="replace")
    print(output)
    found = faults(output)
    run.write(tool=tool, faults=found, exit_status=result.returncode)
    if found is None:
        raise SystemExit(f"{tool} did not come to its summary; its exit status is {result.returncode}")
    if found or result.returncode:
        raise SystemExit(f"{tool} found {found} faults; its exit status is {result.returncode}")


def main() -> None:
    """Run the tool that is named."""
    run, rest = parse(__doc__.splitlines()[0])
    if len(rest) != 1 or rest[0] not in TOOLS:
        raise SystemExit(f"expected one of {', '.join(TOOLS)}, got {' '.join(rest) or 'nothing'}")
    sanitize(run, rest[0])


if __name__ == "__main__":
    main()
