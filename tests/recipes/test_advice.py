"""Advice stays within what was studied."""

from pycooldown.mixture import temperature
from pycooldown.recipes.advice import Finding, advise, load, save


def test_advice_stays_within_the_range_of_the_study():
    findings = [Finding(e, s, f"{e:g} at {s}") for e in (5.2, 20, 300) for s in (10, 50)]
    sizes = {"en": 100_000, "fr": 10_000, "sw": 2_000}
    share = temperature(list(sizes.values()), 5)[2]

    def advice(epochs, n=sizes):
        return advise(n, round(epochs * 2_000 / share), findings)

    assert "the rarest domain, sw, would be passed through 83 times (sizes up to 50:1)" in advice(83)
    assert "Nearest in our study (docs/cooldown.md: 5 to 300 epochs, skews 10 and 50, small models)" in advice(83)
    assert "is 300 epochs at 50:1: 300 at 50" in advice(83)
    assert "is 20 epochs at 50:1" in advice(70)
    for outside in (
        advice(4.9),
        advice(301),
        advice(20, {"en": 2_001, "sw": 2_000}),
        advice(20, {"en": 10**7, "sw": 9}),
    ):
        assert outside.endswith("small models): no advice.")


def test_findings_survive_their_file(tmp_path):
    save(load(), tmp_path / "advice.json")
    assert load(tmp_path / "advice.json") == load()
