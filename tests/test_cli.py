"""The command line on a tiny corpus, in processes of its own where that matters."""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time

import pytest

pytest.importorskip("typer")
pytest.importorskip("transformers")
pytest.importorskip("sentencepiece")

from typer.testing import CliRunner

from pycooldown import cli

ENVIRONMENT = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "COLUMNS": "160"}
SIZES = {"aa": 120, "bb": 40, "cc": 12}


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """Three tiny languages, packed by the command itself."""
    corpus, out = tmp_path_factory.mktemp("corpus"), tmp_path_factory.mktemp("packed") / "data"
    words = random.Random(0)
    for language, size in SIZES.items():
        (corpus / language).mkdir()
        for split, count in (("train", size), ("validation", 8)):
            rows = [
                {
                    "key": f"{split}{i}",
                    "src": " ".join(words.choices(["turn", "on", "the", "light", "door"], k=4)),
                    "tgt": " ".join(words.choices([f"{language}{c}" for c in "klmnop"], k=words.randint(3, 9))),
                }
                for i in range(count)
            ]
            (corpus / language / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = CliRunner().invoke(cli.app, ["pack", str(corpus), str(out), "--vocabulary-size", "330"])
    assert result.exit_code == 0, result.output
    return out


@pytest.fixture
def recipe(tmp_path, packed):
    path = tmp_path / "tiny.yaml"
    path.write_text(
        f"""
data: {{path: {packed}, max_length: 12, eval_samples: 8}}
mixture: {{method: cooldown, tau: 5, final_tau: 1, switch_at: 0.5}}
model: {{layers: 1, width: 16, heads: 2, mlp_width: 32}}
training: {{steps: 120, batch_size: 8, warmup: 5, log_every: 1, eval_every: 10, save_every: 10}}
"""
    )
    return path


def invoke(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "pycooldown.cli", *map(str, arguments)],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=False,
    )


def metrics(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    "mixture",
    [
        "{method: cooldown, tau: 5, final_tau: 1, switch_at: 0.5}",
        "{method: erma, interval: 4, hold_out: 0.2, probe_size: 2, variance_aware: true}",
    ],
    ids=["cooldown", "learned"],
)
def test_a_killed_run_resumes_to_the_same_losses_and_weights(tmp_path, recipe, mixture):
    recipe.write_text(re.sub("mixture: .*", f"mixture: {mixture}", recipe.read_text()))
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    process = subprocess.Popen(
        [sys.executable, "-m", "pycooldown.cli", "train", str(recipe), "--output", str(killed)],
        env=ENVIRONMENT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    lines = random.randint(15, 100)
    while process.poll() is None:
        path = killed / "metrics.jsonl"
        if path.exists() and path.read_bytes().count(b"\n") >= lines:
            process.send_signal(signal.SIGKILL)
            process.wait()
        time.sleep(0.002)
    assert process.returncode == -signal.SIGKILL, f"the run ended before {lines} lines were seen"
    assert not (killed / "summary.json").exists()

    refused = CliRunner().invoke(cli.app, ["train", str(recipe), "--output", str(killed)])
    assert "--resume" in str(refused.exception)
    resumed = invoke("train", recipe, "--output", killed, "--resume")
    assert resumed.returncode == 0, resumed.stderr
    assert invoke("train", recipe, "--output", whole).returncode == 0

    assert metrics(killed) == [
        {**entry, "epoch": other["epoch"]} for entry, other in zip(metrics(whole), metrics(killed))
    ]
    assert len(metrics(whole)) == 120 + 12
    weights = "model/model.safetensors"
    assert (killed / weights).read_bytes() == (whole / weights).read_bytes()
    summary = json.loads((killed / "summary.json").read_text())
    assert summary["resumed_at"] % 10 == 0
    assert summary["resumed_at"] <= lines

    before = (killed / "summary.json").stat().st_mtime_ns
    again = CliRunner().invoke(cli.app, ["train", str(recipe), "--output", str(killed)])
    assert again.exit_code == 0
    assert "finished" in again.output
    assert (killed / "summary.json").stat().st_mtime_ns == before
    (killed / "summary.json").unlink()  # as if killed between the last checkpoint and the end
    (killed / weights).unlink()
    again = CliRunner().invoke(cli.app, ["train", str(recipe), "--output", str(killed), "--resume"])
    assert again.exit_code == 0, again.output
    assert (killed / weights).read_bytes() == (whole / weights).read_bytes()
    assert metrics(killed)[-1] == {**metrics(whole)[-1], "epoch": metrics(killed)[-1]["epoch"]}
    assert len(metrics(killed)) == 120 + 12
    other = CliRunner().invoke(cli.app, ["train", str(recipe), "training.steps=60", "--output", str(killed)])
    assert "training.steps is 120 there and 60 here" in str(other.exception)


def test_report_compares_runs(tmp_path, recipe):
    runs = []
    for name, method in (("tau5", "temperature"), ("weighted", "scalarization")):
        text = recipe.read_text().replace(
            "{method: cooldown, tau: 5, final_tau: 1, switch_at: 0.5}", f"{{method: {method}, tau: 5}}"
        )
        path = tmp_path / f"{name}.yaml"
        path.write_text(text)
        result = CliRunner().invoke(
            cli.app, ["train", str(path), "training.steps=20", "--output", str(tmp_path / name)]
        )
        assert result.exit_code == 0, result.output
        runs.append(str(tmp_path / name))
    assert metrics(tmp_path / "weighted")[0]["v/cc"] > 1 > metrics(tmp_path / "weighted")[0]["v/aa"]
    result = CliRunner().invoke(
        cli.app, ["report", *runs, "--figures", str(tmp_path / "figures")], env={"COLUMNS": "160"}
    )
    assert result.exit_code == 0, result.output
    for word in ("aa", "bb", "cc", "low-resource", "tau5", "weighted", "lowest loss"):
        assert word in result.output
    for name in ("loss_by_step", "loss_by_epoch", "q_over_time"):
        assert (tmp_path / "figures" / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_plan_shows_each_stage(recipe):
    result = CliRunner().invoke(cli.app, ["plan", str(recipe)], env={"COLUMNS": "160"})
    assert result.exit_code == 0, result.output
    assert "steps 0 to 59: tau = 5, F = 1.000" in result.output
    assert "steps 60 to 119: tau = 1, F = 1.000" in result.output
    assert all(domain in result.output for domain in SIZES)


def test_overrides_replace_the_recipes_values(recipe):
    result = CliRunner().invoke(cli.app, ["plan", str(recipe), "training.steps=20", "mixture.final_tau=2"])
    assert result.exit_code == 0, result.output
    assert "steps 10 to 19: tau = 2" in result.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["training.stps=3"], "training.stps is unknown; expected steps, batch_size"),
        (["training.steps=many"], "training.steps is 'many' (str); expected a whole number"),
        (["data.domains=[aa, zz]"], "data.domains has 'zz'"),
        (["data.path=nowhere"], "nowhere"),
        (["steps=3"], "override 'steps=3': expected section.key=value"),
    ],
)
def test_errors_are_one_line_without_a_traceback(recipe, arguments, message):
    result = invoke("plan", recipe, *arguments)
    assert result.returncode == 1
    assert message in result.stderr
    assert "Traceback" not in result.stderr


def test_help_loads_nothing_heavy():
    code = (
        "import sys; from pycooldown import cli; from typer.testing import CliRunner; "
        "assert CliRunner().invoke(cli.app, ['--help']).exit_code == 0; "
        "print([m for m in ('torch', 'transformers', 'matplotlib', 'webdataset', 'numba') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_variance_of_a_run(recipe, tmp_path):
    run = ["training.steps=4", "training.eval_every=4", "training.save_every=4"]
    trained = CliRunner().invoke(cli.app, ["train", str(recipe), *run, "--output", str(tmp_path / "run")])
    assert trained.exit_code == 0, trained.output
    options = ["--tau", "2", "5", "--batches", "4", "--figures", str(tmp_path / "figures")]
    result = CliRunner().invoke(cli.app, ["variance", str(tmp_path / "run"), *options])
    assert result.exit_code == 0, result.output
    assert all(word in result.output for word in ("aa", "systematic", "scalarization 2", "scalarization 5", "wrote"))
    assert {path.name for path in (tmp_path / "figures").iterdir()} == {"variance_inflation.png", "gradient_norms.png"}


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
