"""An encoder-decoder trains on pairs with the right losses, and BLEU is computed on plain text."""

import io
import json
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("sacrebleu")

from safetensors.torch import load_file  # noqa: E402

from pycooldown.data.manifest import load_manifest  # noqa: E402
from pycooldown.data.pack import pack  # noqa: E402
from pycooldown.huggingface.batches import PackedPairs, packed_ids  # noqa: E402
from pycooldown.huggingface.fused_loss import fuse_loss  # noqa: E402
from pycooldown.huggingface.probe import Probe  # noqa: E402
from pycooldown.recipes import load_recipe, train  # noqa: E402
from pycooldown.recipes.build import assemble  # noqa: E402
from pycooldown.recipes.corpus import open_corpus  # noqa: E402
from pycooldown.recipes.gradient_variance import RunGradients, measure_run  # noqa: E402
from pycooldown.recipes.learning_rate_decay import exponential  # noqa: E402
from pycooldown.recipes.models import build_model  # noqa: E402
from pycooldown.recipes.trainer_arguments import arguments  # noqa: E402
from pycooldown.recipes.translation import Translation, score  # noqa: E402

torch.set_num_threads(1)

SIZES = {"aa": 60, "zh-Hans": 14}


def _npy(array, *, version=(1, 0), **options):
    """Return the bytes of an .npy file."""
    np.lib.format.write_array(file := io.BytesIO(), array, version, **options)
    return file.getvalue()


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    """Return pairs by domain and split, with punctuation and signs that a tokenizer could damage."""
    words, texts = random.Random(0), {}
    for language, size in SIZES.items():
        for split, count in (("train", size), ("validation", 8)):
            texts[language, split] = [
                (
                    " ".join(words.choices(["turn", "on", "the", "light.", "door"], k=4)),
                    "  ".join(words.choices([f"{c}{language}" for c in ["é,", "l", "«m»", "開", "{n}"]], k=5)),
                )
                for _ in range(count)
            ]
    return texts


@pytest.fixture(scope="module")
def packed(texts, tmp_path_factory):
    corpus, out = tmp_path_factory.mktemp("corpus"), tmp_path_factory.mktemp("packed") / "data"
    for (language, split), pairs in texts.items():
        (corpus / language).mkdir(exist_ok=True)
        rows = [json.dumps({"key": f"{split}{i}", "src": s, "tgt": t}) + "\n" for i, (s, t) in enumerate(pairs)]
        (corpus / language / f"{split}.jsonl").write_text("".join(rows))
    pack(corpus, out, vocabulary_size=330)
    return out


@pytest.fixture
def recipe(tmp_path, packed):
    def load(mixture="{method: scalarization, tau: 5}", *overrides):
        path = tmp_path / "tiny.yaml"
        path.write_text(
            f"""
data: {{path: {packed}, max_length: 40, eval_samples: 8}}
mixture: {mixture}
model: {{family: marian, layers: 1, width: 16, heads: 2, mlp_width: 32}}
training: {{steps: 10, batch_size: 8, learning_rate: 0.01, decay: inverse_sqrt, warmup: 4, label_smoothing: 0.1,
            betas: [0.9, 0.98], log_every: 1, eval_every: 5, save_every: 5}}
decoding: {{samples: 5, beams: 2}}
"""
        )
        return load_recipe(path, overrides)

    return load


@pytest.mark.parametrize(
    "mixture",
    [
        "{method: scalarization, tau: 5}",
        "{method: fgls, variance_aware: true, interval: 2, probe_size: 2, hold_out: 0.2}",
        "{method: doremi}",
    ],
)
def test_a_recipe_trains_translates_and_scores_plain_text(tmp_path, recipe, texts, mixture):
    run = train(recipe(mixture), tmp_path / "run", progress=False)
    # The rate of Vaswani et al. rises for 4 steps and then falls with the square root of the step.
    rates = [entry["learning_rate"] for entry in run.train]
    assert rates == pytest.approx([0, *(0.01 * min(k / 4, (4 / k) ** 0.5) for k in range(1, 10))])
    lines = [json.loads(line) for line in (tmp_path / "run/translations.jsonl").read_text().splitlines()]
    assert [line["domain"] for line in lines] == ["aa"] * 5 + ["zh-Hans"] * 5
    spread = np.linspace(0, 7, 5).astype(int)
    for language in SIZES:
        pairs = [(line["source"], line["reference"]) for line in lines if line["domain"] == language]
        assert pairs == [texts[language, "validation"][i] for i in spread]
    expected = score(Translation(**line) for line in lines)
    for language in SIZES:
        entry = run.summary["domains"][language]
        assert {name: entry[name] for name in ("bleu", "chrf")} == expected[language]
    assert not (tmp_path / "run-proxy/translations.jsonl").exists()


def test_losses_are_those_of_the_model_and_smoothed_in_training_only(tmp_path, recipe):
    chosen = recipe()
    manifest = load_manifest(Path(chosen.data.path))
    trainer = assemble(chosen, open_corpus(chosen.data), arguments(chosen, tmp_path / "run", False))
    inputs = next(iter(trainer.get_train_dataloader()))
    model, v = trainer.model.train(), torch.tensor(trainer.schedule.mixture(0).loss_weights)
    loss = trainer.compute_loss(model, dict(inputs)).detach()
    evaluated, domain_ids = trainer.evaluate(), inputs.pop("domain_ids")
    trainer.fused.undo()
    with torch.no_grad():
        own = model(**inputs)
    tokens = torch.nn.functional.cross_entropy(
        own.logits.transpose(1, 2), inputs["labels"], label_smoothing=0.1, reduction="none"
    )
    valid = inputs["labels"] != -100
    assert float(loss) == pytest.approx(float((tokens.sum(1) * v[domain_ids]).sum() / valid.sum()), rel=1e-5)
    collate, pairs = PackedPairs(40, manifest.tokenizer.pad_id), trainer.eval_dataset.dataset
    for domain, part in pairs.datasets.items():
        with torch.no_grad():
            expected = model(**collate([part[i] for i in range(len(part))])).loss  # the loss of Hugging Face's model
        assert evaluated[f"eval_loss/{domain}"] == pytest.approx(float(expected), rel=1e-5)


def test_gradient_variance_of_a_translation_run(tmp_path, recipe):
    """The variance is that of the trained weights and the smoothed loss, and is near the closed form."""
    run = train(recipe("{method: scalarization, tau: 5}", "training.steps=5"), tmp_path / "run", progress=False)
    gradients = RunGradients.load(run.path)
    samples = [gradients.dataset[i] for i in (0, 3, 61)]
    with torch.no_grad():
        losses = gradients.losses(gradients.model, samples)
    for one, loss in zip(samples, losses, strict=True):
        pair = PackedPairs(40, 3)([one])
        logits = gradients.model(**pair).logits[0]
        expected = torch.nn.functional.cross_entropy(logits, pair["labels"][0], label_smoothing=0.1)
        assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    weights = load_file(run.path / "model/model.safetensors")
    for name, value in gradients.model.state_dict().items():
        assert name not in weights or value.equal(weights[name])
    _, (multinomial, *_) = measure_run(run.path, [5.0], num_batches=24)
    assert multinomial.trace.value == pytest.approx(multinomial.predicted.value, rel=0.5)


def test_pairs_are_cut_and_padded_and_the_decoder_is_given_what_precedes_each_label():
    samples = [_sample([1, 4, 9, 2], [1, 7, 2]), _sample([1, 4, 2], [1, 5, 6, 7, 8, 2])]
    batch = PackedPairs(5, pad_id=3)(samples)
    assert {name: value.tolist() for name, value in batch.items()} == {
        "input_ids": [[1, 4, 9, 2], [1, 4, 2, 3]],
        "attention_mask": [[1, 1, 1, 1], [1, 1, 1, 0]],
        "decoder_input_ids": [[1, 7, 2, 3], [1, 5, 6, 7]],
        "labels": [[7, 2, -100, -100], [5, 6, 7, 8]],
    }


@pytest.mark.parametrize("dtype", ["uint16", "int32", ">u4"])
@pytest.mark.parametrize("count", [0, 1, 31, 70_000])
def test_packed_ids_are_what_numpy_reads(count, dtype):
    np.save(file := io.BytesIO(), np.random.default_rng(0).integers(60_000, size=count).astype(dtype))
    found, expected = packed_ids({"src.npy": file.getvalue()}, "src"), np.load(io.BytesIO(file.getvalue()))
    np.testing.assert_array_equal(found, expected)
    assert found.dtype == expected.dtype


@pytest.mark.parametrize(
    ("file", "message"),
    [
        (_npy(np.arange(9, dtype=np.uint16))[:-1], "17 bytes after the header; expected 9 ids of uint16"),
        (_npy(np.arange(9, dtype=np.uint16)) + b"xy", "20 bytes after the header; expected 9 ids of uint16"),
        (_npy(np.arange(9, dtype=np.uint16)).replace(b"(9,)", b"(8,)"), "18 bytes after the header; expected 8 ids"),
        (_npy(np.arange(9, dtype=np.uint16)).replace(b"\x76\0{", b"\x5b\0{"), "expected 9 ids"),
        (_npy(np.arange(9, dtype=np.uint16)).replace(b"'descr'", b"'descr)"), ""),
        (_npy(np.arange(9, dtype=np.uint16)).replace(b"'<u2'", b"'<,2'"), ""),
        (_npy(np.arange(9, dtype=np.uint16))[:60], "header"),
        (_npy(np.arange(9, dtype=np.uint16))[:5], "magic"),
        (b"", "magic"),
        (b"PK" + _npy(np.arange(9, dtype=np.uint16))[2:], "magic"),
        (_npy(np.arange(9.0)), "expected one dimension of integers"),
        (_npy(np.ones((3, 3), dtype=np.uint16)), "expected one dimension of integers"),
        (_npy(np.array([[1], "a"], dtype=object), allow_pickle=True), "expected one dimension of integers"),
        (_npy(np.arange(9, dtype=np.uint16), version=(2, 0)), r"expected \(1, 0\)"),
    ],
)
def test_files_that_hold_no_ids_are_refused(file, message):
    with pytest.raises(ValueError, match=f"tgt.npy of a sample has no token ids.*{message}"):
        packed_ids({"tgt.npy": file}, "tgt")


def _sample(source, target):
    sides = {}
    for name, ids in (("src", source), ("tgt", target)):
        np.save(file := io.BytesIO(), np.array(ids, dtype=np.uint16))
        sides[f"{name}.npy"] = file.getvalue()
    return sides


def test_scores_are_of_words_of_the_language():
    chinese = [
        Translation("zh-Hans", "", "打开客厅的灯吧", "打开厨房的灯吧"),
        Translation("de", "", "gut so", "gut so"),
    ]
    scores = score(chinese)
    assert scores["de"]["chrf"] == pytest.approx(100)
    # Cut at spaces, the text would be one word, and BLEU would be 0.
    assert 0 < scores["zh-Hans"]["bleu"] < 100
    assert score([Translation("de", "", "ein Satz mit Wörtern", "ein Satz mit Wörtern")])["de"][
        "bleu"
    ] == pytest.approx(100)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_probes_see_through_padding(tmp_path, recipe, attention):
    chosen = recipe()
    chosen = replace(chosen, model=replace(chosen.model, attn_implementation=attention))
    tokenizer = load_manifest(Path(chosen.data.path)).tokenizer
    model, collate = build_model(chosen.model, open_corpus(chosen.data)), PackedPairs(40, tokenizer.pad_id)
    samples = [_sample([1, 4, 9, 30, 7, 2][:n], [1, 7, 8, 20, 2][:n]) for n in (3, 4, 6)]
    probe = Probe({"a": samples}, ("a",), collate, size=3)
    with fuse_loss(model):
        measured = probe.measure(model, 0, [0], gradients=True)
    losses, gradients = [], []
    for sample in samples:
        model.zero_grad()
        inputs = collate([sample])
        loss = model(**inputs).loss
        (loss * inputs["labels"].numel()).backward()
        losses.append(loss.item())
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]).double())
    assert float(measured[0, 0]) == pytest.approx(np.mean(losses), rel=1e-5)
    assert float(measured[2, 0]) == pytest.approx(float(torch.stack(gradients).var(0).sum()), rel=1e-4)


def test_exponential_rate():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=2.0)
    scheduler, rates = exponential(optimizer, warmup=4, num_steps=10), []
    for _ in range(11):
        rates.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    left = 1e-10 / 9e-4
    assert rates == pytest.approx([0.5, 1, 1.5, 2, *(0.2 + 1.8 * left ** (k / 6) for k in range(7))])


def test_exponential_rate_is_that_of_doremis_public_code():
    """The rate equals known values at three of 100,000 steps from 1e-3 to 1e-4 with 6 % of warm-up."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1e-3)
    rate = exponential(optimizer, warmup=6000, num_steps=100_000).lr_lambdas[0]
    assert 1e-3 * rate(20_000) == pytest.approx(1.8e-4, abs=5e-6)
    assert 1e-3 * rate(50_000) == pytest.approx(1.005e-4, abs=5e-8)
    assert 1e-3 * rate(100_000) == pytest.approx(1e-4, abs=1e-9)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model.family=llama"], "decoding needs an encoder-decoder"),
        (["model.dropout=1"], "model.dropout is 1; expected a number < 1"),
        (["model.family=llama", "model.dropout=.5", "decoding.samples=0"], "dropout = 0.5; expected 0 with 'llama'"),
        (["training.label_smoothing=1.5"], "label_smoothing is 1.5; expected a number < 1"),
        (["training.betas=[0.9]"], "betas is .0.9. .*expected a list of 2 values"),
        (["training.decay=linear"], "expected one of 'cosine', 'inverse_sqrt', 'exponential'"),
    ],
)
def test_mistakes_are_named(recipe, overrides, message):
    with pytest.raises(ValueError, match=message):
        recipe("{method: scalarization, tau: 5}", *overrides)
