"""Advice is given only near regimes that were trained."""

import pytest

from pycooldown.mixture import temperature
from pycooldown.recipes.advice import Finding, advise, load, nearest, save


def finding(passes, skew):
    return Finding(passes, skew, {"temperature 5": 5.0, "cooldown": 4.0}, "cooldown", f"{passes:g} at {skew}")


FINDINGS = [finding(e, s) for e in (5, 20, 300) for s in (10, 50)]
SIZES = {"en": 100_000, "fr": 10_000, "sw": 2_000}


def advice(passes, sizes=SIZES):
    counts = list(sizes.values())
    return advise(sizes, round(passes * min(counts) / temperature(counts, 5)[counts.index(min(counts))]), FINDINGS)


def test_advice_is_that_of_the_nearest_regime():
    assert "the rarest domain, sw, would be passed through 35 times (sizes up to 50:1)" in advice(35)
    assert "(sizes up to 750:1). That is outside" in advice(20, {"en": 1_500_000, "sw": 2_000})
    assert "(sizes up to 2,500:1). That is outside" in advice(20, {"en": 5_000_000, "sw": 2_000})
    assert "has 20 passes at 50:1: 20 at 50 From it we advise cooldown, as no other was clearly better." in advice(35)
    assert "has 300 passes at 50:1" in advice(200)
    assert "has 5 passes at 10:1" in advice(4, {"en": 16_000, "sw": 2_000})
    assert nearest(FINDINGS, 83, 50).passes == 300  # the nearest one, however far it is
    assert finding(1, 1).best == "cooldown"


@pytest.mark.parametrize(
    ("passes", "sizes"),
    [
        (2.4, SIZES),
        (80, SIZES),  # between two regimes, far from both
        (650, SIZES),
        (20, {"en": 6_000, "sw": 2_000}),  # a skew of 3:1
        (20, {"en": 2_000 * 50 * 15, "sw": 2_000}),  # a skew far above all that were trained
    ],
)
def test_there_is_no_advice_outside_the_evidence(passes, sizes):
    text = advice(passes, sizes)
    assert "outside our evidence" in text
    assert "5 passes at 10:1" in text  # the text lists the regimes that were trained
    assert "pycooldown sweep" in text


def test_another_system_is_advised_where_it_was_clearly_better():
    other = Finding(20, 50, {"temperature 5": 4.0, "cooldown": 5.0}, "temperature 5", "20 at 50.")
    text = advise(SIZES, 150_000, [other])
    assert text.endswith("From it we advise temperature 5, clearly better than cooldown there.")


def test_without_findings_there_is_no_advice():
    assert "outside our evidence" in advise(SIZES, 1000, [])


def test_findings_survive_their_file(tmp_path):
    save(FINDINGS, tmp_path / "advice.json")
    assert load(tmp_path / "advice.json") == FINDINGS
    assert all(f.best in f.losses for f in load())
