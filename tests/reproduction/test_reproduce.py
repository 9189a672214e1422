"""The claims' machinery, and the small translation model that most of them use."""

import json

import numpy as np
import pytest
import torch

from pycooldown import Mixture
from pycooldown.gradients.variance import domain_moments, measure
from reproduction import claims_variance
from reproduction import reproduce as module
from reproduction.claim import Claim, Outcome, Quantity, verdict
from reproduction.reproduce import CLAIMS, page, reproduce
from reproduction.translation import Setting, Texts, build_model, load_model, sample_losses, systems, train


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
    model = build_model(texts, SETTING, 0)
    tokens, prefix = texts.train[3]
    logits = model(torch.from_numpy(tokens[None, :-1])) @ model.tokens.weight.T
    expected = torch.nn.functional.cross_entropy(logits[0, prefix - 1 :], torch.from_numpy(tokens[prefix:]))
    together = sample_losses(model, texts.train[:8])
    assert together[3].item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("system", systems(8, 8))
def test_systems_train(texts, system, tmp_path):
    run = train(texts, system, 0, tmp_path, SETTING)
    assert run.steps == [4, 8]
    assert all(len(v) == 2 and np.isfinite(v).all() for v in run.losses.values())
    assert run.epochs["de"] * 600 + run.epochs["ro"] * 20 == pytest.approx(64)


def test_finished_runs_are_read(texts, tmp_path):
    first = train(texts, "cooldown", 0, tmp_path, SETTING, keep_weights=True)
    path = tmp_path / "cooldown-multinomial-0.json"
    stored = json.loads(path.read_text())
    stored["run"]["losses"]["ro"][-1] = 42.0
    path.write_text(json.dumps(stored))
    assert train(texts, "cooldown", 0, tmp_path, SETTING).final("ro") == 42
    with pytest.raises(ValueError, match="another setting"):
        train(texts, "cooldown", 0, tmp_path, Setting(steps=4))
    path.unlink()
    assert train(texts, "cooldown", 0, tmp_path, SETTING, keep_weights=True) == first
    assert sample_losses(load_model(texts, "cooldown", 0, tmp_path, SETTING), texts.train[:2]).shape == (2,)


def test_probes_are_kept_and_summed_up(texts, tmp_path, monkeypatch):
    monkeypatch.setattr(claims_variance, "read_texts", lambda folder: texts)
    monkeypatch.setattr(claims_variance, "SETTING", SETTING)
    train(texts, "temperature 5", 1, tmp_path, SETTING, keep_weights=True)
    found = claims_variance.probe(tmp_path, tmp_path, "after training", 1)
    assert claims_variance.probe(tmp_path, tmp_path, "after training", 1) == found
    assert found.norm_ratio.value > 1
    assert set(found.batches) >= {"temperature sampling, quota", "scalarization, systematic"}
    summary = claims_variance.summary([found, found])
    name = "trace, systematic / multinomial, temperature sampling"
    assert summary[f"{name}: low"].mean < summary[name].mean < summary[f"{name}: high"].mean
    assert summary["trace, scalarization, multinomial: measured / predicted"].mean == pytest.approx(1, abs=0.5)


def test_prediction_on_a_transformer(texts):
    """Trace of the minibatch gradient's covariance of a Transformer, three mixtures, predicted and measured."""
    model = build_model(texts, SETTING, 0)
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
