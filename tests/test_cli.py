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

torch = pytest.importorskip("torch")
pytest.importorskip("typer")
pytest.importorskip("transformers")
pytest.importorskip("sentencepiece")

import psutil  # noqa: E402
from typer.testing import CliRunner  # noqa: E402

from pycooldown import cli  # noqa: E402

torch.set_num_threads(1)  # as in the processes that are started here, whose sums must agree

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
training: {{steps: 60, batch_size: 8, warmup: 5, log_every: 1, eval_every: 10, save_every: 10}}
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


def kill(recipe, output, watched, ranks):
    """Trains and kills all processes at a random number of lines in the watched run's metrics, which is returned."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"] if ranks > 1 else []
    command = [sys.executable, *launcher, "-m", "pycooldown.cli", "train", str(recipe), "--output", str(output)]
    environment = {**ENVIRONMENT, "PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    path, lines = watched / "metrics.jsonl", random.randint(15, 40)
    while process.poll() is None:
        if path.exists() and path.read_bytes().count(b"\n") >= lines:
            for each in (*psutil.Process(process.pid).children(recursive=True), process):
                each.kill()
            process.wait()
        time.sleep(0.002)
    assert process.returncode == -signal.SIGKILL, f"the run ended before {lines} lines were seen"
    assert not (watched / "summary.json").exists()
    return lines


def without_time(metrics):
    return [{name: value for name, value in entry.items() if name != "seconds"} for entry in metrics]


@pytest.mark.parametrize(
    ("mixture", "stage", "ranks"),
    [
        ("{method: cooldown, tau: 5, final_tau: 1, switch_at: 0.5}", "", 1),
        ("{method: erma, interval: 4, hold_out: 0.2, probe_size: 2, variance_aware: true}", "", 2),
        ("{method: doremi}", "-proxy", 1),
    ],
    ids=["cooldown", "learned, by one process after two", "a stage of doremi"],
)
def test_a_killed_run_resumes_to_the_same_losses_and_weights(tmp_path, recipe, mixture, stage, ranks):
    recipe.write_text(re.sub("mixture: .*", f"mixture: {mixture}", recipe.read_text()))
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    lines = kill(recipe, killed, tmp_path / f"killed{stage}", ranks)
    refused = CliRunner().invoke(cli.app, ["train", str(recipe), "--output", str(killed)])
    assert "--resume" in str(refused.exception)
    one = ["train", str(recipe), f"training.accumulation={ranks}", "--output"]  # the same micro-batches, in one process
    for command in ([*one, str(killed), "--resume"], [*one, str(whole)]):
        result = CliRunner().invoke(cli.app, command)
        assert result.exit_code == 0, result.exception

    weights = "model/model.safetensors"
    for suffix in dict.fromkeys(("", stage)):
        mine, other = (metrics(path.with_name(f"{path.name}{suffix}")) for path in (killed, whole))
        assert without_time(mine) == without_time(other)
        assert len(mine) == 60 + 6
        seconds = [entry["seconds"] for entry in mine]
        assert seconds == sorted(seconds)
    assert (killed / weights).read_bytes() == (whole / weights).read_bytes()
    summary = json.loads((tmp_path / f"killed{stage}/summary.json").read_text())
    assert summary["resumed_at"] % 10 == 0
    assert summary["resumed_at"] <= lines
    assert summary["seconds"] >= seconds[-1]


def test_a_finished_run_is_left_alone_and_one_without_its_end_is_ended(tmp_path, recipe):
    run, command = tmp_path / "run", ["train", str(recipe), "training.steps=20", "--output", str(tmp_path / "run")]
    first = CliRunner().invoke(cli.app, command)
    assert first.exit_code == 0
    lines = [line for line in first.stderr.splitlines() if line.startswith("step ")]  # for want of a terminal
    assert len(lines) == 20 + 2
    assert re.fullmatch(r"step 20/20: loss \d\.\d+, tau 1", lines[-2])
    assert re.fullmatch(r"step 20/20: eval_loss \d\.\d+", lines[-1])
    weights, losses = (run / "model/model.safetensors").read_bytes(), metrics(run)
    before = (run / "summary.json").stat().st_mtime_ns
    again = CliRunner().invoke(cli.app, command)
    assert again.exit_code == 0
    assert "finished" in again.output
    assert (run / "summary.json").stat().st_mtime_ns == before
    (run / "summary.json").unlink()  # as if killed between the last checkpoint and the end
    (run / "model/model.safetensors").unlink()
    again = CliRunner().invoke(cli.app, [*command, "--resume"])
    assert again.exit_code == 0, again.output
    assert (run / "model/model.safetensors").read_bytes() == weights
    assert metrics(run) == losses
    other = CliRunner().invoke(cli.app, ["train", str(recipe), "training.steps=10", "--output", str(run)])
    assert "training.steps is 20 there and 10 here" in str(other.exception)


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
    assert "steps 0 to 29: tau = 5, F = 1.000" in result.output
    assert "steps 30 to 59: tau = 1, F = 1.000" in result.output
    assert "At tau = 5 the rarest domain, cc, would be passed through" in result.output
    assert "docs/cooldown.md" in result.output
    assert all(domain in result.output for domain in SIZES)


def test_plan_says_that_a_mixture_is_learned(recipe):
    recipe.write_text(re.sub("mixture: .*", "mixture: {method: odm}", recipe.read_text()))
    result = CliRunner().invoke(cli.app, ["plan", str(recipe)], env={"COLUMNS": "160"})
    assert result.exit_code == 0, result.output
    assert "steps 0 to 59: " in result.output
    assert "learns its mixture while it trains: this holds if the mixture stays as it starts" in result.output


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
    result = CliRunner().invoke(cli.app, ["variance", str(tmp_path / "run"), *options], env={"COLUMNS": "160"})
    assert result.exit_code == 0, result.output
    assert all(word in result.output for word in ("aa", "systematic", "scalarization 2", "scalarization 5", "wrote"))
    assert {path.name for path in (tmp_path / "figures").iterdir()} == {"variance_inflation.png", "gradient_norms.png"}
