"""Exposure far ahead is counted without planning samples. It is exact unless an estimate is requested."""

import numpy as np
import pytest

from pycooldown import DomainBatchSampler, Mixture, schedules

SIZES = {"zh": 1500, "de": 700, "gl": 90, "fa": 41}
MANY = {f"d{i}": 40_000 // (i + 1) + 70 for i in range(700)}
ALLOCATIONS = ("multinomial", "systematic", "quota")
SHAPES = ("linear", "cosine", "exponential")


class StepByStep:
    """A schedule without the methods of a continuous one, see `Schedule`."""

    def __init__(self, schedule):
        self.mixture, self.next_change, self.describe = schedule.mixture, schedule.next_change, schedule.describe


def make(schedule, allocation, **options):
    return DomainBatchSampler(schedule, allocation=allocation, **({"batch_size": 64, "seed": 3} | options))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("sizes", [SIZES, MANY, {"only": 100}], ids=["K=4", "K=700", "K=1"])
def test_many_mixtures_at_once_are_those_of_their_steps(sizes, shape):
    schedule = schedules.anneal(sizes, tau=5, final_tau=1.3, num_steps=90, shape=shape)
    rows = schedule.sampling(7, 120)
    assert rows.tobytes() == b"".join(schedule.mixture(step).sampling.tobytes() for step in range(7, 120))
    for step in (0, 31, 90, 200):
        mixture = schedule.mixture(step)
        assert mixture == Mixture.temperature_sampling(sizes, mixture.tau)
    assert isinstance(schedule, schedules.ContinuousSchedule)
    assert not isinstance(StepByStep(schedule), schedules.ContinuousSchedule)


@pytest.mark.parametrize("allocation", ALLOCATIONS)
@pytest.mark.parametrize(("sizes", "end"), [(SIZES, 90), (SIZES, 10**6), (MANY, 90)])
def test_a_forecast_counts_what_is_planned(allocation, sizes, end):
    """Forecasts are exact from any step, also after the anneal, and whether or not mixtures come in bulk."""
    schedule = schedules.anneal(sizes, tau=5, final_tau=1, num_steps=end, shape="cosine")
    planned, forecast = make(schedule, allocation), make(schedule, allocation)
    by_steps = make(StepByStep(schedule), allocation)
    draws = np.zeros(len(sizes), int)
    for step in range(120):
        if step in (0, 1, 57, 88, 90, 119):
            assert forecast.exposure(step).draws.tolist() == draws.tolist()
            assert by_steps.exposure(step).draws.tolist() == draws.tolist()
            assert make(schedule, allocation).plan(step).indices.tolist() == planned.plan(step).indices.tolist()
        draws += np.bincount(planned.plan(step).domain_ids, minlength=len(sizes))
    assert forecast.plan(60).indices.tolist() == planned.plan(60).indices.tolist()


@pytest.mark.parametrize("schedule", ["anneal", "staircase"])
def test_quota_plans_the_same_from_a_state_as_in_sequence(schedule):
    """Plans agree although deadlines are carried from step to step in sequence, and recomputed after a seek."""
    if schedule == "anneal":
        schedule = schedules.anneal(MANY, tau=8, final_tau=1, num_steps=140)
    else:
        mixtures = [Mixture.temperature_sampling(MANY, tau) for tau in np.linspace(1, 8, 60)]
        starts = np.concatenate([[0], np.cumsum(np.random.default_rng(0).integers(1, 6, 59))]).tolist()
        schedule = schedules.staircase(list(zip(starts, mixtures, strict=True)))
    running = make(schedule, "quota", batch_size=16)
    for step in range(170):
        resumed = make(schedule, "quota", batch_size=16)
        resumed.load_state_dict(running.state_dict(step))
        assert resumed.plan(step).indices.tolist() == running.plan(step).indices.tolist()


@pytest.mark.parametrize("allocation", ALLOCATIONS)
@pytest.mark.parametrize("change", [False, True])
def test_an_estimate_is_near_the_count(allocation, change):
    sampler = make(schedules.anneal(SIZES, tau=5, final_tau=1, num_steps=700), allocation, batch_size=30)
    if change:
        grown = SIZES | {"fa": 60, "ug": 50}
        sampler.set_schedule(schedules.cooldown(grown, switch_step=900), from_step=800)
    sampler.plan(99)
    for step in (0, 100, 850, 1000):
        exact, estimate = sampler.exposure(step), sampler.exposure(step, estimate=True)
        assert estimate.draws.dtype == np.int64
        assert abs(estimate.draws.sum() - 30 * step) <= len(sampler.domains) / 2
        allowed = {"quota": 1.5, "systematic": 3 * step**0.5 / 2, "multinomial": 3 * (30 * step) ** 0.5 / 2}[allocation]
        if step > 100:  # before step 100 the estimate is the exact count
            assert np.abs(estimate.draws - exact.draws).max() <= allowed + 1
            assert estimate.epochs == pytest.approx(exact.epochs, abs=(allowed + 1) / 41)
    assert sampler.exposure(0, estimate=True).draws.tolist() == [0] * len(sampler.domains)


@pytest.mark.parametrize("schedule", ["constant", "anneal"])
def test_an_estimate_takes_no_planning(schedule):
    """An estimate for 10^12 steps is immediate. Counting them would take hours."""
    mixture = Mixture.temperature_sampling(SIZES, 5)
    if schedule == "constant":
        schedule = schedules.constant(mixture)
    else:
        schedule = schedules.anneal(SIZES, tau=1, final_tau=5, num_steps=1000)
    exposure = make(schedule, "multinomial", batch_size=30).exposure(10**12, estimate=True)
    assert exposure.draws / (30 * 10**12) == pytest.approx(mixture.sampling, rel=1e-6)
