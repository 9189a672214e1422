"""Methods of recipes make their schedules and hook into runs, and users can add methods."""

import importlib.util
import json
import re
from math import inf
from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("pydantic")

from pycooldown import Mixture, schedules
from pycooldown.adaptive import ADO, ERMA, FGLS, DoReMi, GroupDRO, OnlineDataMixing, PiKE, VarianceAware
from pycooldown.adaptive.statistics import Statistics
from pycooldown.recipes import load_recipe
from pycooldown.recipes.fields import ProperShare
from pycooldown.recipes.methods import MethodOptions, register
from pycooldown.recipes.planning import build_schedule, training_sizes

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
        (
            "{method: staircase, "
            "stages: [{start: 0, tau: 2, domains: [a]}, {start: 0.5, weights: {b: 3, a: 1}}, [0.75, 1]]}",
            schedules.staircase(
                [
                    (0, Mixture(("a", "b"), [1000, 30], [1, 0], [1, 0])),
                    (50, Mixture(("a", "b"), [1000, 30], [0.25, 0.75], [0.25, 0.75])),
                    (75, Mixture.temperature_sampling(SIZES, 1.0)),
                ]
            ),
        ),
        (
            "{method: cooldown_by_exposure, epochs: 4}",
            schedules.cooldown_by_exposure(SIZES, batch_size=8, epochs=4),
        ),
        ("{method: ado, interval: 7, tau: 2}", ADO(_start(2), interval=7)),
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
        ("{method: pike, variance_rate: 0.5}", PiKE(_start(inf), batch_size=8, variance_rate=0.5)),
        ("{method: variance_aware, tau: 2}", VarianceAware(_start(2), least=1 / 8)),
    ],
)
def test_mixture_methods_make_their_schedules(tmp_path, mixture, expected):
    recipe = load(tmp_path, GOOD.replace("{method: cooldown}", mixture))
    assert recipe.mixture.schedule(SIZES, recipe.training.steps, 8).describe() == expected.describe()
    assert load(tmp_path, json.dumps(recipe.to_dict())) == recipe  # JSON is valid YAML


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        ("{start: 0}", "both or neither of tau and weights; expected exactly one"),
        ("{start: 0, tau: 1, weights: {a: 1, b: 1}}", "both or neither of tau and weights; expected exactly one"),
        ("{start: 0, weights: {a: 1, b: 1}, domains: [a]}", "weights, which name their domains already"),
        ("{start: 0, tau: 1, domains: [a, a]}", "expected at least one domain, and each only once"),
        ("{start: 0, tau: 1, domains: [x]}", r"stages.domains names \['x'\], which the data lack"),
        ("{start: 0, weights: {a: 1}}", "stages.weights and the data have different domains"),
    ],
)
def test_a_stage_has_a_temperature_or_weights(tmp_path, stage, message):
    text = GOOD.replace("{method: cooldown}", f"{{method: staircase, stages: [{stage}]}}")
    with pytest.raises(ValueError, match=message):
        load(tmp_path, text).mixture.schedule(SIZES, 100, 8)


def test_domains_that_join_late_are_not_drawn_before(tmp_path):
    stages = "stages: [{start: 0, tau: 2, domains: [a]}, {start: 0.5, tau: 2}]"
    schedule = load(tmp_path, GOOD.replace("method: cooldown", f"method: staircase, {stages}")).mixture.schedule(
        SIZES, 100, 8
    )
    assert schedule.mixture(49).sampling.tolist() == [1, 0]
    assert schedule.mixture(50) == Mixture.temperature_sampling(SIZES, 2.0)


def test_weights_are_taken_by_name(tmp_path):
    reversed_order = [[name, 1.0 + i] for i, name in enumerate(reversed(SIZES))]
    mixture = load(tmp_path, GOOD, ["mixture.method=weights", f"mixture.weights={reversed_order}"]).mixture
    p = mixture.schedule(SIZES, 100, 8).mixture(0)
    total = sum(weight for _, weight in reversed_order)
    assert dict(zip(p.domains, p.sampling)) == pytest.approx({name: w / total for name, w in reversed_order})
    with pytest.raises(ValueError, match="the data have different domains; only one of them has"):
        mixture.schedule({**SIZES, "xx": 3}, 100, 8)
    with pytest.raises(ValueError, match="mixture: weights has 'b' twice"):
        load(tmp_path, GOOD, ["mixture.method=weights", "mixture.weights=[[b, 1], [a, 2], [b, 3]]"])


def test_probes_are_kept_out_of_training(tmp_path):
    recipe = load(tmp_path, GOOD, ["mixture.method=fgls", "mixture.hold_out=0.1"])
    assert training_sizes(recipe, {"a": 1000, "b": 5}) == {"a": 900, "b": 3}
    with pytest.raises(ValueError, match="domain 'b' has 2 samples, and all of them are held out"):
        training_sizes(recipe, {"a": 1000, "b": 2})
    assert training_sizes(load(tmp_path, GOOD), {"b": 2}) == {"b": 2}


class Stages:
    """A stand-in for training that records what it trains and can raise KeyboardInterrupt at a stage."""

    def __init__(self, break_off_at=None):
        self.done, self.break_off_at = [], break_off_at

    def __call__(self, method, folder):
        if folder.name == self.break_off_at:
            raise KeyboardInterrupt
        self.done.append((folder.name, method))
        return SimpleNamespace(summary={"learned": {"target": {"b": 0.25, "a": 0.75}}})


def test_doremi_trains_reference_and_proxy_and_then_takes_the_weights_by_name(tmp_path):
    method = load(tmp_path, GOOD, ["mixture.method=doremi", "mixture.reference_tau=2"]).mixture
    with pytest.raises(KeyboardInterrupt):
        method.run_stages(tmp_path / "run", Stages(break_off_at="run-proxy"))
    stages = Stages()
    last = method.run_stages(tmp_path / "run", stages)
    (reference, first), (proxy, second) = stages.done
    assert (reference, proxy) == ("run-reference", "run-proxy")
    assert first.tau == 2
    assert second.reference_run() == tmp_path / "run-reference"
    assert second.run_stages(tmp_path / "run-proxy", stages) is second  # a proxy has no stages of its own
    assert last.schedule({"a": 5, "b": 9}, 10, 2).mixture(0).target.tolist() == [0.75, 0.25]


def test_doremi_repeats_rounds_until_the_weights_settle(tmp_path):
    method = load(tmp_path, GOOD, ["mixture.method=doremi", "mixture.rounds=5"]).mixture
    stages = Stages()  # returns the same weights each time
    method.run_stages(tmp_path / "run", stages)
    assert [name for name, _ in stages.done] == ["run-reference", "run-proxy", "run-reference-2", "run-proxy-2"]
    assert dict(stages.done[2][1].weights) == {"b": 0.25, "a": 0.75}


def test_doremi_reports_its_average_and_others_their_last_mixture(tmp_path):
    for name in ("doremi", "group_dro"):
        method = load(tmp_path, GOOD, [f"mixture.method={name}"]).mixture
        schedule = method.schedule(SIZES, 100, 8)
        for step in range(3):
            schedule.update(step, Statistics([8.0, 4.0], [4, 4], excess_loss_sum=[2.0, 0.0]))
        learned = method.learned(schedule)
        outcome = schedule.average if name == "doremi" else schedule.current
        assert learned["target"] == dict(zip("ab", outcome.target.tolist()))
        assert ("moving_average" in learned) == (name == "doremi")
        assert learned["target"] != dict(zip("ab", schedule.start.target.tolist()))


def test_a_switch_must_lie_within_the_run(tmp_path):
    recipe = load(tmp_path, GOOD, ["mixture.switch_at=0.001"])
    with pytest.raises(ValueError, match=r"switch_at = 0.001 is step 0 of 100; expected a share of the steps"):
        recipe.mixture.schedule(SIZES, 100, 8)


def test_a_users_method_is_registered_in_one_place(tmp_path):
    @register("own")
    class OwnOptions(MethodOptions):
        """Even shares, but for the first domain."""

        share: ProperShare = 0.5
        """Share of the first domain."""

        def schedule(self, sizes, num_steps, batch_size):
            p = [self.share, *[(1 - self.share) / (len(sizes) - 1)] * (len(sizes) - 1)]
            return schedules.constant(Mixture(tuple(sizes), list(sizes.values()), p, p))

    recipe = load(tmp_path, GOOD, ["mixture.method=own", "mixture.share=.9"])
    assert recipe.mixture.schedule(SIZES, 100, 8).mixture(0).sampling.tolist() == pytest.approx([0.9, 0.1])
    assert recipe.to_dict()["mixture"] == {"method": "own", "share": 0.9}
    assert load(tmp_path, json.dumps(recipe.to_dict())) == recipe
    with pytest.raises(ValueError, match=r"mixture.shar is unknown; expected share; did you mean share\?"):
        load(tmp_path, GOOD, ["mixture.method=own", "mixture.shar=.9"])
    with pytest.raises(ValueError, match=r"mixture.share is 2; expected a number < 1"):
        load(tmp_path, GOOD, ["mixture.method=own", "mixture.share=2"])
    assert training_sizes(recipe, SIZES) == SIZES  # the defaults of the hooks
    assert recipe.mixture.callbacks(100) == []
    with pytest.raises(ValueError, match=r"method 'own' already is .*OwnOptions"):
        register("own")(type("Other", (MethodOptions,), {"schedule": OwnOptions.schedule}))


def test_the_documented_method_works(tmp_path):
    page = (Path(__file__).parents[2] / "docs/recipes.md").read_text()
    (snippet,) = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    (tmp_path / "mixing.py").write_text(snippet)  # a file, since descriptions of keys are read from the source
    spec = importlib.util.spec_from_file_location("mixing", tmp_path / "mixing.py")
    spec.loader.exec_module(importlib.util.module_from_spec(spec))
    recipe = load(tmp_path, GOOD, ["mixture.method=capped", "mixture.cap=60"])
    assert recipe.mixture.schedule(SIZES, 100, 8).mixture(0).sampling.tolist() == pytest.approx([2 / 3, 1 / 3])


def test_an_installed_package_brings_a_method(tmp_path, monkeypatch):
    (tmp_path / "their_mixing.py").write_text(
        "from pycooldown import Mixture, schedules\n"
        "from pycooldown.recipes.methods import MethodOptions, register\n"
        "@register('theirs')\n"
        "class TheirOptions(MethodOptions):\n"
        "    '''Temperature sampling.'''\n"
        "    tau: float\n"
        "    '''Its temperature.'''\n"
        "    def schedule(self, sizes, num_steps, batch_size):\n"
        "        return schedules.constant(Mixture.temperature_sampling(sizes, self.tau))\n"
    )
    info = tmp_path / "their_mixing-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: their-mixing\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[pycooldown.methods]\ntheirs = their_mixing:TheirOptions\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert load(tmp_path, GOOD, ["mixture.method=theirs", "mixture.tau=3"]).mixture.tau == 3
    (info / "entry_points.txt").write_text("[pycooldown.methods]\nwrong = their_mixing:TheirOptions\n")
    with pytest.raises(ValueError, match=r"'wrong' = .* is not registered under that name; decorate the class"):
        load(tmp_path, GOOD, ["mixture.method=wrong"])


@pytest.mark.parametrize("allocation", ["multinomial", "systematic"])
def test_variance_aware_sampling_follows_the_allocation_of_the_training(tmp_path, allocation):
    recipe = load(tmp_path, GOOD, ["mixture.method=variance_aware", f"training.allocation={allocation}"])
    assert build_schedule(recipe, {"a": 1000, "b": 50}).allocation == allocation
