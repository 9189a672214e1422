"""The command line of reproductions."""

import pytest

pytest.importorskip("torch")
pytest.importorskip("typer")

from typer.testing import CliRunner

from reproduction import __main__ as cli
from reproduction.regimes import RESULTS


def test_claims_without_a_regime(tmp_path):
    result = CliRunner().invoke(cli.app, ["reproduce", "R1", "R3", "--seeds", "4", "--folder", str(tmp_path)])
    assert result.exit_code == 0, result.output
    assert "R3: not reproduced" in result.output
    assert (tmp_path / "results" / "R3.csv").read_text().startswith("claim,quantity,bound,seed,value,cpu\nR3,")
    recipe = CliRunner().invoke(cli.app, ["reproduce", "R4", "--scale", "paper", "--folder", str(tmp_path / "none")])
    assert "transformer_wmt_en_de_big" in recipe.output
    assert not (tmp_path / "none").exists()


def test_the_page_is_written_from_results(tmp_path):
    result = CliRunner().invoke(cli.app, ["page", str(tmp_path), "--results", str(RESULTS.parent)])
    assert result.exit_code == 0, result.output
    assert (tmp_path / "evidence.md").read_text(encoding="utf-8").startswith("# What holds, and where")


def test_a_claim_needs_a_regime(tmp_path):
    result = CliRunner().invoke(cli.app, ["regimes", str(tmp_path), "--claim", "R7"])
    assert isinstance(result.exception, ValueError)
    assert "--regime SKEW:PASSES" in str(result.exception)
