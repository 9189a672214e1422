"""Stands in for compute-sanitizer in dry runs: runs the program that it is given and writes the summary of no fault."""

from __future__ import annotations

import argparse
import subprocess
import sys

SUMMARIES = {
    "memcheck": "ERROR SUMMARY: 0 errors",
    "racecheck": "RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)",
}

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--tool", choices=SUMMARIES, required=True)
parser.add_argument("--error-exitcode", type=int, required=True)
parser.add_argument("program", nargs=argparse.REMAINDER)
options = parser.parse_args()
print("========= COMPUTE-SANITIZER", flush=True)
status = subprocess.run(options.program).returncode
print(f"========= {SUMMARIES[options.tool]}")
sys.exit(status)
