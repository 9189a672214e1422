"""The first example of the page on training runs."""

import re
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

PAGE = Path(__file__).parents[2] / "docs" / "training.md"


def test_the_first_example_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    example = re.search(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)[1]
    exec(compile(example, PAGE.name, "exec"), {"__name__": "page"})
    assert 0 < float(capsys.readouterr().out.strip().splitlines()[-1]) < 3
