"""The claims' machinery, and the small translation model that most of them use."""

import dataclasses
import json

import numpy as np
import pytest
import torch

from pycooldown import DomainBatchSampler, Mixture
from pycooldown.gradients.variance import domain_moments, measure
from reproduction import claims_variance, kept
from reproduction import reproduce as module
from reproduction.claim import Claim, Outcome, Quantity, verdict
from reproduction.model import collate, sample_losses
from reproduction.reproduce import CLAIMS, page, reproduce
from reproduction.texts import Texts
from reproduction.translation import Setting, build_trainer, initial_model, systems, train_system, trained_model


def test_every_target_has_a_claim():
    assert sorted(CLAIMS, key=lambda name: int(name[1:])) == [f"R{i}" for i in range(1, 16)]


def test_quantity():
    q = Quantity.of([1.0, 2.0, 3.0, 2.0])
    assert (q.mean, q.sd, q.count) == (2, pytest.approx(0.8165, abs=1e-4), 4)
    assert q.is_positive
    assert not Quantity.of([1.0, -1.0, 1.0, 0.0]).is_positive


def test_results_are_kept_until_the_rule_changes(tmp_path, monkeypatch):
    calls = []

    def test(bench):
        calls.append(bench.seeds)
        return Outcome(verdict(False), {"x": Quantity.of([1.0, 2.0])}, {"s": {"de": 0.5}}, "a note")

    claim = Claim("R1", "Fig. 0", "x is negative", "x < 0", "large", test)
    monkeypatch.setitem(CLAIMS, "R1", claim)
    first = reproduce(tmp_path, claims=["R1"])
    assert first == reproduce(tmp_path, claims=["R1"])
    assert calls == [4]
    reproduce(tmp_path, claims=["R1"], seeds=5)
    monkeypatch.setitem(CLAIMS, "R1", Claim("R1", "Fig. 0", "x is negative", "x < 1", "large", test))
    reproduce(tmp_path, claims=["R1"], seeds=5)
    assert calls == [4, 5, 5]
    text = page(first)
    assert "| R1 | Fig. 0 | x is negative | **not reproduced** | 0 |" in text
    assert "a note" in text
    assert "| x | 1.5 ± 0.71 |" in text
    assert "| s | 0.50 |" in text


def test_theorems(tmp_path):
    """R3's rule fails as it should: the theorem does not hold as stated."""
    found = {r.claim: r.outcome.verdict for r in reproduce(tmp_path, claims=["R1", "R3"])}
    assert found == {"R1": "reproduced", "R3": "not reproduced"}


def test_claims_on_text_need_text(tmp_path):
    (result,) = reproduce(tmp_path, claims=["R7"])
    assert result.outcome.verdict == "not testable here"
    assert "--data" in result.outcome.note
    identity = json.loads((tmp_path / "R7.json").read_text())["identity"]
    assert identity["data"] is None  # with data it is tested anew
    assert identity["setting"]["steps"] == 400


@pytest.mark.parametrize(
    ("options", "message"), [({"claims": ["R99"]}, "'R99'; expected some of R1"), ({"seeds": 3}, "at least 4")]
)
def test_errors(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        module.reproduce(tmp_path, **options)


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    """The tensors are tiny."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def texts():
    """Random 'sentences' of two languages over different halves of a vocabulary, and of different lengths."""
    rng = np.random.default_rng(0)

    def draw(n, low):
        return [
            (rng.integers(low, low + 30, size=prefix + rng.integers(2, 9)), prefix)
            for prefix in rng.integers(2, 6, size=n).tolist()
        ]

    return Texts(draw(600, 0) + draw(20, 30), {"de": 600, "ro": 20}, {"de": draw(20, 0), "ro": draw(20, 30)}, 60)


SETTING = Setting(steps=8, batch_size=8, width=16, layers=1, evaluations=2)


def test_a_sample_has_the_loss_of_its_translation(texts):
    model = initial_model(texts, SETTING, 0)
    tokens, prefix = texts.train[3]
    logits = model(torch.from_numpy(tokens[None, :-1])).logits
    expected = torch.nn.functional.cross_entropy(logits[0, prefix - 1 :], torch.from_numpy(tokens[prefix:]))
    together = sample_losses(model, texts.train[:8])
    assert together[3].item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.filterwarnings("ignore:max_epochs = 10 binds for no domain")
@pytest.mark.parametrize("system", systems(8, 8))
def test_systems_train(texts, system, tmp_path):
    run = train_system(texts, system, 0, tmp_path, SETTING)
    assert run.steps == [4, 8]
    assert all(len(v) == 2 and np.isfinite(v).all() for v in run.losses.values())
    assert run.epochs["de"] * 600 + run.epochs["ro"] * 20 == pytest.approx(64)


def test_the_packages_trainer_takes_the_steps_of_a_plain_loop(texts, tmp_path):
    """Same batches, loss weights, learning rates and clipping, written out for scalarization, up to rounding."""
    sizes = {"de": 200, "ro": 20}  # less skewed, for weights that are not far from each other
    texts = Texts([*texts.train[:200], *texts.train[600:]], sizes, texts.validation, 60)
    found = train_system(texts, "scalarization 5", 3, tmp_path, SETTING, keep_weights=True)
    schedule = systems(SETTING.steps, SETTING.batch_size)["scalarization 5"](sizes)
    sampler = DomainBatchSampler(schedule, batch_size=8, seed=3, num_steps=8)
    model = initial_model(texts, SETTING, 3)
    optimizer = torch.optim.AdamW(model.parameters(), lr=SETTING.learning_rate, betas=(0.9, 0.98), weight_decay=0)
    for step, indices in enumerate(sampler):
        optimizer.param_groups[0]["lr"] = SETTING.learning_rate * step / SETTING.warmup
        batch, plan = collate([texts.train[i] for i in indices]), sampler.plan(step)
        logits = model(batch["input_ids"]).logits[:, :-1]
        losses = torch.nn.functional.cross_entropy(logits.transpose(1, 2), batch["labels"][:, 1:], reduction="none")
        weights = torch.tensor(plan.mixture.loss_weights[plan.domain_ids], dtype=torch.float32)
        optimizer.zero_grad()
        ((weights[:, None] * losses).sum() / (batch["labels"][:, 1:] >= 0).sum()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    assert found.epochs == pytest.approx(dict(zip(sizes, sampler.exposure(8).epochs, strict=True)))
    trained = trained_model("scalarization 5", 3, tmp_path)
    for (name, expected), value in zip(model.named_parameters(), trained.parameters(), strict=True):
        if name == "attention.0.1.bias":  # that of the keys has gradient 0, of which Adam makes noise
            expected, value = (torch.cat([x[:16], x[32:]]) for x in (expected, value))
        assert torch.allclose(expected, value, rtol=1e-4, atol=1e-5), name
    for domain, pairs in texts.validation.items():
        batch = collate(pairs)
        logits = trained(batch["input_ids"]).logits[:, :-1].transpose(1, 2)
        expected = torch.nn.functional.cross_entropy(logits, batch["labels"][:, 1:])
        assert found.final(domain) == pytest.approx(expected.item(), rel=1e-5)


def test_the_trainer_forms_no_logits(texts):
    trainer = build_trainer(texts, systems(8, 8)["cooldown"](texts.sizes), 0, SETTING)
    assert trainer.fused.obstacle is None


def test_finished_trainings_are_read(texts, tmp_path):
    first = train_system(texts, "cooldown", 0, tmp_path, SETTING, keep_weights=True)
    path = tmp_path / "cooldown-multinomial-0.json"
    stored = json.loads(path.read_text())
    stored["outcome"]["losses"]["ro"][-1] = 42.0
    path.write_text(json.dumps(stored))
    assert train_system(texts, "cooldown", 0, tmp_path, SETTING).final("ro") == 42
    path.unlink()
    assert train_system(texts, "cooldown", 0, tmp_path, SETTING, keep_weights=True) == first
    assert sample_losses(trained_model("cooldown", 0, tmp_path), texts.train[:2]).shape == (2,)


def other_texts(texts):
    """One token of one validation pair is another one."""
    tokens, prefix = texts.validation["ro"][0]
    changed = [((tokens + 1) % 60, prefix), *texts.validation["ro"][1:]]
    return dataclasses.replace(texts, validation={**texts.validation, "ro": changed})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda texts: (texts, SETTING, {"max_epochs": 0.9}), r"schedule is 'unimax\(budget=64.0, max_epochs=1.0"),
        (lambda texts: (other_texts(texts), SETTING, {}), "data is '[0-9a-f]{16}' there and"),
        (lambda texts: (texts, dataclasses.replace(SETTING, width=32), {}), "setting is .*'width': 16"),
        (lambda texts: (texts, dataclasses.replace(SETTING, steps=6), {}), "setting is .*'steps': 8"),
    ],
)
def test_a_training_is_read_only_for_all_that_it_depends_on(texts, tmp_path, change, message):
    train_system(texts, "unimax", 0, tmp_path, SETTING, max_epochs=1.0)
    other, setting, options = change(texts)
    with pytest.raises(ValueError, match=message):
        train_system(other, "unimax", 0, tmp_path, setting, **{"max_epochs": 1.0, **options})


def test_outcomes_of_older_code_are_not_taken_for_new(tmp_path, monkeypatch):
    kept.write(tmp_path / "a.json", {"x": 1}, [1, 2])
    assert kept.read(tmp_path / "a.json", {"x": 1}) == [1, 2]
    monkeypatch.setattr(kept, "REVISION", kept.REVISION + 1)
    with pytest.raises(ValueError, match="another setting: revision is 2 there and 3 here"):
        kept.read(tmp_path / "a.json", {"x": 1})
    assert kept.read_if_same(tmp_path / "a.json", {"x": 1}) is None
    (tmp_path / "old.json").write_text('{"run": {}}')  # the form of before
    with pytest.raises(ValueError, match="another setting"):
        kept.read(tmp_path / "old.json", {"x": 1})


def test_gradients_are_kept_for_their_model_and_summed_up(texts, tmp_path):
    train_system(texts, "temperature 5", 1, tmp_path, SETTING, keep_weights=True)
    model, path = trained_model("temperature 5", 1, tmp_path), tmp_path / "gradients.json"
    found = claims_variance.measure_model(path, model, texts, SETTING, 1)
    assert claims_variance.measure_model(path, model, texts, SETTING, 1) == found
    assert claims_variance.read_gradients(path) == found
    with pytest.raises(ValueError, match=r"model is '[0-9a-f]{16}' there and"):
        claims_variance.measure_model(path, initial_model(texts, SETTING, 1), texts, SETTING, 1)
    assert found.norm_ratio.value > 1
    assert set(found.batches) >= {"temperature sampling, quota", "scalarization, systematic"}
    summary = claims_variance.summary([found, found])
    name = "trace, systematic / multinomial, temperature sampling"
    assert summary[f"{name}: low"].mean < summary[name].mean < summary[f"{name}: high"].mean
    assert summary["trace, scalarization, multinomial: measured / predicted"].mean == pytest.approx(1, abs=0.5)


def test_prediction_on_a_transformer(texts):
    """Trace of the minibatch gradient's covariance of a Transformer, three mixtures, predicted and measured."""
    model = initial_model(texts, SETTING, 0)
    moments = domain_moments(model, sample_losses, texts.train, Mixture.proportional(texts.sizes), num_groups=40)
    mixtures = {
        "TS": Mixture.temperature_sampling(texts.sizes, 5),
        "S": Mixture.scalarization(texts.sizes, 5),
        "rho": Mixture.proportional(texts.sizes),
    }
    results = measure(model, sample_losses, texts.train, mixtures, batch_size=16, num_batches=80, moments=moments)
    for r in results:
        near = abs(r.trace.value / r.predicted.value - 1) < 0.1
        assert near or (r.trace.low <= r.predicted.high and r.predicted.low <= r.trace.high), r
    variance = {r.name: r.norm_variance.value for r in results}
    assert variance["S"] > 2 * variance["TS"]
