"""MixtureTrainer evaluates and predicts with metrics, logits and generation, and exact losses by domain."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from accelerate.utils import gather_object  # noqa: E402
from test_fuse_loss import VOCABULARY as WORDS  # noqa: E402
from test_fuse_loss import make, own_losses  # noqa: E402
from test_fuse_loss_training import SIZES as PAIR_SIZES  # noqa: E402
from test_fuse_loss_training import Pairs, inputs_of  # noqa: E402
from test_fuse_loss_training import collate as collate_pairs  # noqa: E402
from test_trainer import SIZES, VOCABULARY, Sequences, collate, flip, losses, make_trainer, switching, tiny_model  # noqa: E402

from pycooldown import Mixture, schedules  # noqa: E402
from pycooldown.huggingface import MixtureTrainerMixin  # noqa: E402

torch.set_num_threads(1)


def token_losses(indices):
    """Return the sums of losses and numbers of tokens of samples, computed by a model without the trainer."""
    model, sums = tiny_model().eval(), []
    for i in indices:
        row = torch.tensor([Sequences()[i]])
        with torch.no_grad():
            sums.append((float(model(row, labels=row).loss) * (row.shape[1] - 1), row.shape[1] - 1))
    return np.array(sums)


def accuracy(prediction):
    """Return the share of next tokens that are predicted."""
    chosen, labels = prediction.predictions[:, :-1], prediction.label_ids[:, 1:]
    return {"accuracy": float((chosen == labels)[labels != -100].mean())}


def test_metrics_see_logits_and_predict_gives_them(tmp_path):
    seen = []

    def preprocess(logits, labels):
        seen.append((logits.shape[-1], labels.shape))
        return logits.argmax(-1)

    options = {"compute_metrics": accuracy, "preprocess_logits_for_metrics": preprocess}
    trainer = make_trainer(tmp_path, switching(), evaluate=True, learning_rate=0.0, more=options)
    metrics = trainer.evaluate()
    model, right, count = tiny_model().eval(), 0, 0
    for i in range(VOCABULARY):
        row = torch.tensor([Sequences()[i]])
        with torch.no_grad():
            right += int((model(row).logits[0, :-1].argmax(-1) == row[0, 1:]).sum())
        count += row.shape[1] - 1
    assert metrics["eval_accuracy"] == pytest.approx(right / count)
    assert {width for width, _ in seen} == {VOCABULARY}
    sums = token_losses(range(VOCABULARY))
    assert metrics["eval_loss"] == pytest.approx(sums[:, 0].sum() / sums[:, 1].sum(), rel=1e-5)
    assert metrics["eval_loss/small"] == pytest.approx(sums[-8:, 0].sum() / sums[-8:, 1].sum(), rel=1e-5)
    assert metrics["eval_runtime"] > 0

    trainer.preprocess_logits_for_metrics = trainer.compute_metrics = None
    predicted = trainer.predict(Sequences(0, 7))
    assert predicted.predictions.shape == (*predicted.label_ids.shape, VOCABULARY)
    assert predicted.metrics["test_loss"] == pytest.approx(sums[:7, 0].sum() / sums[:7, 1].sum(), rel=1e-5)
    by_domain = trainer.predict({"small": Sequences(56, 8)}, metric_key_prefix="held_out")
    assert by_domain.metrics["held_out_loss/small"] == pytest.approx(metrics["eval_loss/small"])
    labels_only = make_trainer(tmp_path, switching(), collator=lambda rows: {"input_ids": collate(rows)["input_ids"]})
    assert labels_only.predict(Sequences(0, 7)).predictions.shape[0] == 7  # without labels there is no loss


@pytest.mark.parametrize("given", ["at the start", "in the call"])
def test_a_dataset_without_domains_has_one_loss(tmp_path, given):
    trainer = make_trainer(
        tmp_path, switching(), more={"eval_dataset": Sequences(0, 9)} if given != "in the call" else {}
    )
    metrics = trainer.evaluate(Sequences(0, 9) if given == "in the call" else None)
    sums = token_losses(range(9))
    assert metrics["eval_loss"] == pytest.approx(sums[:, 0].sum() / sums[:, 1].sum(), rel=1e-5)
    assert not [name for name in metrics if "/" in name]


@pytest.mark.parametrize("kind", ["column", "by domain"])
def test_predictions_are_in_the_order_of_the_samples(tmp_path, kind):
    datasets = pytest.importorskip("datasets")
    order = [45, 3, 60, 44, 2, 61, 1]  # of mid, big, small, ...
    names = np.repeat(list(SIZES), list(SIZES.values()))

    def samples(numbers):
        return datasets.Dataset.from_list([{"input_ids": Sequences()[i], "language": str(names[i])} for i in numbers])

    def collate_rows(found):
        return collate([row["input_ids"] for row in found])

    given = samples(order) if kind == "column" else {"small": samples([60, 59]), "big": samples([7, 5, 6])}
    more = {"domain_column": "language"}
    trainer = make_trainer(tmp_path, switching(), dataset=samples(range(VOCABULARY)), collator=collate_rows, more=more)
    output = trainer.predict(given)
    expected = order if kind == "column" else [60, 59, 7, 5, 6]
    assert output.label_ids[:, 0].tolist() == [Sequences()[i][0] for i in expected]
    for domain in ("big", "small"):
        sums = token_losses([i for i in expected if names[i] == domain])
        assert output.metrics[f"test_loss/{domain}"] == pytest.approx(sums[:, 0].sum() / sums[:, 1].sum(), rel=1e-5)


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        (None, "eval_dataset is missing"),
        ("big", "eval_dataset = 'big'; expected"),
        ({"large": Sequences(0, 3)}, "eval_dataset names 'large'"),
        ({"big": Sequences(0, 0)}, "eval_dataset of domain 'big' is empty"),
    ],
)
def test_what_cannot_be_evaluated_is_an_error(tmp_path, dataset, message):
    with pytest.raises(ValueError, match=message):
        make_trainer(tmp_path, switching()).evaluate(dataset)


class Seq2SeqMixture(MixtureTrainerMixin, transformers.Seq2SeqTrainer):
    pass


def test_generation_in_a_seq2seq_trainer(tmp_path):
    seen = []

    def lengths(prediction):
        seen.append((prediction.predictions, prediction.label_ids))
        return {"length": float((prediction.predictions != 0).sum(1).mean())}

    args = transformers.Seq2SeqTrainingArguments(
        output_dir=str(tmp_path),
        max_steps=2,
        per_device_train_batch_size=4,
        per_device_eval_batch_size=4,
        eval_strategy="steps",
        eval_steps=2,
        predict_with_generate=True,
        generation_max_length=5,
        learning_rate=0.0,
        label_smoothing_factor=0.2,
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        save_strategy="no",
    )
    model = make("t5")
    trainer = Seq2SeqMixture(
        model,
        args,
        schedule=schedules.constant(Mixture.proportional(PAIR_SIZES)),
        train_dataset=Pairs(),
        eval_dataset={"a": Pairs(6)},
        data_collator=lambda samples: inputs_of(collate_pairs(samples)),
        compute_metrics=lengths,
    )
    trainer.train()
    entry = [e for e in trainer.state.log_history if "eval_loss" in e][-1]
    rows = inputs_of(collate_pairs([Pairs()[i] for i in range(6)]))
    losses = own_losses(model.eval(), rows)
    assert entry["eval_loss/a"] == entry["eval_loss"]
    assert entry["eval_loss"] == pytest.approx(float(losses.sum() / (losses != 0).sum()), rel=1e-5)
    expected = model.generate(**{k: v for k, v in rows.items() if k != "labels"}, max_length=5, do_sample=False)
    predictions = seen[-1][0]
    assert predictions.shape[0] == 6
    assert (predictions[:, : expected.shape[1]] == expected.numpy()).all()
    assert entry["eval_length"] > 0
    assert trainer.predict({"b": Pairs(3)}, max_length=4).predictions.max() < WORDS


def rank_of_two(folder):
    """Evaluate on one of two ranks. The last batch is filled up with samples that must count only once."""
    trainer = make_trainer(
        Path(folder) / "two", switching(), batch_size=6, evaluate=True, more={"compute_metrics": count_predictions}
    )
    metrics = trainer.evaluate()
    predicted = trainer.predict({"small": Sequences(56, 7)})
    if trainer.is_world_process_zero():
        kept = {name: value for name, value in metrics.items() if "loss" in name or "count" in name}
        outcome = {**kept, **predicted.metrics, "predictions": len(predicted.predictions)}
        (Path(folder) / "metrics.json").write_text(json.dumps(outcome))
    resume_from_damage(Path(folder) / "damaged")
    torch.distributed.destroy_process_group()


def resume_from_damage(folder):
    """Check that both ranks resume from the same older checkpoint if a file that one of them reads is damaged."""
    options = {"batch_size": 6, "steps": 6, "save_strategy": "steps", "save_steps": 2}
    whole = make_trainer(folder, switching(), **options)
    whole.train()
    if whole.is_world_process_zero():
        flip(folder / "checkpoint-6", "rng_state_1.pth")
        flip(folder / "checkpoint-4", "optimizer.pt")
    whole.accelerator.wait_for_everyone()
    resumed, begin = make_trainer(folder, switching(), **options), Begin()
    resumed.add_callback(begin)
    resumed.train(resume_from_checkpoint=True)
    assert losses(resumed) == losses(whole)
    everyone = gather_object([begin.step])
    assert everyone == [2, 2], everyone


class Begin(transformers.TrainerCallback):
    """Record the step at which training begins."""

    def on_train_begin(self, args, state, control, **kwargs):
        self.step = state.global_step


def count_predictions(prediction):
    return {"count": len(prediction.predictions)}


@pytest.mark.slow
def test_two_ranks_evaluate_each_sample_once(tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", __file__]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    ranks = subprocess.run([*command, str(tmp_path)], env=environment, capture_output=True, text=True, check=False)
    assert ranks.returncode == 0, ranks.stderr
    found = json.loads((tmp_path / "metrics.json").read_text())
    one = make_trainer(tmp_path, switching(), evaluate=True).evaluate()
    for name in ("eval_loss", *(f"eval_loss/{domain}" for domain in SIZES)):
        assert found[name] == pytest.approx(one[name], rel=1e-6)
    sums = token_losses(range(56, 63))
    assert found["test_loss/small"] == pytest.approx(sums[:, 0].sum() / sums[:, 1].sum(), rel=1e-5)
    assert (found["eval_count"], found["predictions"]) == (VOCABULARY, 7)


if __name__ == "__main__":
    rank_of_two(sys.argv[1])
