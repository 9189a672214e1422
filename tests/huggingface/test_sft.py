"""TRL's SFTTrainer trains on a mixture, with its batches, weights, metrics and packing by domain."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
trl = pytest.importorskip("trl")
datasets = pytest.importorskip("datasets")
tokenizers = pytest.importorskip("tokenizers")

from test_trainer import losses, tiny_model  # noqa: E402

from pycooldown import Mixture, schedules  # noqa: E402
from pycooldown.huggingface import MixtureSFTMixin  # noqa: E402

torch.set_num_threads(1)

WORDS = 64
SIZES = {"en": 30, "sw": 12}


class MixtureSFTTrainer(MixtureSFTMixin, trl.SFTTrainer):
    pass


def tokenizer():
    vocabulary = {"<pad>": 0, "<eos>": 1, **{f"w{i}": i for i in range(2, WORDS)}}
    model = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="<pad>"))
    model.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=model, pad_token="<pad>", eos_token="<eos>")


def texts(domain):
    first = 2 if domain == "en" else 40
    return [{"text": " ".join(f"w{first + (i * k) % 20}" for k in range(1, 5 + i % 4))} for i in range(SIZES[domain])]


def sources():
    return {domain: datasets.Dataset.from_list(texts(domain)) for domain in SIZES}


def scalarized(sizes):
    return schedules.constant(Mixture.scalarization({domain: sizes[domain] for domain in SIZES}, 5.0))


def make_sft(
    path, *, steps=3, accumulation=1, kind=MixtureSFTTrainer, learning_rate=0.0, more=None, train=None, **options
):
    args = trl.SFTConfig(
        output_dir=str(path),
        max_steps=steps,
        per_device_train_batch_size=6 // accumulation,
        gradient_accumulation_steps=accumulation,
        learning_rate=learning_rate,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        bf16=False,
        **{"gradient_checkpointing": False, "max_length": 12, **options},
    )
    extra = {"schedule": scalarized, **(more or {})}
    data = sources() if train is None else train
    return kind(tiny_model(), args, train_dataset=data, processing_class=tokenizer(), **extra)


def expected(trainer, step):
    """Return the mixture's loss of a step and its weighted tokens, computed by a model without the trainer."""
    plan, model = trainer.sampler.plan(step), tiny_model().eval()
    total, tokens = 0.0, 0
    for index, domain in zip(plan.indices.tolist(), plan.domain_ids.tolist()):
        row = trainer.train_dataset[index].sample
        ids = torch.tensor([row["input_ids"]])
        labels = torch.tensor([row.get("labels", row["input_ids"])])
        if "seq_lengths" in row:
            starts = np.cumsum([0, *row["seq_lengths"]])[:-1]
            pieces = [ids[:, b : b + n] for b, n in zip(starts, row["seq_lengths"])]
        else:
            pieces = [ids]
        for piece in pieces:
            with torch.no_grad():
                logits = model(piece).logits[0, :-1]
            loss = torch.nn.functional.cross_entropy(logits, piece[0, 1:], reduction="sum")
            total += plan.mixture.loss_weights[domain] * float(loss)
            tokens += piece.shape[1] - 1
        assert labels.shape == ids.shape
    return total / tokens


@pytest.mark.parametrize(
    "options", [{}, {"accumulation": 3}, {"padding_free": True, "max_length": None}, {"packing": True}], ids=str
)
def test_sft_trains_on_the_mixture(tmp_path, options):
    trainer = make_sft(tmp_path, **options)
    trainer.train()
    for step, loss in enumerate(losses(trainer)):
        assert loss == pytest.approx(expected(trainer, step), rel=1e-4)
    last = [entry for entry in trainer.state.log_history if "loss" in entry][-1]
    assert {"entropy", "mean_token_accuracy", "num_tokens", "share/sw", "v/sw"} <= set(last)
    assert sum(trainer.sampler.exposure(3).draws) == 18
    if options.get("packing"):
        assert len(trainer.train_dataset) < sum(SIZES.values())
    else:
        assert len(trainer.train_dataset) == sum(SIZES.values())


def test_sft_evaluates_by_domain_and_moves_the_weights(tmp_path):
    more = {"eval_dataset": {"sw": sources()["sw"]}}
    trainer = make_sft(tmp_path, steps=20, learning_rate=0.05, more=more)
    before = trainer.evaluate()
    trainer.train()
    after = trainer.evaluate()
    assert before["eval_loss"] == before["eval_loss/sw"]
    assert after["eval_loss/sw"] < before["eval_loss/sw"] - 0.5
    assert trainer.evaluate(sources())["eval_loss/en"] > 0


@pytest.mark.parametrize("packing", [False, True])
def test_sft_evaluates_a_dataset_with_a_column_of_domains(tmp_path, packing):
    rows = [{**row, "language": domain} for domain in ("sw", "en") for row in texts(domain)[:5]]
    column = datasets.Dataset.from_list(rows).shuffle(seed=1)
    more = {"eval_dataset": {d: datasets.Dataset.from_list(texts(d)[:5]) for d in SIZES}}
    wanted = make_sft(tmp_path, more=more).evaluate()  # documents in packed rows have the losses that they have alone
    trainer = make_sft(
        tmp_path, packing=packing, more={"eval_dataset": column, "domain_column": "language"}, train=column
    )
    by_domain = make_sft(tmp_path, packing=packing, more=more)
    for found in (by_domain.evaluate(), trainer.evaluate(), trainer.evaluate(column)):
        for name in ("eval_loss", "eval_loss/en", "eval_loss/sw"):
            assert found[name] == pytest.approx(wanted[name], rel=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss_type": "dft"}, "loss_type = 'dft'; expected 'nll'"),
        ({"label_smoothing_factor": 0.1}, r"label_smoothing_factor = 0\.1; expected 0"),
        ({"more": {"probe": object()}}, "probe is not supported with SFTTrainer"),
        (
            {"more": {"schedule": scalarized(SIZES)}, "packing": True},
            r"'en' has \d+ samples in train_dataset but 30 in the schedule",
        ),
    ],
)
def test_what_sft_cannot_have_is_refused(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        make_sft(tmp_path, **options)
