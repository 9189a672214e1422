"""A running job takes another schedule, more domains and more data, loses nothing and can be replayed exactly."""

import json
from itertools import islice

import numpy as np
import pytest

from pycooldown import DomainBatchSampler, Mixture, _core, schedules

ALLOCATIONS = ("multinomial", "systematic", "quota")
SIZES = {"zh": 1500, "de": 700, "fa": 41}
MORE = {"zh": 1500, "de": 810, "fa": 60, "ug": 50}  # two domains grow, one joins
MOST = MORE | {"fa": 97}
FIRST = schedules.cooldown(SIZES, switch_step=25)
CHANGES = [(schedules.cooldown(MORE, switch_step=60), 40), (schedules.constant(Mixture.scalarization(MOST, 3)), 70)]
NUM_STEPS = 400


def make(changes=CHANGES, **options):
    sampler = DomainBatchSampler(FIRST, **({"batch_size": 30, "seed": 5, "num_steps": NUM_STEPS} | options))
    for schedule, step in changes:
        sampler.set_schedule(schedule, from_step=step)
    return sampler


def located(plan, sizes):
    """Return the domains, and the positions within them."""
    offsets = np.cumsum([0, *sizes.values()])
    domains = np.searchsorted(offsets, plan.indices, side="right") - 1
    assert np.array_equal(domains, plan.domain_ids)
    return domains, plan.indices - offsets[domains]


@pytest.mark.parametrize("allocation", ALLOCATIONS)
class TestContract:
    def test_a_change_in_a_running_job_equals_its_replay(self, allocation):
        replay = [make(allocation=allocation).plan(step) for step in (0, 39, 40, 41, 69, 70, 200)]
        running = make([], allocation=allocation)
        running.exposure()  # a forecast before the change must not affect it
        seen, sizes = {}, SIZES
        batches = iter(running)
        for step in range(201):
            for schedule, from_step in CHANGES:
                if step == from_step - 3:  # announced ahead of its first step
                    running.set_schedule(schedule, from_step=from_step)
                    sizes = dict(zip(running.domains, running.sizes.tolist(), strict=True))
            next(batches)
            seen[step] = located(running.plan(step), sizes)
        for plan, step in zip(replay, (0, 39, 40, 41, 69, 70, 200), strict=True):
            for ours, theirs in zip(located(plan, MOST), seen[step], strict=True):
                assert np.array_equal(ours, theirs)
            assert plan.mixture == running.mixture(step)

    def test_each_epoch_is_a_permutation_of_the_size_it_began_with(self, allocation):
        sampler = make(allocation=allocation)
        plans = [sampler.plan(step) for step in range(NUM_STEPS)]
        domains, positions = (np.concatenate(parts) for parts in zip(*(located(p, MOST) for p in plans), strict=True))
        epochs = np.concatenate([plan.epochs for plan in plans])
        lengths = []
        for domain in range(4):
            of_domain = [positions[(domains == domain) & (epochs == e)] for e in range(epochs[domains == domain].max())]
            assert all(np.array_equal(np.sort(seen), np.arange(len(seen))) for seen in of_domain)
            lengths.append([len(seen) for seen in of_domain])
        assert set(lengths[0]) <= {1500}
        assert sorted(set(lengths[2])) == [41, 60, 97]
        assert lengths[2] == sorted(lengths[2])
        assert set(lengths[3]) == {50}
        begun = [int(epochs[30 * step :][domains[30 * step :] == 2][0]) for step in (40, 70)]
        for step, size, epoch in zip((40, 70), (60, 97), begun, strict=True):
            assert size in lengths[2][epoch : epoch + 2], (
                f"no epoch of {size} samples follows the change at step {step}"
            )

    @pytest.mark.parametrize("stop", [10, 40, 41, 70, 150])
    def test_resumes_on_another_world_size(self, allocation, stop):
        first = make(allocation=allocation, world_size=3, rank=1)
        list(islice(first, stop))
        second = make(allocation=allocation)
        second.load_state_dict(json.loads(json.dumps(first.state_dict())))
        whole = make(allocation=allocation)
        assert list(islice(second, 80)) == [whole.plan(step).indices.tolist() for step in range(stop, stop + 80)]
        assert second.exposure(300).draws.tolist() == whole.exposure(300).draws.tolist()
        again = make(allocation=allocation)
        again.load_state_dict(second.state_dict())
        assert second.plan(NUM_STEPS - 1).indices.tolist() == again.plan(NUM_STEPS - 1).indices.tolist()

    def test_steps_before_a_change_stay_as_they_were(self, allocation):
        """Steps before a change stay as they were, also those that were planned but not yet handed out."""
        without = make([], allocation=allocation)
        with_change = make([(schedules.constant(Mixture.temperature_sampling(SIZES, 5)), 40)], allocation=allocation)
        for step in range(42):
            assert np.array_equal(without.plan(step).indices, with_change.plan(step).indices) == (step < 40)


def test_quota_credits_carry_over():
    sampler = make(allocation="quota")
    earned, drawn = np.zeros(4), np.zeros(4)
    for step in range(NUM_STEPS):
        plan = sampler.plan(step)
        earned[: plan.mixture.num_domains] += 30 * plan.mixture.sampling
        drawn += np.bincount(plan.domain_ids, minlength=4)
        assert np.abs(earned - drawn).max() < 1 + 1e-5


def test_resume_with_grown_domains_needs_no_replay():
    sampler = make([(schedules.constant(Mixture.proportional(MORE)), 10**9)], num_steps=None)
    grown = {"de": 8 * 10**8, "fa": 2 * 10**8 + 900}
    change = {"from_step": 10**9, "schedule": "constant(temperature_sampling(tau=1.0))", "draws": grown}
    change["sizes"] = {"de": 810, "fa": 60, "ug": 50}
    draws = grown | {"zh": 30 * 10**9 - sum(grown.values()), "ug": 0}
    sampler.load_state_dict(make([]).state_dict() | {"step": 10**9, "draws": draws, "changes": [change]})
    plan = sampler.plan(10**9)
    de = plan.epochs[plan.domain_ids == 1]
    assert set(de) == {8 * 10**8 // 700}  # the epoch at this step
    assert located(plan, MORE)[1][plan.domain_ids == 1].max() < 700


@pytest.mark.parametrize(
    ("schedule", "from_step", "message"),
    [
        (
            schedules.cooldown(SIZES, switch_step=3),
            19,
            "batches before step 20 have been yielded; expected a step >= 20",
        ),
        (schedules.cooldown(SIZES, switch_step=3), 30, "from_step = 30; expected a step after 30"),
        (schedules.cooldown({"de": 700, "zh": 1500, "fa": 41}, switch_step=3), 40, "in this order"),
        (schedules.cooldown({"zh": 1500, "de": 700}, switch_step=3), 40, "sampling probability of 0"),
        (schedules.cooldown(SIZES | {"de": 699}, switch_step=3), 40, "'de' has 699 samples in the schedule and 700"),
        (
            schedules.cooldown(SIZES | {"x": 2}, switch_step=99),
            40,
            "domain 'x' .* times on average in a batch at step 40",
        ),
    ],
)
def test_impossible_changes_are_refused(schedule, from_step, message):
    sampler = make([(FIRST, 30)])
    list(islice(sampler, 20))
    with pytest.raises(ValueError, match=message):
        sampler.set_schedule(schedule, from_step=from_step)
    assert next(iter(sampler)) == make([]).plan(20).indices.tolist()
    with pytest.raises(TypeError, match="schedule is a Mixture"):
        sampler.set_schedule(Mixture.proportional(SIZES), from_step=50)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            CHANGES[:1],
            r"state has a schedule constant\(scalarization.tau=3.0.\) from step 70 on, but this job has none",
        ),
        ([*CHANGES, (CHANGES[1][0], 90)], "this job has a schedule .* from step 90 on, but the state has none"),
        ([CHANGES[0], (CHANGES[1][0], 71)], "from_step of change 2 is 70 in the state and 71 here"),
        ([CHANGES[0], (schedules.cooldown(MOST, switch_step=9), 70)], "schedule of change 2 is 'constant.* here"),
        ([CHANGES[0], (schedules.constant(Mixture.scalarization(MORE, 3)), 70)], "sizes of change 2 is {'fa': 97}"),
    ],
)
def test_the_state_of_a_job_with_other_changes_is_refused(changes, message):
    sampler = make(changes)
    with pytest.raises(ValueError, match=message):
        sampler.load_state_dict(make().state_dict(80))
    assert sampler.state_dict()["step"] == 0


@pytest.mark.parametrize(
    ("draws", "message"),
    [
        ({"fa": 9}, r"'draws of change 1' names different domains: \['fa'\]; expected \['de', 'fa'\]"),
        ({"de": 9}, "names different domains"),
        ({"de": -1, "fa": 9}, "change 1 has -1 draws of domain 'de' before step 40; expected 0 to"),
        ({"de": 2**61, "fa": 9}, "draws of domain 'de' before step 40; expected 0 to"),
        ({"de": 2**80, "fa": 9}, "expected integers below"),
        ({"de": True, "fa": 9}, "holds True; expected integers"),
        ({}, "names different domains"),
        ([], "change 1 is .* expected a mapping"),
        (None, "change 1 is .* expected a mapping"),
    ],
)
def test_damaged_draws_at_a_change_are_refused(draws, message):
    state = make().state_dict(80)
    state["changes"][0]["draws"] = draws
    with pytest.raises(ValueError, match=message):
        make().load_state_dict(state)


@pytest.mark.parametrize("changes", [None, 3, "changes", {}, [None, None], [[]], [{"from_step": 40}], {"draws": {}}])
def test_a_damaged_list_of_changes_is_refused(changes):
    state = make().state_dict(80) | {"changes": changes}
    with pytest.raises(ValueError, match=r"state is damaged: chang|the state has none"):
        make().load_state_dict(state)


def test_a_domain_that_has_not_joined_has_neither_draws_nor_credit():
    """A state with draws or credits of such a domain is refused. Its credits once crashed the process."""
    schedule = schedules.constant(Mixture.proportional({"a": 700, "b": 41}))
    joined = schedules.constant(Mixture.proportional({"a": 700, "b": 41, "n": 50}))

    def job():
        sampler = DomainBatchSampler(schedule, batch_size=30, seed=1, allocation="quota")
        sampler.set_schedule(joined, from_step=50)
        return sampler

    state = job().state_dict(10)
    for credits in ({"a": -(2**40), "b": 0, "n": 2**40}, {"a": -1, "b": 0, "n": 1}):
        with pytest.raises(ValueError, match=r"state is damaged: (credits sum to 0 and the least is|domain 'n' has 0)"):
            job().load_state_dict(state | {"credits": credits})
    drawn = state["draws"] | {"a": state["draws"]["a"] - 1, "n": 1}
    with pytest.raises(ValueError, match="domain 'n' has 1 draws and a credit of 0 at step 10"):
        job().load_state_dict(state | {"draws": drawn})
    core = _core.BatchPlanner([700, 41, 50], _core.Allocation.quota, batch_size=30, seed=1, shuffle=True)
    with pytest.raises(ValueError, match="credits has -1099511627776; expected numbers between"):
        core.seek([0, 0, 0], [-(2**40), 0, 2**40])
    core.seek([0, 0, 0], [1 - 2**32, 1 - 2**32, 2**33 - 2])  # the mixture lacks the third domain
    with pytest.raises(ValueError, match=r"the credits of the mixture's domains at step 1. do not sum to 0"):
        core.skip([(_core.AliasTable([1, 2**-31]), 2**64 - 1)], 10, 14)
