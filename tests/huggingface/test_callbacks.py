"""The metrics of a run are written while it trains."""

import json
import math
from types import SimpleNamespace

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from pycooldown.huggingface.callbacks import MetricsFile


def state(step):
    return SimpleNamespace(global_step=step)


def refuse(constant):
    raise AssertionError(f"{constant} is not valid JSON")


def test_metrics_are_valid_json_whatever_is_logged(tmp_path):
    metrics = MetricsFile(tmp_path / "metrics.jsonl")
    metrics.on_train_begin(None, state(0), None)
    for step, value in enumerate([1.5, math.nan, math.inf, -math.inf], 1):
        metrics.on_log(None, state(step), None, logs={"loss": value, "grad_norm": value})
    metrics.on_log(None, state(5), None, logs={"eval_loss": 2.0, "eval_runtime": 1.0, "eval_samples_per_second": 2.0})
    lines = [json.loads(x, parse_constant=refuse) for x in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line.get("loss") for line in lines] == [1.5, None, None, None, None]
    assert set(lines[-1]) == {"step", "seconds", "eval_loss"}
    metrics.on_train_begin(None, state(2), None)  # resumed at step 2
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 2
