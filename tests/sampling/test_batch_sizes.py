"""Batch sizes may change by a ramp, in a running job or on resuming, and no sample is lost or repeated."""

import json
import math
import pickle
from itertools import islice

import numpy as np
import pytest

from pycooldown import DomainBatchSampler, Mixture, schedules
from pycooldown.adaptive import OnlineDataMixing, Statistics

SIZES = {"zh": 1500, "de": 700, "fa": 41}
OFFSETS = np.cumsum([0, *SIZES.values()])
RAMP = [(0, 10), (7, 17), (30, 40), (90, 24)]
NUM_STEPS = 150
ALLOCATIONS = ("multinomial", "systematic", "quota")
SCHEDULES = {
    "cooldown": schedules.cooldown(SIZES, switch_step=25),
    "anneal": schedules.anneal(SIZES, tau=5, final_tau=1, num_steps=100),
}


def make(schedule="cooldown", batch_size=RAMP, **options):
    options = {"seed": 5, "num_steps": NUM_STEPS} | options
    return DomainBatchSampler(SCHEDULES[schedule], batch_size=batch_size, **options)


def size_of(step):
    return next(size for first_step, size in reversed(RAMP) if first_step <= step)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("allocation", ALLOCATIONS)
class TestContract:
    def test_nothing_is_lost_or_repeated(self, schedule, allocation):
        """Each epoch of a domain is a permutation of it, whatever the sizes of the batches."""
        sampler = make(schedule, allocation=allocation)
        batches = list(sampler)
        assert [len(batch) for batch in batches] == [size_of(step) for step in range(NUM_STEPS)]
        indices = np.concatenate(batches)
        for domain, size in enumerate(SIZES.values()):
            mine = indices[np.searchsorted(OFFSETS, indices, side="right") - 1 == domain] - OFFSETS[domain]
            for begin in range(0, len(mine), size):
                epoch = mine[begin : begin + size]
                assert len(np.unique(epoch)) == len(epoch)
        drawn = np.bincount(np.searchsorted(OFFSETS, indices, side="right") - 1, minlength=3)
        assert sampler.exposure().draws.tolist() == drawn.tolist()
        deviations = drawn - sampler.exposure(estimate=True).epochs * sampler.sizes
        assert make(schedule, allocation=allocation).exposure(estimate=True).epochs == pytest.approx(
            drawn / sampler.sizes, rel=0.3
        )
        assert np.abs(deviations).max() < 1e-9  # after a pass the estimate is the exact count

    def test_changes_in_a_running_job_equal_the_ramp(self, schedule, allocation):
        sampler = make(schedule, batch_size=10, allocation=allocation)
        sampler.exposure()
        batches, read = iter(sampler), []
        for step in range(NUM_STEPS):
            for first_step, size in RAMP[1:]:
                if step == first_step - 2:
                    sampler.set_batch_size(size, from_step=first_step)
            read.append(next(batches))
        assert read == list(make(schedule, allocation=allocation))

    @pytest.mark.parametrize("stop", [0, 6, 7, 8, 30, 120])
    def test_resumes_on_another_world_size(self, schedule, allocation, stop):
        first = make(schedule, allocation=allocation, world_size=3, rank=1)
        list(islice(first, stop))
        state = json.loads(json.dumps(first.state_dict()))
        assert state["version"] == 2
        ranks = [make(schedule, allocation=allocation, world_size=2, rank=rank) for rank in range(2)]
        for rank in ranks:
            rank.load_state_dict(state)
        whole = list(make(schedule, allocation=allocation))
        assert [a + b for a, b in zip(*ranks, strict=True)] == whole[stop:]
        copy = pickle.loads(pickle.dumps(first))
        assert list(copy) == list(first)

    def test_resumes_with_another_batch_size(self, schedule, allocation):
        """A job resumes with another size from the state's step on, and resumes once more later."""
        state = make(schedule, batch_size=10, allocation=allocation).state_dict(12)
        assert state["version"] == 1
        sampler = make(schedule, batch_size=10, allocation=allocation)
        sampler.load_state_dict(state)
        sampler.set_batch_size(25, from_step=12)
        whole = list(make(schedule, batch_size=[(0, 10), (12, 25)], allocation=allocation))
        assert list(islice(sampler, 20)) == whole[12:32]
        again = make(schedule, batch_size=10, allocation=allocation)
        again.set_batch_size(25, from_step=12)
        again.load_state_dict(sampler.state_dict())
        assert list(again) == whole[32:]

    def test_one_size_is_the_same_however_it_is_given(self, schedule, allocation):
        assert list(make(schedule, batch_size=[(0, 30)], allocation=allocation)) == list(
            make(schedule, batch_size=30, allocation=allocation)
        )


def test_quota_stays_within_one_sample_of_what_was_known():
    sampler = make("anneal", allocation="quota")
    earned, drawn = np.zeros(3), np.zeros(3)
    for step in range(NUM_STEPS):
        plan = sampler.plan(step)
        earned += size_of(step) * plan.mixture.sampling
        drawn += np.bincount(plan.domain_ids, minlength=3)
        assert np.abs(earned - drawn).max() < 1 + 1e-5


def test_multinomial_draws_share_no_random_number():
    """The domains of all slots, in order, are one stream of draws, however it is cut into batches."""
    mixture = Mixture.temperature_sampling(SIZES, 5)
    ramp, constant = (
        DomainBatchSampler(schedules.constant(mixture), batch_size=sizes, seed=3, num_steps=40)
        for sizes in ([(0, 10), (4, 30)], 10)
    )
    ids = np.concatenate([ramp.plan(step).domain_ids for step in range(8)])
    assert ids.tolist() == np.concatenate([constant.plan(step).domain_ids for step in range(16)]).tolist()


def test_ramps_work_with_changes_of_the_schedule():
    grown = schedules.cooldown(SIZES | {"fa": 60, "ug": 50}, switch_step=60)

    def job():
        sampler = make(allocation="quota")
        sampler.set_schedule(grown, from_step=50)
        return sampler

    whole = list(job())
    for stop in (40, 50, 95):
        sampler = job()
        sampler.load_state_dict(json.loads(json.dumps(job().state_dict(stop))))
        assert list(sampler) == whole[stop:]


def test_ramps_work_with_a_schedule_that_learns():
    def job(batch_size):
        start = Mixture.temperature_sampling(SIZES, math.inf)
        return DomainBatchSampler(OnlineDataMixing(start, delay=3), batch_size=batch_size, seed=1, num_steps=30)

    ramp, running, read = job([(0, 10), (12, 20)]), job(10), []
    for step, batch in enumerate(ramp):
        if step == 6:
            running.set_batch_size(20, from_step=12)  # a step whose mixture is not decided yet
        read.append(batch)
        assert next(iter(running)) == batch
        for sampler in (ramp, running):
            sampler.schedule.update(step, Statistics(np.arange(1.0, 4) * step, np.full(3, 10)))
    assert ramp.state_dict(30)["draws"] == running.state_dict(30)["draws"]
    assert [len(batch) for batch in read] == [10] * 12 + [20] * 18


@pytest.mark.parametrize(
    ("batch_size", "error", "message"),
    [
        ([], ValueError, r"batch sizes start at steps \[\]; expected 0 and then increasing steps"),
        ([(3, 10)], ValueError, r"start at steps \[3\]"),
        ([(0, 10), (5, 20), (5, 30)], ValueError, r"start at steps \[0, 5, 5\]"),
        ([(0, 10), (5, 0)], ValueError, "batch_size = 0"),
        ([(0, 10), (5, 2.5)], TypeError, r"batch_size = 2.5, a float"),
        ([(0, 10), (5, 2)], ValueError, "world_size = 3 is above batch_size = 2"),
        ([(0, 10), (5, 900)], ValueError, r"domain 'fa' \d+\.\d times .* at step 5, but it has 41"),
        ("30", TypeError, "expected an integer"),
    ],
)
def test_bad_ramps_are_refused(batch_size, error, message):
    with pytest.raises(error, match=message):
        make(batch_size=batch_size, world_size=3)


def test_sizes_after_the_end_are_not_drawn():
    assert len(list(make(batch_size=[(0, 10), (200, 900)]))) == NUM_STEPS


def test_impossible_changes_are_refused():
    sampler = make(batch_size=10, world_size=4)
    list(islice(sampler, 20))
    for size, step, message in [
        (12, 19, "batches before step 20 have been yielded"),
        (3, 30, "world_size = 4 is above batch_size = 3"),
        (5_000, 30, r"domain '\w+' .* at step 30"),  # rounding decides which domain is named
        (0, 30, "batch_size = 0"),
    ]:
        with pytest.raises(ValueError, match=message):
            sampler.set_batch_size(size, from_step=step)
    sampler.set_batch_size(12, from_step=20)
    with pytest.raises(ValueError, match=r"batch sizes start at steps \[0, 20, 20\]"):
        sampler.set_batch_size(12, from_step=20)
    assert sampler.batch_size == 12
    assert sampler.batch_size_at(19) == 10


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ([[0, 10], [8, 17]], "batch sizes by their first steps are .* in the state and .* here: make the same calls"),
        (None, "batch_sizes is None; expected pairs"),
        ([[0, 10], [7]], "expected pairs of a step and a size"),
        ([[0, True]], "expected pairs of a step and a size"),
    ],
)
def test_damaged_sizes_are_refused(sizes, message):
    state = make().state_dict(9)
    with pytest.raises(ValueError, match=message):
        make().load_state_dict(state | {"batch_sizes": sizes})
    with pytest.raises(ValueError, match="version 1"):
        make().load_state_dict(state | {"version": 1})
    with pytest.raises(ValueError, match="batch sizes by their first steps"):
        make(batch_size=10).load_state_dict(state)
