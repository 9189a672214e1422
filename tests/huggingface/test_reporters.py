"""TensorBoard and Weights & Biases get groups by quantity, and histograms if there are many domains."""

import inspect
import json

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from test_trainer import VOCABULARY, make_trainer  # noqa: E402
from torch.utils.tensorboard import SummaryWriter  # noqa: E402
from transformers import TrainingArguments  # noqa: E402
from transformers.integrations import TensorBoardCallback  # noqa: E402

from pycooldown import Mixture, domain_log, schedules  # noqa: E402
from pycooldown.huggingface.reporters import SHOWN_DOMAINS  # noqa: E402
from pycooldown.huggingface.trainer_logs import LOGGED_DOMAINS  # noqa: E402

event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
torch.set_num_threads(1)


def trainer_of(path, num_domains, **options):
    sizes = {f"d{i}": 8 + i % 3 for i in range(num_domains)}
    data = [[i % VOCABULARY, 1, 2] for i in range(sum(sizes.values()))]
    more = {"eval_dataset": {domain: [[1, 2, 3]] for domain in sizes}}
    return make_trainer(path, schedules.constant(Mixture.proportional(sizes)), dataset=data, more=more, **options)


def events(folder):
    found = event_accumulator.EventAccumulator(str(folder), size_guidance={"scalars": 0, "histograms": 0})
    found.Reload()
    return found


@pytest.mark.parametrize("how", ["by report_to", "by add_callback"])
def test_tensorboard_has_a_group_for_each_quantity_and_a_chart_of_its_domains(tmp_path, monkeypatch, how):
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "events"))
    trainer = trainer_of(tmp_path, 3, steps=2, report_to="tensorboard" if how == "by report_to" else "none")
    if how == "by add_callback":
        trainer.add_callback(TensorBoardCallback)
    trainer.train()
    logged = next(entry for entry in trainer.state.log_history if "loss" in entry)
    trainer.evaluate()
    found = events(tmp_path / "events")
    tags = found.Tags()
    groups = {tag.partition("/")[0] for tag in tags["scalars"]}
    assert groups == {
        *("train", "eval", "eval_loss"),
        *("loss", "tokens", "samples", "epochs", "q", "v", "target", "share"),
    }
    assert found.Scalars("q/d1")[0].value == pytest.approx(logged["q/d1"])
    assert found.Scalars("train/loss")[0].value == pytest.approx(logged["loss"])
    assert not [tag for tag in tags["scalars"] if tag.count("/") > 1]
    assert tags["histograms"] == []  # three values make no histogram
    layout = found.Tensors("custom_scalars__config__")
    assert b"^q/.*" in layout[0].tensor_proto.string_val[0]


@pytest.mark.parametrize("how", ["writer", "environment", "argument", "default"])
def test_all_events_are_in_the_folder_that_was_chosen(tmp_path, monkeypatch, how):
    """Whatever the version of transformers reads itself; those after training too, when its callback has closed it."""
    monkeypatch.delenv("TENSORBOARD_LOGGING_DIR", raising=False)
    options = {}
    if how == "environment":
        monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "events"))
    if how == "argument":
        if "logging_dir" not in inspect.signature(TrainingArguments).parameters:
            pytest.skip("this version has no such argument")
        options = {"logging_dir": str(tmp_path / "events")}
    trainer = trainer_of(tmp_path / "run", 3, steps=1, report_to="none", **options)
    trainer.add_callback(TensorBoardCallback(SummaryWriter(str(tmp_path / "events")) if how == "writer" else None))
    trainer.train()
    trainer.evaluate()
    (folder,) = {path.parent for path in tmp_path.rglob("events.out.tfevents.*")}
    assert folder == tmp_path / "events" if how != "default" else folder.parent == tmp_path / "run/runs"
    assert {"train/loss", "eval/loss", "eval_loss/d1"} <= set(events(folder).Tags()["scalars"])


def test_many_domains_are_histograms_and_few_charts(tmp_path, monkeypatch):
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "events"))
    trainer = trainer_of(tmp_path, LOGGED_DOMAINS + 36, steps=1, report_to="tensorboard")
    trainer.train()
    trainer.evaluate()
    found = events(tmp_path / "events")
    tags = found.Tags()
    assert len([tag for tag in tags["scalars"] if tag.startswith("q/")]) == SHOWN_DOMAINS
    assert "eval_loss/all domains" in tags["histograms"]
    assert found.Histograms("q/all domains")[0].histogram_value.num == LOGGED_DOMAINS + 36
    assert found.Histograms("loss/all domains")[0].histogram_value.num <= 12  # only domains that were drawn


def test_the_history_of_many_domains_is_in_a_file_and_the_log_stays_small(tmp_path):
    trainer = trainer_of(tmp_path, 1_000, steps=4, eval_strategy="steps", eval_steps=2)
    trainer.train()
    records = domain_log.read(tmp_path / domain_log.TRAINING)
    assert records["step"].tolist() == [1, 2, 3, 4]
    assert records["samples"].sum(axis=1).tolist() == [12, 24, 36, 48]
    np.testing.assert_allclose(records["q"][2], trainer.sampler.mixture(2).sampling, rtol=1e-6)
    assert np.isfinite(records["loss"][0]).sum() == (records["samples"][0] > 0).sum()
    evaluated = domain_log.read(tmp_path / domain_log.EVALUATION)
    assert evaluated["step"].tolist() == [2, 4]
    assert np.isfinite(evaluated["eval_loss"]).all()
    for entry in trainer.state.log_history:  # 2,000 such logs take at most 12 MB of a checkpoint
        assert len(json.dumps(entry)) < 6_000


def test_a_users_own_callback_is_kept(tmp_path):
    class Mine(TensorBoardCallback):
        pass

    trainer = trainer_of(tmp_path, 3)
    trainer.add_callback(Mine)
    assert [type(c) for c in trainer.callback_handler.callbacks if isinstance(c, TensorBoardCallback)] == [Mine]
    trainer.remove_callback(TensorBoardCallback)
    assert not [c for c in trainer.callback_handler.callbacks if isinstance(c, TensorBoardCallback)]


def test_metrics_with_a_slash_that_name_no_domain_are_logged_as_trainer_does(tmp_path, monkeypatch):
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "events"))
    trainer = trainer_of(tmp_path, 3, steps=1, report_to="tensorboard")
    trainer.train()
    trainer.log({"eval_f1/macro": 0.5, "depth/d1": 2.0})
    tags = events(tmp_path / "events").Tags()["scalars"]
    assert {"eval/f1/macro", "train/depth/d1"} <= set(tags)


def test_weights_and_biases_gets_sections_and_histograms(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    for name, value in {"WANDB_MODE": "offline", "WANDB_DIR": str(tmp_path), "WANDB_SILENT": "true"}.items():
        monkeypatch.setenv(name, value)
    trainer = trainer_of(tmp_path, 20, steps=2, report_to="wandb")
    trainer.train()
    found = dict(wandb.run.summary)
    wandb.finish()
    assert found["train/global_step"] == 2
    assert found["train/loss"] > 0
    assert len(found["q/all domains"]["values"]) > 1  # a histogram
    assert len([key for key in found if key.startswith("q/")]) == SHOWN_DOMAINS + 1
    assert not [key for key in found if key.startswith("train/q")]
