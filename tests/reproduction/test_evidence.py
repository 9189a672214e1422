"""Claims by regime follow their rules, are judged by tests, and fill the page from the results' files."""

from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from pycooldown.recipes import advice
from pycooldown.schedules.unimax import unimax_budgets
from reproduction import evidence, evidence_tables, readings, regimes, rules, verdicts
from reproduction.claim import ClaimPart
from reproduction.rules import COOLDOWN, FREQUENT, MAP_SYSTEMS, PAPER, RARE, REGIMES, TAU_1, TAU_5, Regime
from reproduction.translation import TrainedSystem, systems

DOCS = Path(__file__).parents[2] / "docs"


def training(system, seed, losses, *, steps=(105, 210, 420), epochs=2.0):
    """Return a training whose losses fall linearly to the given values by domain."""
    falling = {d: [loss + 1 - k / (len(steps) - 1) for k in range(len(steps))] for d, loss in losses.items()}
    return TrainedSystem(system, seed, list(steps), falling, dict.fromkeys(losses, epochs), 10.0)


def trainings(offsets, seeds=8, noise=0.01):
    """Return trainings with final losses of 4 and 6, plus offsets by system, the seed's number and noise."""
    found = {}
    for k, (system, (frequent, rare)) in enumerate(offsets.items()):
        rng = np.random.default_rng(k)
        found[system] = [
            training(
                system,
                seed,
                {FREQUENT: 4 + seed + frequent + noise * rng.normal(), RARE: 6 + seed + rare + noise * rng.normal()},
            )
            for seed in range(seeds)
        ]
    return found


EVEN = dict.fromkeys(MAP_SYSTEMS, (0.3, 0.3))


@pytest.mark.parametrize("regime", REGIMES, ids=lambda regime: regime.name)
def test_regimes_have_the_exposure_that_they_name_and_a_cap_that_binds(regime):
    sizes = regime.sizes
    assert sizes[FREQUENT] == regime.skew * sizes[RARE] < 13_727  # the size of the corpus
    share = 1 / (1 + regime.skew**0.2)
    assert share * regime.draws / sizes[RARE] == pytest.approx(regime.passes, rel=0.06)
    budgets = unimax_budgets(list(sizes.values()), budget=regime.draws, max_epochs=rules.unimax_cap(regime))
    assert budgets[1] / sizes[RARE] == pytest.approx(rules.unimax_cap(regime))  # the cap binds
    assert budgets[1] < 0.9 * regime.draws / 2  # and uniform sampling would draw more
    assert regime.steps % regimes.setting_of(regime).evaluations == 0
    regimes.check_regime(regime)  # no batch needs more samples of a language than it has


def test_a_regime_that_no_batch_fits_is_refused_before_anything_is_trained(tmp_path):
    """With 13 pairs of the rare language, tau = 100 cannot draw 16 of them into each batch."""
    done = []
    with pytest.raises(ValueError, match=r"100:1, 300 passes, 420 steps: temperature 100 cannot be .* more steps"):
        regimes.train_regimes(
            tmp_path,
            tmp_path,
            [Regime(9, 20), Regime(100, 300)],
            seeds=[0],
            progress=lambda place, training: done.append(place),
        )
    assert not done
    assert not list(tmp_path.iterdir())


def test_every_system_of_the_rules_can_be_trained():
    assert set(rules.ALL_SYSTEMS) == set(systems(8, 8, 10))
    assert {system for claim in rules.CLAIMS for system in claim.systems} == set(rules.ALL_SYSTEMS)


def test_p_values_are_those_of_scipy():
    x = np.random.default_rng(0).normal(0.1, 1, size=8)
    for bound in (0.0, -0.3, 2.0):
        expected = stats.ttest_1samp(x, bound, alternative="greater").pvalue
        assert verdicts.p_above(x, bound) == pytest.approx(expected, rel=1e-9)
    assert verdicts.p_two_sided(x) == pytest.approx(stats.ttest_1samp(x, 0).pvalue, rel=1e-9)
    assert verdicts.p_above(np.array([0.2])) == 0
    assert verdicts.p_above(np.array([-0.2])) == 1


def test_holm_is_holm():
    p = [0.01, 0.04, 0.03, 0.005]
    assert verdicts.holm(p) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert verdicts.holm([]) == []


def test_the_error_rate_of_verdicts():
    """If all differences are 0, at most about a share LEVEL of 500 families of claims gets a wrong verdict."""
    rng = np.random.default_rng(1)
    wrong = 0
    for _ in range(500):
        claims = [
            [ClaimPart.of("x", rng.normal(size=8)), ClaimPart.of("y", rng.normal(size=8) + 0.0)] for _ in range(5)
        ]
        wrong += any(verdict != "inconclusive" for verdict, *_ in verdicts.decide(claims))
    assert wrong / 500 <= rules.LEVEL + 3 * np.sqrt(rules.LEVEL / 500)


@pytest.mark.parametrize(
    ("cooled", "expected"),
    [
        ((-0.2, -0.3), "reproduced"),
        ((-0.2, 0.04), "reproduced"),  # the rare language is worse, but within the margin
        ((-0.2, 0.3), "not reproduced"),  # the rare language is worse
        ((0.2, -0.3), "not reproduced"),  # the frequent language is worse
    ],
)
def test_a_trade_off_is_judged_on_both_sides(cooled, expected):
    found = trainings({**EVEN, TAU_5: (0, 0), COOLDOWN: cooled}, noise=0.002)
    judged = {j.claim.name: j for j in verdicts.judge(found)}
    assert judged["R7"].verdict == expected
    assert set(judged) == {"R6", "R7", "R7b", "R7c", "R11"}  # claims whose systems were trained


def test_noise_gives_no_verdict_and_few_seeds_neither():
    found = trainings({**EVEN, TAU_5: (0, 0), COOLDOWN: (-0.02, -0.02)}, noise=0.5)
    assert {j.claim.name: j.verdict for j in verdicts.judge(found)}["R7"] == "inconclusive"
    assert verdicts.judge(trainings(EVEN, seeds=rules.MIN_SEEDS - 1)) == []


def test_the_best_is_marked_only_beyond_the_tests():
    found = trainings({**EVEN, COOLDOWN: (0, 0), TAU_1: (0.1, 0.1)})
    best = verdicts.best_system(found, None)
    assert (best.system, best.second, best.clear, best.ties) == (COOLDOWN, TAU_1, True, ())
    assert best.margin.startswith("+0.1")
    found = trainings({**EVEN, COOLDOWN: (0, 0), TAU_1: (0.001, 0.001)}, noise=0.1)
    best = verdicts.best_system(found, RARE)
    assert not best.clear
    assert set(best.ties) >= {COOLDOWN, TAU_1} - {best.system}


@pytest.mark.parametrize(
    ("offsets", "noise", "expected"),
    [
        ({COOLDOWN: (0, 0)}, 0.01, COOLDOWN),
        ({TAU_1: (0, 0), COOLDOWN: (0.001, 0.001)}, 0.1, COOLDOWN),  # not clearly worse than the best
        ({TAU_1: (0, 0), COOLDOWN: (0.1, 0.1)}, 0.01, TAU_1),
    ],
)
def test_cooldown_is_advised_unless_another_is_clearly_better(offsets, noise, expected):
    assert verdicts.advised(trainings({**EVEN, **offsets}, noise=noise)) == expected


def test_results_survive_their_file(tmp_path):
    regime = Regime(9, 20)
    found = trainings(EVEN, seeds=3)
    rows = [
        regimes.ResultRow(regimes.Place(regime, t.seed, system), t, "0" * 16)
        for system, some in found.items()
        for t in some
    ]
    rows.append(
        regimes.ResultRow(regimes.Place(regime, 3, TAU_1), training(TAU_1, 3, {FREQUENT: 1, RARE: 1}), "0" * 16)
    )
    regimes.write_results(rows, tmp_path / "9-20.csv")
    read_regime, read = regimes.read_results(tmp_path / "9-20.csv")
    assert (read_regime.skew, read_regime.passes, read_regime.steps) == (9, 20, 420)
    assert [t.seed for t in read[TAU_1]] == [0, 1, 2, 3]
    shared = rules.paired(read, MAP_SYSTEMS)
    assert [t.seed for t in shared[TAU_1]] == [0, 1, 2]  # only one system has the fourth seed
    for system, some in found.items():
        for a, b in zip(some, shared[system], strict=True):
            assert a.losses[RARE] == pytest.approx(b.losses[RARE], abs=1e-5)
            assert (a.steps, a.epochs, a.cpu_seconds) == (b.steps, b.epochs, b.cpu_seconds)
    text = (tmp_path / "9-20.csv").read_text().replace("9,20,420,cooldown", "9,80,420,cooldown")
    (tmp_path / "mixed.csv").write_text(text)
    with pytest.raises(ValueError, match="rows of several regimes"):
        regimes.read_results(tmp_path / "mixed.csv")


def test_regimes_are_read_from_text():
    assert rules.parse_regime("100:130") == PAPER
    assert rules.parse_regime("100:20").steps == 288  # the number of steps in the rules
    own = rules.parse_regime("50:100:300", ["R10"])
    assert (own.skew, own.passes, own.steps, own.systems) == (50, 100, 300, (COOLDOWN, rules.INCREASE))
    for text, message in (("100", "SKEW:PASSES"), ("9:0", "SKEW:PASSES")):
        with pytest.raises(ValueError, match=message):
            rules.parse_regime(text)
    with pytest.raises(ValueError, match="'R99'; expected some of R5"):
        rules.parse_regime("9:5", ["R99"])


def test_the_page_says_what_the_results_say(tmp_path):
    found = {
        Regime(100, 130, systems=MAP_SYSTEMS): trainings({**EVEN, COOLDOWN: (0, 0), TAU_5: (0.1, 0.2)}),
        Regime(9, 5): trainings({**EVEN, COOLDOWN: (0, 0.5), TAU_5: (0.1, 0.2)}),
    }
    written = evidence.save_page(evidence.Evidence(found, {}), tmp_path, tmp_path / "advice.json")
    text = written[0].read_text(encoding="utf-8")
    assert "| R7 | Table 3 | Against tau = 5 Cooldown gains" in text
    assert "| yes | **no** |" in text
    assert "| 9:1, 5 passes | 2.0 |" in text
    assert "not trained yet: 100:1, 20 passes; 9:1, 20 passes" in text
    assert "after the change (0 of 2)" in text
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in written[1:-1])
    loaded = advice.load(tmp_path / "advice.json")
    assert [(f.passes, f.skew, f.best) for f in loaded] == [(130, 100, COOLDOWN), (5, 9, TAU_5)]
    assert loaded[0].outcome.startswith("there cooldown had the lowest mean loss over both languages.")


def test_numbers_in_the_text_are_those_of_the_results():
    found = {
        Regime(9, 5): trainings({**EVEN, COOLDOWN: (0, 0.5), TAU_5: (0.1, 0.2)}, noise=0),
        Regime(9, 20): trainings({**EVEN, COOLDOWN: (0, 0), TAU_5: (0.4, 0.2)}, noise=0),
    }
    regrets = evidence_tables.regrets(evidence.Evidence(found, {}).findings())

    def fill(text):
        return readings.fill(text, found, {}, regrets)

    assert fill("[[9:5 temperature 5 - cooldown ro]], [[9:5 temperature 5 - cooldown mean]]") == "0.30, 0.10"
    assert fill("[[9:20 cooldown - temperature 5 de at 210]] nats") == "0.40 nats"
    assert fill("[[9:20 p for R7]] [[9:20 p against R11]]") == "< 1e-4 1"
    assert fill("[[regret always temperature 5]]") == f"{(0 + 0.3) / 2:.3f}"
    missing = "[[9:80 temperature 5 - cooldown ro]] [[9:5 linear - cooldown ro]] [[9:5 p for R9]] [[R4 trace]]"
    assert fill(missing) == " ".join([readings.NO_RESULT] * 4)
    with pytest.raises(ValueError, match="expected SYSTEM - SYSTEM"):
        fill("[[9:5 cooldown ro]]")


def test_the_packages_page_and_advice_are_those_of_its_results(tmp_path):
    """If this fails after new trainings, run `python -m reproduction page --advice pycooldown/recipes/advice.json`."""
    found = evidence.read_evidence()
    assert advice.load() == found.findings()
    written = evidence.save_page(found, tmp_path)
    assert readings.NO_RESULT not in written[0].read_text(encoding="utf-8")
    assert written[0].read_text(encoding="utf-8") == (DOCS / "evidence.md").read_text(encoding="utf-8")
    assert {path.name for path in written[1:]} <= {path.name for path in (DOCS / "figures").iterdir()}
