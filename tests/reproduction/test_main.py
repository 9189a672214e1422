"""The command line of reproductions."""

import re

import pytest

pytest.importorskip("torch")
pytest.importorskip("typer")

from typer.testing import CliRunner

from reproduction import __main__ as cli


def test_reproduce_writes_a_page(tmp_path):
    result = CliRunner().invoke(cli.app, ["reproduce", "R1", "R3", "--folder", str(tmp_path)])
    assert result.exit_code == 0, result.output
    assert "R3: not reproduced" in result.output
    page = (tmp_path / "claims.md").read_text()
    assert "## R1" in page
    pictures = re.findall(r"\]\((figures/.*?)\)", page)
    assert pictures == ["figures/variance_inflation.png", "figures/temperature_by_step.png"]
    assert all((tmp_path / picture).read_bytes().startswith(b"\x89PNG") for picture in pictures)
    recipe = CliRunner().invoke(cli.app, ["reproduce", "R5", "--scale", "paper", "--folder", str(tmp_path / "none")])
    assert "transformer_wmt_en_de_big" in recipe.output
    assert not (tmp_path / "none").exists()
