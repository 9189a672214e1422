"""Run the benchmarks and write a dated report that names the hardware: a page, numbers and a figure per file.

    python benchmarks/report.py                         # all, on a quiet machine; fetches the demo's data if need be
    python benchmarks/report.py --quick                 # without the largest cases
    python benchmarks/report.py test_sampler.py         # some files

The report is in benchmarks/results/<date>-<processor>/. Times of different reports are not comparable. Ratios within
one report are, because contenders take turns.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

# Commands run here, because in the folder above the source tree would hide the installed package.
HERE = Path(__file__).resolve().parent
LANGUAGES = "zh-Hans,de,fr,ro,uk,gl,sl,hr,is,fa"
# Cases that --quick leaves out: the largest inputs, and sweeps whose result is a constant in the code.
LARGE = "151936 or 50257 or chunk_size or ten_thousand or page_cache or 10000"
# Kernels are timed with memory that the allocator keeps (see the file's docstring); peaks of memory are not.
KEEP_MEMORY = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "68719476736", "MALLOC_TOP_PAD_": "0"}
PARTS = {"test_cross_entropy.py": [("not peak_memory", KEEP_MEMORY), ("peak_memory", {})]}
PACKAGES = ("pycooldown", "numpy", "torch", "webdataset", "torchdata", "litdata", "datasets")


def main() -> int:
    """Run the files one after another; the exit status tells whether all of them passed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", help="benchmark files; all by default")
    parser.add_argument("--quick", action="store_true", help="leave out the largest cases")
    parser.add_argument("--data", type=Path, default=Path("demo/packed"), help="packed data; made if it is missing")
    parser.add_argument("--output", type=Path, default=HERE / "results", help="folder for reports")
    arguments = parser.parse_args()
    names = [Path(f).name for f in arguments.files] or sorted(path.name for path in HERE.glob("test_*.py"))
    if missing := [name for name in names if not (HERE / name).exists()]:
        parser.error(f"{HERE} has no {missing[0]}")
    if "test_variance.py" in names:
        prepare(arguments.data)
    files, machine = {}, {}
    for name in names:
        files[name], found = run(name, quick=arguments.quick, data=arguments.data)
        machine = found or machine
    if not machine:
        sys.exit("no benchmark has run; see pytest's output above")
    facts = describe(machine, quick=arguments.quick)
    folder = arguments.output / f"{datetime.date.today()}-{slug(facts['processor'])}"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.json").write_text(json.dumps({"machine": facts, "files": files}, indent=1) + "\n")
    for name, file in files.items():
        if panels := to_panels(file["benchmarks"]):
            draw(panels).savefig(folder / f"{Path(name).stem}.png")
    (folder / "report.md").write_text(page(facts, files))
    print(f"wrote {folder}/report.md")
    return int(any(file["status"] for file in files.values()))


def prepare(data: Path) -> None:
    """Fetch and pack the demo's corpus, unless it is there."""
    if (data / "manifest.json").exists():
        return
    data = data.resolve()
    corpus = data.with_name("corpus")
    for command in (["corpus", str(corpus), "--languages", LANGUAGES], ["pack", str(corpus), str(data)]):
        subprocess.run([sys.executable, "-m", "pycooldown.cli", *command], cwd=HERE, check=True)


def run(name: str, *, quick: bool, data: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Run pytest on one file; return status, seconds and benchmarks, and pytest-benchmark's facts about the machine."""
    file: dict[str, Any] = {"status": 0, "seconds": 0.0, "environment": {}, "benchmarks": []}
    machine: dict[str, Any] = {}
    for keywords, settings in PARTS.get(name, [("", {})]):
        chosen = " and ".join(f"({k})" for k in (keywords, f"not ({LARGE})" if quick else "") if k)
        with tempfile.TemporaryDirectory() as temporary:
            path = Path(temporary) / "out.json"
            command = [sys.executable, "-m", "pytest", str(HERE / name), "--benchmark-enable", "--benchmark-only"]
            command += ["--timeout=0", f"--benchmark-json={path}", *(["-k", chosen] if chosen else [])]
            start = time.perf_counter()
            # If a test run calls this, the benchmarks must not become part of it.
            outside = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
            environment = {**outside, "PYCOOLDOWN_PACKED": str(data.resolve()), **settings}
            file["status"] |= subprocess.run(command, cwd=HERE, env=environment).returncode
            file["seconds"] += time.perf_counter() - start
            found = json.loads(path.read_text()) if path.exists() and path.stat().st_size else {}
        file["environment"] |= settings
        file["benchmarks"] += [
            {"name": b["name"], "group": b["group"], "median": b["stats"]["median"], "extra": b["extra_info"]}
            for b in found.get("benchmarks", ())
        ]
        machine = found.get("machine_info", machine)
    return file, machine


def describe(machine: dict[str, Any], *, quick: bool) -> dict[str, Any]:
    """Return the date, the hardware and the software, but no host name."""
    cpu = machine["cpu"]
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=HERE, capture_output=True, text=True)
    installed = {d.metadata["Name"] for d in importlib.metadata.distributions()}
    return {
        "date": str(datetime.date.today()),
        "processor": f"{cpu.get('brand_raw', 'unknown processor')} family {cpu.get('family')} model {cpu.get('model')}",
        "cores": os.cpu_count(),
        "instructions": [isa for isa in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if isa in cpu.get("flags", ())],
        "system": machine["system"],
        "python": machine["python_version"],
        "packages": {name: importlib.metadata.version(name) for name in PACKAGES if name in installed},
        "commit": commit.stdout.strip() or "unknown",
        "quick": quick,
    }


def page(facts: dict[str, Any], files: dict[str, Any]) -> str:
    """Return the report in Markdown."""
    packages = ", ".join(f"{name} {version}" for name, version in facts["packages"].items())
    lines = [
        f"# Benchmarks, {facts['date']}, {facts['processor']}",
        "",
        f"{facts['cores']} cores with {', '.join(facts['instructions']) or 'no AVX2'}; {facts['system']}; Python "
        f"{facts['python']}; {packages}; commit {facts['commit']}.",
        f"Written by `python benchmarks/report.py{' --quick' if facts['quick'] else ''}`. Medians; contenders whose "
        "ratios are given took turns. What a quantity means is in the docstring of its file.",
    ]
    for name, file in files.items():
        result = {0: "", 5: " Nothing was run."}.get(file["status"], " **Failed:** see pytest's output.")
        settings = "".join(f" `{key}={value}`" for key, value in file["environment"].items())
        lines += ["", f"## {name}", "", f"{file['seconds']:.0f} s.{settings and f' With{settings}.'}{result}"]
        for group, rows in by_group(file["benchmarks"]).items():
            keys = list(dict.fromkeys(key for row in rows for key in row["extra"]))
            lines += [
                "",
                f"| {group} | median | {''.join(f'{key} | ' for key in keys)}",
                "|---" * (len(keys) + 2) + "|",
            ]
            for row in rows:
                cells = [seconds(row["median"]), *(show(row["extra"].get(key, "")) for key in keys)]
                lines.append(f"| {case(row)} | {' | '.join(cells)} |")
        if to_panels(file["benchmarks"]):
            lines += ["", f"![{name}]({Path(name).stem}.png)"]
    return "\n".join(lines) + "\n"


Panels = dict[str, dict[str, float]]


def to_panels(benchmarks: list[dict[str, Any]]) -> Panels:
    """Return numbers by case, with a panel for each quantity of each group: ratios if there are any."""
    panels: Panels = {}
    for group, rows in by_group(benchmarks).items():
        quantities: Panels = {}
        for row in rows:
            for key, value in row["extra"].items():
                if isinstance(value, int | float | dict):
                    quantities.setdefault(key, {})[case(row)] = number(value)
        ratios = {key: values for key, values in quantities.items() if len(set(key.split("_over_"))) == 2}
        medians = {"median (ms)": {case(row): 1e3 * row["median"] for row in rows}}
        panels |= {f"{group}\n{key}": values for key, values in (ratios or quantities or medians).items()}
    return panels


def draw(panels: Panels) -> Figure:
    """Draw a panel of horizontal bars for each quantity."""
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    tallest = max(len(values) for values in panels.values())
    figure = Figure(figsize=(4.6 * columns, rows * (0.9 + 0.22 * tallest)), dpi=100, layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis in axes[len(panels) :]:
        axis.set_visible(False)
    for axis, (title, values) in zip(axes, panels.items(), strict=False):
        bars = axis.barh(list(values), list(values.values()), color="#0072B2", height=0.6)
        axis.bar_label(bars, fmt="%.3g", fontsize=7, padding=2)
        axis.margins(x=0.18)
        axis.invert_yaxis()
        axis.tick_params(labelsize=7)
        axis.xaxis.set_major_locator(MaxNLocator(4))
        axis.set_title(title, fontsize=8, loc="left")
    return figure


def by_group(benchmarks: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Return the benchmarks of each of pytest-benchmark's groups, or of each test function."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for benchmark in benchmarks:
        function = benchmark["name"].split("[")[0].removeprefix("test_")
        groups.setdefault(benchmark["group"] or function, []).append(benchmark)
    return groups


def case(benchmark: dict[str, Any]) -> str:
    """Return the text that distinguishes a benchmark in its group: its parameters, or its name."""
    name = benchmark["name"].removeprefix("test_").replace("torch.", "")
    return name if benchmark["group"] else name.partition("[")[2].removesuffix("]") or "-"


def number(value: Any) -> float:
    """Return a number, or the estimate of an interval."""
    return float(value["value"] if isinstance(value, dict) else value)


def show(value: Any) -> str:
    """Return a cell of a table."""
    if isinstance(value, dict):
        return f"{value['value']:.4g} ({value['low']:.3g} to {value['high']:.3g})"
    return f"{value:.4g}" if isinstance(value, int | float) else str(value)


def seconds(value: float) -> str:
    """Return a time with its unit."""
    return f"{value:.3g} s" if value >= 1 else f"{1e3 * value:.3g} ms" if value >= 1e-3 else f"{1e6 * value:.3g} us"


def slug(text: str) -> str:
    """Return a text as a folder name."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


if __name__ == "__main__":
    sys.exit(main())
