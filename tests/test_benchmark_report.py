"""The report of benchmarks is made from what pytest-benchmark writes."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest

pytest.importorskip("matplotlib")
SOURCE = Path(__file__).parents[1] / "benchmarks" / "report.py"
BENCHMARKS = """
import pytest

@pytest.mark.parametrize("size", [10, 151936])
def test_sum(benchmark, size):
    benchmark(lambda: sum(range(100)))
    benchmark.extra_info.update(ours_over_peer=0.5, interval={"value": 2.0, "low": 1.0, "high": 3.0})

def test_broken(benchmark):
    assert False
"""


@pytest.fixture
def report(monkeypatch):
    spec = importlib.util.spec_from_file_location("report", SOURCE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_report_of_a_file(report, tmp_path, monkeypatch):
    (tmp_path / "test_sum.py").write_text(BENCHMARKS)
    monkeypatch.setattr(report, "HERE", tmp_path)
    monkeypatch.setattr(sys, "argv", ["report.py", "--quick", "--output", str(tmp_path / "results")])
    assert report.main() == 1
    (folder,) = (tmp_path / "results").iterdir()
    page, results = (folder / "report.md").read_text(), json.loads((folder / "results.json").read_text())
    assert "| 10 | " in page
    assert "0.5 | 2 (1 to 3) |" in page
    assert "151936" not in page
    assert "**Failed:**" in page
    assert results["machine"]["processor"].split()[0] in page
    assert "node" not in results["machine"]
    assert (folder / "test_sum.png").read_bytes().startswith(b"\x89PNG")


def test_missing_benchmark_files_are_named(report, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["report.py", "test_nothing.py"])
    with pytest.raises(SystemExit):
        report.main()
    assert "test_nothing.py" in capsys.readouterr().err
