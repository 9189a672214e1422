"""Recipes: what is read, and what each mistake is answered with."""

from math import inf
from pathlib import Path
from types import SimpleNamespace

import pytest

yaml = pytest.importorskip("yaml")

from pycooldown import Mixture, schedules  # noqa: E402
from pycooldown.adaptive import ERMA, FGLS, DoReMi, GroupDRO, OnlineDataMixing, VarianceAware  # noqa: E402
from pycooldown.recipes import load_recipe  # noqa: E402
from pycooldown.recipes.doremi import after_proxy  # noqa: E402
from pycooldown.recipes.planning import build_schedule, training_sizes  # noqa: E402

GOOD = """
data: {path: packed}
mixture: {method: cooldown}
training: {steps: 100, batch_size: 8}
"""
SIZES = {"a": 1000, "b": 30}


def _start(tau):
    return Mixture.temperature_sampling(SIZES, tau)


def load(tmp_path, text, overrides=()):
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    return load_recipe(path, overrides)


@pytest.mark.parametrize(
    ("mixture", "expected"),
    [
        ("{method: temperature, tau: 5}", schedules.constant(Mixture.temperature_sampling(SIZES, 5.0))),
        ("{method: temperature, tau: inf}", schedules.constant(Mixture.temperature_sampling(SIZES, float("inf")))),
        ("{method: scalarization, tau: 3.3}", schedules.constant(Mixture.scalarization(SIZES, 3.3))),
        ("{method: cooldown}", schedules.cooldown(SIZES, tau=5.0, final_tau=1.0, switch_step=50)),
        ("{method: cooldown, switch_at: 0.25, tau: 4}", schedules.cooldown(SIZES, tau=4.0, switch_step=25)),
        ("{method: anneal, shape: cosine}", schedules.anneal(SIZES, tau=5, final_tau=1, num_steps=100, shape="cosine")),
        (
            "{method: staircase, stages: [[0, 5], [0.5, 2], [0.75, 1]]}",
            schedules.staircase(
                [(s, Mixture.temperature_sampling(SIZES, t)) for s, t in ((0, 5.0), (50, 2.0), (75, 1.0))]
            ),
        ),
        ("{method: unimax, max_epochs: 40}", schedules.unimax(SIZES, budget=800, max_epochs=40)),
        (
            "{method: unimax, max_epochs: 40, mode: frontload}",
            schedules.unimax(SIZES, budget=800, max_epochs=40, mode="frontload", num_steps=100),
        ),
        (
            "{method: order_matters, tau: 3, switch_at: 0.2, reset_lr: true}",
            schedules.order_matters(SIZES, switch_step=20, tau=3.0),
        ),
        ("{method: group_dro, step_size: 0.5}", GroupDRO(_start(inf), step_size=0.5)),
        ("{method: doremi, delay: 2}", DoReMi(_start(inf), delay=2)),
        ("{method: odm, momentum: 0.9}", OnlineDataMixing(_start(inf), momentum=0.9)),
        ("{method: fgls, interval: 5, warmup: 9}", FGLS(_start(5), interval=5, warmup=9)),
        (
            "{method: fgls, variance_aware: true}",
            VarianceAware(FGLS(_start(5)), interval=20, least=1 / 8),
        ),
        ("{method: erma, bias_rate: 0.1}", ERMA(_start(5), bias_rate=0.1)),
        ("{method: variance_aware, tau: 2}", VarianceAware(_start(2), least=1 / 8)),
    ],
)
def test_mixture_methods_make_their_schedules(tmp_path, mixture, expected):
    recipe = load(tmp_path, GOOD.replace("{method: cooldown}", mixture))
    assert recipe.mixture.schedule(SIZES, recipe.training.steps, 8).describe() == expected.describe()
    again = load(tmp_path, yaml.safe_dump(_plain(recipe.to_dict())))
    assert again == recipe


def _plain(value):
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items() if v is not None}
    return [_plain(v) for v in value] if isinstance(value, tuple) else value


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("steps: 100", "stepz: 100", "training.stepz is unknown; expected steps, batch_size"),
        ("steps: 100, ", "", "training.steps is missing"),
        ("steps: 100", "steps: 0", "training.steps is 0; expected a number >= 1"),
        ("steps: 100", "steps: 1.5", r"training.steps is 1.5 \(float\); expected a whole number"),
        ("steps: 100", "steps: true", r"training.steps is True \(bool\); expected a whole number"),
        ("steps: 100", "steps: 100, save_every: 15", "save_every = 15 is no multiple of log_every = 10"),
        ("steps: 100", "steps: 100, allocation: magic", "allocation is 'magic'.*expected one of 'multinomial'"),
        ("path: packed", "path: packed, domains: [de, no]", "domains.1. is False.*put it in quotes"),
        ("path: packed", "path: packed, domains: de", "data.domains is 'de'.*expected a list"),
        ("method: cooldown", "method: magic", "mixture.method is 'magic'.*expected one of temperature, scalarization"),
        ("method: cooldown", "method: temperature", "mixture.tau is missing"),
        ("method: cooldown", "method: cooldown, taw: 3", "mixture.taw is unknown; expected tau, final_tau, switch_at"),
        ("method: cooldown", "method: cooldown, tau: high", "mixture.tau is 'high'.*expected a number"),
        ("data: {path: packed}", "data: packed", "data is 'packed'.*expected keys path"),
        ("data: {path: packed}", "dta: {path: packed}", "dta is unknown; expected data, training, mixture, model"),
        (GOOD, "- 1", "expected sections data"),
        (GOOD, "a: [", "is not YAML"),
    ],
)
def test_mistakes_name_file_and_key_and_what_is_accepted(tmp_path, old, new, message):
    assert old in GOOD
    with pytest.raises(ValueError, match=message) as error:
        load(tmp_path, GOOD.replace(old, new))
    assert "recipe.yaml" in str(error.value)


def test_weights_are_taken_by_name(tmp_path):
    reversed_order = [[name, 1.0 + i] for i, name in enumerate(reversed(SIZES))]
    mixture = load(tmp_path, GOOD, ["mixture.method=weights", f"mixture.weights={reversed_order}"]).mixture
    p = mixture.schedule(SIZES, 100, 8).mixture(0)
    total = sum(weight for _, weight in reversed_order)
    assert dict(zip(p.domains, p.sampling)) == pytest.approx({name: w / total for name, w in reversed_order})
    with pytest.raises(ValueError, match="only in one of the two"):
        mixture.schedule({**SIZES, "xx": 3}, 100, 8)
    with pytest.raises(ValueError, match="weights has 'b' twice"):
        load(tmp_path, GOOD, ["mixture.method=weights", "mixture.weights=[[b, 1], [a, 2], [b, 3]]"])


def test_probes_are_kept_out_of_training(tmp_path):
    recipe = load(tmp_path, GOOD, ["mixture.method=fgls", "mixture.hold_out=0.1"])
    assert training_sizes(recipe, {"a": 1000, "b": 5}) == {"a": 900, "b": 3}
    with pytest.raises(ValueError, match="domain 'b' has 2 samples, all kept out"):
        training_sizes(recipe, {"a": 1000, "b": 2})
    assert training_sizes(load(tmp_path, GOOD), {"b": 2}) == {"b": 2}


@pytest.mark.parametrize("allocation", ["multinomial", "systematic"])
def test_variance_aware_sampling_follows_the_allocation_of_the_training(tmp_path, allocation):
    recipe = load(tmp_path, GOOD, ["mixture.method=variance_aware", f"training.allocation={allocation}"])
    assert build_schedule(recipe, {"a": 1000, "b": 50}).allocation == allocation


class Stages:
    """Stands for training: notes what is trained, and breaks off if told to."""

    def __init__(self, break_off_at=None):
        self.done, self.break_off_at = [], break_off_at

    def __call__(self, recipe, folder):
        if folder.name == self.break_off_at:
            raise KeyboardInterrupt
        self.done.append((folder.name, recipe))
        return SimpleNamespace(summary={"learned": {"target": {"b": 0.25, "a": 0.75}}})


def test_doremi_trains_reference_and_proxy_and_then_takes_the_weights_by_name(tmp_path):
    recipe = load(tmp_path, GOOD, ["mixture.method=doremi", "mixture.reference_tau=2"])
    with pytest.raises(KeyboardInterrupt):
        after_proxy(recipe, tmp_path / "run", Stages(break_off_at="run-proxy"))
    stages = Stages()
    last = after_proxy(recipe, tmp_path / "run", stages)
    (reference, first), (proxy, second) = stages.done
    assert (reference, proxy) == ("run-reference", "run-proxy")
    assert first.mixture.tau == 2
    assert second.mixture.reference == str(tmp_path / "run-reference")
    assert last.mixture.schedule({"a": 5, "b": 9}, 10, 2).mixture(0).target.tolist() == [0.75, 0.25]
    assert first.training == second.training == last.training


def test_doremi_in_rounds_until_the_weights_settle(tmp_path):
    recipe = load(tmp_path, GOOD, ["mixture.method=doremi", "mixture.rounds=5"])
    stages = Stages()  # finds the same weights each time
    after_proxy(recipe, tmp_path / "run", stages)
    assert [name for name, _ in stages.done] == ["run-reference", "run-proxy", "run-reference-2", "run-proxy-2"]
    assert dict(stages.done[2][1].mixture.weights) == {"b": 0.25, "a": 0.75}


@pytest.mark.parametrize("switch_at", [0.0, 1.0, -0.5, float("nan")])
def test_switch_must_lie_within_the_run(tmp_path, switch_at):
    recipe = load(tmp_path, GOOD, [f"mixture.switch_at={switch_at}"])
    with pytest.raises(ValueError, match=r"switch_at = .* expected a share of the steps"):
        recipe.mixture.schedule(SIZES, 100, 8)


def test_overrides_are_typed_like_the_file(tmp_path):
    recipe = load(tmp_path, GOOD, ["training.learning_rate=1e-3", "data.domains=[de, fr]", "model.layers=2"])
    assert recipe.training.learning_rate == 1e-3
    assert recipe.data.domains == ("de", "fr")
    assert recipe.model.layers == 2


@pytest.mark.parametrize("path", sorted(Path(__file__).parents[2].glob("recipes/**/*.yaml")), ids=lambda p: p.stem)
def test_recipes_of_the_repository_can_be_read(path):
    recipe = load_recipe(path)
    sizes = {"en": 2_700_000_000, "it": 160_000_000, "zh": 38_000_000, "sw": 1_000_000}
    recipe.mixture.schedule(sizes, recipe.training.steps, recipe.training.batch_size)
