"""The command line works on a tiny corpus, in separate processes where needed."""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("typer")
pytest.importorskip("transformers")
pytest.importorskip("sentencepiece")

import psutil  # noqa: E402
from typer.testing import CliRunner  # noqa: E402

from pycooldown import __version__, cli  # noqa: E402

torch.set_num_threads(1)  # as in the processes started here, whose sums must agree

ENVIRONMENT = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "COLUMNS": "160"}
SIZES = {"aa": 120, "bb": 40, "cc": 12}


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """Return three tiny languages, packed by the command."""
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
        [sys.executable, "-m", "pycooldown", *map(str, arguments)],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=False,
    )


def metrics(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def kill(recipe, output, watched, ranks):
    """Train, and kill all processes when the watched run's metrics have a random number of lines. Return it."""
    script = Path(sys.executable).with_name("pycooldown")
    program = (
        ["--no-python", script] if script.exists() else ["-m", "pycooldown"]
    )  # the script is missing if only the source tree is used
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}", *program]
    launched = torchrun if ranks > 1 else ["-m", "pycooldown"]
    command = [sys.executable, *launched, "train", str(recipe), "--output", str(output)]
    environment = {**ENVIRONMENT, "PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    path, lines = watched / "metrics.jsonl", random.randint(15, 40)
    while process.poll() is None:
        if path.exists() and path.read_bytes().count(b"\n") >= lines:
            children = psutil.Process(process.pid).children(recursive=True)
            for each in (*children, process):
                each.kill()
            process.wait()
            psutil.wait_procs(children)  # they hold the run's lock until they end
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
@pytest.mark.slow
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
    lines = [
        line for line in first.stderr.splitlines() if line.startswith("step ")
    ]  # printed since there is no terminal
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
    assert "docs/evidence.md" in result.output
    assert all(domain in result.output for domain in SIZES)


def test_plan_says_that_a_mixture_is_learned(recipe):
    recipe.write_text(re.sub("mixture: .*", "mixture: {method: odm}", recipe.read_text()))
    result = CliRunner().invoke(cli.app, ["plan", str(recipe)], env={"COLUMNS": "160"})
    assert result.exit_code == 0, result.output
    assert "steps 0 to 59: " in result.output
    assert "learns its mixture during training. The plan assumes that the first mixture stays" in result.output


def test_overrides_replace_the_recipes_values(recipe):
    result = CliRunner().invoke(cli.app, ["plan", str(recipe), "training.steps=20", "mixture.final_tau=2"])
    assert result.exit_code == 0, result.output
    assert "steps 10 to 19: tau = 2" in result.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["training.stps=3"], "training.stps is unknown; expected steps, batch_size"),
        (["training.steps=many"], "training.steps is 'many' (str); expected one of a whole number, first_exhausted"),
        (["data.domains=[aa, zz]"], "data.domains has 'zz'"),
        (["data.path=nowhere"], "nowhere"),
        (["steps=3"], "steps is unknown; expected data, training, mixture, model, trainer, peft, decoding"),
        (["--size", "aa=1e3", "--unit", "tokens"], "pass --sequence-length"),
        (["--steps", "3"], "pass training.steps=200 instead"),
        (["--method", "tempreature tau=3"], "did you mean temperature?"),
    ],
)
def test_errors_are_one_line_without_a_traceback(recipe, arguments, message):
    result = invoke("plan", recipe, *arguments)
    assert result.returncode == 1
    assert message in result.stderr
    assert "Traceback" not in result.stderr


def test_version_and_module():
    result = invoke("--version")
    assert result.stdout.strip() == f"pycooldown {__version__}"


def test_plan_puts_methods_side_by_side(recipe):
    arguments = ["plan", str(recipe), "--method", "temperature tau=3", "--method", "scalarization tau=3"]
    result = CliRunner().invoke(cli.app, arguments, env={"COLUMNS": "160"})
    assert result.exit_code == 0, result.output
    assert all(word in result.output for word in ("tiny", "temperature tau=3", "scalarization tau=3", *SIZES))
    as_json = json.loads(CliRunner().invoke(cli.app, [*arguments, "--json"]).stdout)["plans"]
    weights = [stages[-1]["domains"]["cc"]["loss_weight"] for stages in as_json.values()]
    assert weights[:2] == [1, 1] != weights[2]


def test_names_are_shown_as_text():
    names = ["[red]xx[/red]", ":smile:", "a\x1b[31mb\x9bc\u202ed"]
    sizes = [argument for name in names for argument in ("--size", f"{name}=1000")]
    command = ["plan", *sizes, "--method", "temperature tau=1", "--steps", "5", "--batch-size", "8"]
    result = CliRunner().invoke(cli.app, command, env={"COLUMNS": "160", "FORCE_COLOR": "1"})
    assert result.exit_code == 0, result.output
    for shown in ("[red]xx[/red]", ":smile:", r"a\x1b[31mb\x9bc\u202ed"):
        assert shown in result.output
    error = invoke("report", "runs/[bold]x\x1b[2J")
    assert r"runs/[bold]x\x1b[2J holds no run" in error.stderr
    assert "\x1b" not in error.stderr


def test_former_names_of_commands(tmp_path, recipe):
    for name, place in (("corpus", "corpus"), ("reproduce", "reproduce"), ("study", "regimes")):
        result = invoke(name, "x", "--seeds", "3")
        assert result.returncode == 1
        assert f"is now `python -m reproduction {place}`" in result.stderr
    result = invoke("compare", recipe, "--seeds", "x")
    assert "`pycooldown compare` is now `pycooldown sweep`" in result.stderr
    assert "--seeds has 'x'" in result.stderr
    shown = CliRunner().invoke(cli.app, ["--help"], env={"COLUMNS": "160"}).output
    assert "sweep" in shown
    assert not re.search(r"│ (compare|corpus|reproduce|study) ", shown)


@pytest.mark.slow
def test_a_sweep_by_two_workers_trains_what_train_does(tmp_path, recipe):
    short = ["training.steps=4", "training.eval_every=4", "training.save_every=4"]
    command = ["sweep", recipe, "mixture.tau=2,5", *short, "--output", tmp_path / "out", "--seeds", "3"]
    result = invoke(*command, "--workers", "2")
    assert result.returncode == 0, result.stderr
    assert "tiny-tau=5" in result.stdout
    assert {path.suffix for path in (tmp_path / "out").glob("sweep*")} == {".md", ".json", ".csv", ".png"}
    alone = ["train", str(recipe), "mixture.tau=5", "training.seed=3", *short, "--output", str(tmp_path / "alone")]
    assert CliRunner().invoke(cli.app, alone).exit_code == 0
    assert without_time(metrics(tmp_path / "out/seed-3/tiny-tau=5")) == without_time(metrics(tmp_path / "alone"))
    before = (tmp_path / "out/seed-3/tiny-tau=2/summary.json").stat().st_mtime_ns
    again = CliRunner().invoke(cli.app, list(map(str, command)), env={"COLUMNS": "160"})
    assert again.exit_code == 0, again.output
    assert "less that of tiny-tau=2, paired over 1 seed(s)" in (tmp_path / "out/sweep.md").read_text()
    assert (tmp_path / "out/seed-3/tiny-tau=2/summary.json").stat().st_mtime_ns == before


def test_a_loss_that_is_not_finite_ends_the_run(tmp_path, recipe):
    run, diverging = tmp_path / "run", ["training.steps=20", "training.learning_rate=1e30", "training.max_grad_norm=0"]
    command = ["train", str(recipe), *diverging, "--output", str(run)]
    result = CliRunner().invoke(cli.app, command)
    assert isinstance(result.exception, FloatingPointError)
    assert re.search(
        r"loss of '\w\w', .* was not finite at step \d+: .*training.allow_non_finite=true", str(result.exception)
    )
    assert not (run / "summary.json").exists()
    assert not list(run.glob("checkpoint-*"))
    allowed = CliRunner().invoke(cli.app, [*command, "training.allow_non_finite=true", "--resume"])
    assert allowed.exit_code == 0, allowed.output
    texts = [*(run / "metrics.jsonl").read_text().splitlines(), (run / "summary.json").read_text()]
    values = [json.loads(text, parse_constant=pytest.fail) for text in texts]
    assert values[-1]["eval_loss"] is None
    report = CliRunner().invoke(cli.app, ["report", str(run), "--figures", str(tmp_path / "figures")])
    assert report.exit_code == 0, report.output
    again = CliRunner().invoke(cli.app, command)
    assert "ended with a loss that is not finite (aa, bb, cc)" in str(again.exception)


def test_a_second_process_is_refused_while_a_run_trains(tmp_path, recipe):
    run, command = tmp_path / "run", ["train", str(recipe), "training.steps=20", "--output", str(tmp_path / "run")]
    holder = "import sys, time; from pathlib import Path; from pycooldown.recipes.run_lock import lock_run\n"
    holder += "with lock_run(Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"
    process = subprocess.Popen([sys.executable, "-c", holder, str(run)], stdout=subprocess.PIPE, env=ENVIRONMENT)
    assert process.stdout.readline() == b"held\n"
    for resume in ([], ["--resume"]):
        refused = CliRunner().invoke(cli.app, [*command, *resume])
        assert f"{run} is in use by process {process.pid} on " in str(refused.exception)
    assert {path.name for path in run.iterdir()} == {"run.lock"}
    process.kill()
    process.wait()
    assert CliRunner().invoke(cli.app, command).exit_code == 0


def test_help_loads_nothing_heavy():
    code = (
        "import sys; from pycooldown import cli; from typer.testing import CliRunner; "
        "assert CliRunner().invoke(cli.app, ['--help']).exit_code == 0; "
        "heavy = {'torch', 'transformers', 'matplotlib', 'webdataset', 'numba', 'pydantic', 'yaml'}; "
        "print(sorted(heavy & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_variance_of_a_run(recipe, tmp_path):
    run = ["training.steps=4", "training.eval_every=4", "training.save_every=4"]
    trained = CliRunner().invoke(cli.app, ["train", str(recipe), *run, "--output", str(tmp_path / "run")])
    assert trained.exit_code == 0, trained.output
    options = ["--tau", "2,5", "--batches", "4", "--figures", str(tmp_path / "figures")]
    result = CliRunner().invoke(cli.app, ["variance", str(tmp_path / "run"), *options], env={"COLUMNS": "160"})
    assert result.exit_code == 0, result.output
    assert all(word in result.output for word in ("aa", "systematic", "scalarization 2", "scalarization 5", "wrote"))
    assert {path.name for path in (tmp_path / "figures").iterdir()} == {"variance_inflation.png", "gradient_norms.png"}
