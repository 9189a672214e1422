"""When cooling helps: the study's settings, the rule that reads its outcome, and the advice drawn from it."""

from pathlib import Path

import pytest

from pycooldown.mixture import temperature
from pycooldown.recipes import advice
from reproduction import cooling_page, cooling_study
from reproduction.cooling import COOLDOWN, STATIC, Evidence, Regime, describe
from reproduction.translation import TrainedSystem, systems

DOCS = Path(__file__).parents[2] / "docs"


def regime(rare=100, skew=10, exposure=20.0, *, rarest=0.0, others=0.0, noise=0.01):
    """Three seeds; Cooldown's losses are higher than those of tau = 5 by ``rarest`` and ``others``."""
    sizes = {"de": skew * rare, "zh": skew * rare, "ro": rare}
    seeds = [{"de": 4.0 + s, "zh": 5.0 + s, "ro": 6.0 + s} for s in range(3)]
    cooled = [
        {d: x + (rarest if d == "ro" else others) + noise * (i - 1) for d, x in losses.items()}
        for i, losses in enumerate(seeds)
    ]
    worse = [{d: x + 1 for d, x in losses.items()} for losses in seeds]
    losses = {"temperature 1": worse, STATIC: seeds, COOLDOWN: cooled}
    return Regime(sizes, 100, losses, {key: {"de": 1.0, "zh": 1.0, "ro": exposure} for key in losses})


def test_gains_are_paired_by_seed():
    found = regime(rarest=0.3, others=-0.1)
    assert found.gain(COOLDOWN, part="rarest").mean == pytest.approx(-0.3)
    assert found.gain(COOLDOWN, part="others").mean == pytest.approx(0.1)
    assert found.gain(COOLDOWN).mean == pytest.approx((-0.3 + 2 * 0.1) / 3)
    assert found.gain(COOLDOWN).sd == pytest.approx(0.01)  # that of the seeds, 1, is gone
    assert (found.rarest, found.skew, found.exposure) == ("ro", 10, 20)


@pytest.mark.parametrize(
    ("rarest", "others", "noise", "best", "words"),
    [
        (-0.3, -0.1, 0.01, COOLDOWN, ["improved the rarest domain (-0.300 ± 0.006 nats)", "had cooldown"]),
        (0.3, 0.0, 0.01, STATIC, ["worsened the rarest domain (+0.300", "no clear difference to the others"]),
        (-0.3, -0.1, 1.0, STATIC, ["no clear difference to the rarest", "no other system had a lower mean"]),
    ],
)
def test_the_rule(rarest, others, noise, best, words):
    found = regime(rarest=rarest, others=others, noise=noise)
    assert found.best == best
    assert found.best_static == STATIC
    assert all(text in describe(found) for text in words)


def test_evidence_survives_its_file(tmp_path):
    evidence = Evidence([regime(), regime(exposure=75.0, rarest=-0.2)])
    evidence.save(tmp_path / "e.json")
    assert Evidence.load(tmp_path / "e.json") == evidence
    assert cooling_page.page(Evidence.load(tmp_path / "e.json"), "x.png") == cooling_page.page(evidence, "x.png")


def test_the_packages_advice_is_that_of_the_evidence():
    """Whoever runs the study again copies both."""
    assert advice.load() == Evidence.load().findings()


def test_the_page_is_that_of_the_packages_evidence():
    """Whoever runs the study again copies both."""
    assert (DOCS / "cooldown.md").read_text(encoding="utf-8") == cooling_page.page(
        Evidence.load(), "figures/cooldown.png"
    )


@pytest.mark.parametrize("setting", cooling_study.SETTINGS)
def test_settings_have_the_exposure_that_they_name(setting):
    skew, epochs, steps = setting
    sizes = list(cooling_study.regime_sizes(*setting).values())
    assert max(sizes) == skew * min(sizes) < 14_000
    assert min(sizes) > cooling_study.BATCH_SIZE / len(sizes)  # or uniform sampling would repeat samples in a batch
    share = temperature(sizes, 5)[-1]
    assert share * steps * cooling_study.BATCH_SIZE / sizes[-1] == pytest.approx(epochs, rel=0.06)


def test_the_study_gathers_its_trainings(tmp_path):
    def train(job):
        loss = job.seed + len(cooling_study.SYSTEMS[job.system][0]) + 0.1 * job.system.endswith("systematic")
        domains = cooling_study.regime_sizes(job.skew, job.epochs, job.steps)
        return TrainedSystem(job.system, job.seed, [1], {d: [9.0, loss] for d in domains}, dict.fromkeys(domains, 2.0))

    done, settings = [], ((25, 5, 288), (25, 75, 420))
    options = {"settings": settings, "train": train, "progress": lambda *a: done.append(a)}
    evidence = cooling_study.study_cooling(tmp_path, tmp_path, seeds=2, **options)
    assert done[-1] == ("training", 32, 32)
    assert [regime.steps for regime in evidence.regimes] == [288, 420]
    assert evidence.regimes[0].gain("temperature 5, systematic").mean == pytest.approx(-0.1)
    assert evidence.regimes[0].gain("temperature 1").mean == 0
    panels = [axes.get_title(loc="left") for axes in cooling_page.picture(evidence).axes]
    assert panels == ["rarest domain, 25:1", "other domains, 25:1", "mean over domains, 25:1"]
    with pytest.raises(ValueError, match="seeds = 1"):
        cooling_study.study_cooling(tmp_path, tmp_path, seeds=1)


@pytest.mark.parametrize("setting", cooling_study.SETTINGS)
def test_unimax_can_spend_its_budget_in_every_regime(setting):
    sizes, draws = cooling_study.regime_sizes(*setting), setting[-1] * cooling_study.BATCH_SIZE
    systems(setting[-1], cooling_study.BATCH_SIZE, cooling_study.unimax_cap(sizes, draws))["unimax"](sizes)
