"""The summary and the report have all domains, also when there are more than a log shows."""

import json
import random
import re

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("typer")
pytest.importorskip("transformers")
pytest.importorskip("sentencepiece")

from typer.testing import CliRunner  # noqa: E402

from pycooldown import cli, domain_log  # noqa: E402
from pycooldown.huggingface.trainer_logs import LOGGED_DOMAINS  # noqa: E402
from pycooldown.recipes.history import Run  # noqa: E402

torch.set_num_threads(1)
SIZES = {f"x{i:02d}": 9 + i % 5 for i in range(LOGGED_DOMAINS + 4)}


def invoke(*arguments):
    result = CliRunner().invoke(cli.app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture
def packed(tmp_path):
    words = random.Random(0)
    for domain, size in SIZES.items():
        (tmp_path / "corpus" / domain).mkdir(parents=True)
        for split, count in (("train", size), ("validation", 2)):
            rows = [
                {"key": f"{split}{i}", "src": " ".join(words.choices("abcdef", k=4)), "tgt": words.choice("klmn")}
                for i in range(count)
            ]
            path = tmp_path / "corpus" / domain / f"{split}.jsonl"
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    invoke("pack", tmp_path / "corpus", tmp_path / "packed", "--vocabulary-size", "345")
    return tmp_path / "packed"


def test_the_summary_and_the_report_have_all_domains(tmp_path, packed):
    recipe, run, page = tmp_path / "recipe.yaml", tmp_path / "run", tmp_path / "report.html"
    recipe.write_text(
        f"data: {{path: {packed}, max_length: 12, eval_samples: 2}}\n"
        "mixture: {method: temperature, tau: 5}\n"
        "model: {layers: 1, width: 16, heads: 2, mlp_width: 32}\n"
        "training: {steps: 4, batch_size: 8, warmup: 1, log_every: 1, eval_every: 2, save_every: 4}\n"
    )
    invoke("train", recipe, "--output", run)
    summary = Run.read(run).summary
    assert all(entry["loss"] > 0 for entry in summary["domains"].values())
    assert summary["domains"].keys() == SIZES.keys()
    records = domain_log.read(run / domain_log.TRAINING)
    assert records["samples"][-1].tolist() == [summary["domains"][d]["draws"] for d in SIZES]
    steps, losses = Run.read(run).series("eval_loss")
    assert steps.tolist() == [2, 4]
    for domain, entry in summary["domains"].items():
        assert losses[domain][-1] == pytest.approx(entry["loss"], rel=1e-6)

    output = invoke("report", run, "--html", page)
    assert f"wrote {page}" in output
    text = page.read_text()
    assert len(text.encode()) < 1_000_000
    assert text.count('src="data:image/') == 5
    assert all(re.search(rf">{domain}<", text) for domain in SIZES)
    assert not (tmp_path / "report").exists()
