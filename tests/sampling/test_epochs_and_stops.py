"""Each pass has another order, and rules end a pass before a sample repeats or after all have come."""

import json
import math
import pickle
from itertools import islice

import numpy as np
import pytest

from pycooldown import DomainBatchSampler, Mixture, schedules
from pycooldown.adaptive import OnlineDataMixing

SIZES = {"zh": 1500, "de": 700, "fa": 41}
ONCE = "all_exhausted_without_replacement"
ABSENT = Mixture(tuple(SIZES), list(SIZES.values()), [0.5, 0.5, 0], [0.5, 0.5, 0])
ALLOCATIONS = ("multinomial", "systematic", "quota")
SCHEDULE = schedules.cooldown(SIZES, switch_step=10)


def make(allocation="quota", schedule=SCHEDULE, **options):
    options = {"batch_size": 30, "seed": 2**63 + 7, "num_steps": 25} | options
    return DomainBatchSampler(schedule, allocation=allocation, **options)


@pytest.mark.parametrize("allocation", ALLOCATIONS)
class TestEpochs:
    def test_each_has_an_order_of_its_own(self, allocation):
        sampler, passes = make(allocation), []
        for epoch in (0, 1, 2, 2**40):
            sampler.set_epoch(epoch)
            passes.append(list(sampler))
            assert list(sampler) == passes[-1]
        assert passes[0] == list(make(allocation))
        assert len({json.dumps(batches) for batches in passes}) == 4
        sampler.set_epoch(1)
        assert list(sampler) == passes[1]

    def test_ranks_agree_and_cover_the_batch(self, allocation):
        whole = make(allocation)
        whole.set_epoch(3)
        ranks = [make(allocation, rank=rank, world_size=2) for rank in range(2)]
        for rank in ranks:
            rank.set_epoch(3)
        assert [a + b for a, b in zip(*ranks, strict=True)] == list(whole)

    @pytest.mark.parametrize("stop", [0, 9, 25])
    def test_a_loop_over_epochs_resumes_in_the_middle_of_one(self, allocation, stop):
        def loop(sampler, first_epoch):
            for epoch in range(first_epoch, 4):
                sampler.set_epoch(epoch)
                yield from sampler

        whole = list(loop(make(allocation), 0))
        sampler = make(allocation)
        read = list(islice(loop(sampler, 0), 2 * 25 + stop))
        state = json.loads(json.dumps(sampler.state_dict()))
        assert (state["version"], state["epoch"]) == ((2, 2) if stop else (2, 1))
        resumed = make(allocation)
        resumed.load_state_dict(state)
        assert read + list(loop(resumed, state["epoch"])) == whole
        assert pickle.loads(pickle.dumps(resumed)).state_dict() == resumed.state_dict()

    def test_with_domains_that_grow(self, allocation):
        def job():
            sampler = make(allocation, num_steps=80)
            sampler.set_schedule(schedules.constant(Mixture.proportional(SIZES | {"fa": 60, "ug": 60})), from_step=20)
            return sampler

        sampler, fresh = job(), job()
        list(sampler)
        for s in (sampler, fresh):
            s.set_epoch(5)
        list(islice(fresh, 40))
        assert fresh.state_dict(30) == sampler.state_dict(30)
        resumed = job()
        resumed.load_state_dict(fresh.state_dict(30))
        assert list(resumed) == list(sampler)[30:]


def test_an_epoch_of_a_state_is_read_with_its_number():
    state = make().state_dict(5)
    assert "epoch" not in state
    assert state["version"] == 1
    for epoch in (-1, 2**64, 1.0, None, "1"):
        with pytest.raises(ValueError, match=r"epoch is .*; expected an integer in"):
            make().load_state_dict(state | {"version": 2, "epoch": epoch})
    with pytest.raises(ValueError, match="version 1"):
        make().load_state_dict(state | {"epoch": 1})
    for epoch, error in [(-1, ValueError), (2**64, ValueError), (0.5, TypeError)]:
        with pytest.raises(error, match="epoch = "):
            make().set_epoch(epoch)


@pytest.mark.parametrize("batch_size", [30, [(0, 10), (3, 30)]])
@pytest.mark.parametrize("allocation", ALLOCATIONS)
def test_first_exhausted_draws_each_sample_at_most_once(allocation, batch_size):
    sampler = make(allocation, batch_size=batch_size, num_steps=None, stop="first_exhausted")
    batches = list(sampler)
    assert len(batches) == len(sampler) == sampler.num_steps > 0
    indices = np.concatenate(batches)
    assert len(np.unique(indices)) == len(indices)
    following = sampler.plan(len(sampler))
    assert following.epochs.max() == 1  # the next step would repeat a sample
    assert list(sampler) == batches
    sampler.set_epoch(1)
    other = list(sampler)
    assert len(np.unique(np.concatenate(other))) == len(np.concatenate(other))
    resumed = make(allocation, batch_size=batch_size, num_steps=None, stop="first_exhausted")
    resumed.load_state_dict(sampler.state_dict(2))
    assert list(resumed) == other[2:]


def test_first_exhausted_follows_changes():
    sampler = make(num_steps=None, stop="first_exhausted")
    before = len(sampler)
    without = Mixture(tuple(SIZES), list(SIZES.values()), [0.5, 0.5, 0], [0.5, 0.5, 0])
    sampler.set_schedule(schedules.constant(without), from_step=2)
    assert len(sampler) > before
    indices = np.concatenate(list(sampler))
    assert len(np.unique(indices)) == len(indices)
    longer = len(sampler)
    with pytest.raises(ValueError, match="known beforehand"):
        sampler.set_schedule(OnlineDataMixing(Mixture.temperature_sampling(SIZES, math.inf), delay=2), from_step=4)
    assert len(sampler) == longer
    sampler.set_batch_size(10, from_step=4)
    assert len(sampler) > longer


@pytest.mark.parametrize("from_step", [2, 30])
def test_first_exhausted_counts_the_size_with_which_a_domain_that_grows_began(from_step):
    """A grown domain's next epoch has its old samples too, so the pass ends before that."""
    rare = Mixture.proportional(SIZES)
    sampler = make(schedule=schedules.constant(rare), num_steps=None, stop="first_exhausted")
    grown = schedules.constant(Mixture.proportional(SIZES | {"fa": 600}))
    sampler.set_schedule(grown, from_step=from_step)
    indices = np.concatenate(list(sampler))
    assert len(np.unique(indices)) == len(indices)
    assert sampler.plan(len(sampler)).epochs.max() == 1


@pytest.mark.parametrize("batch_size", [30, [(0, 10), (3, 30)]])
@pytest.mark.parametrize("allocation", ALLOCATIONS)
def test_all_exhausted_ends_with_the_step_that_draws_the_last_sample(allocation, batch_size):
    options = {"batch_size": batch_size, "num_steps": None, "stop": "all_exhausted"}
    sampler = make(allocation, **options)
    batches = list(sampler)
    assert len(batches) == len(sampler)
    every = set(range(sum(SIZES.values())))
    assert set(np.concatenate(batches)) == every
    assert set(np.concatenate(batches[:-1])) != every
    assert sampler.exposure().epochs.min() >= 1
    unstopped = make(allocation, batch_size=batch_size, num_steps=len(batches))
    assert list(unstopped) == batches  # the rule changes only the end
    resumed = make(allocation, **options, rank=1, world_size=2)
    resumed.load_state_dict(sampler.state_dict(7))
    assert list(resumed) == [batch[len(batch) // 2 :] for batch in batches[7:]]


def test_all_exhausted_waits_for_all_samples_of_a_domain_that_grows():
    options = {"schedule": schedules.constant(Mixture.proportional(SIZES)), "num_steps": None, "stop": "all_exhausted"}
    sampler = make(**options)
    sampler.set_schedule(schedules.constant(Mixture.temperature_sampling(SIZES | {"fa": 90}, 5.0)), from_step=4)
    assert set(np.concatenate(list(sampler))) >= set(range(sum(SIZES.values()), sum(SIZES.values()) + 49))
    assert sampler.exposure().draws[2] >= 41 + 90


# ---- each sample exactly once ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [30, 41, [(0, 10), (3, 30), (60, 7)]])
@pytest.mark.parametrize("allocation", ALLOCATIONS)
class TestOnce:
    def options(self, allocation, batch_size):
        return {"allocation": allocation, "batch_size": batch_size, "num_steps": None, "stop": ONCE}

    def test_each_sample_comes_once_and_the_mixture_holds_until_a_domain_ends(self, allocation, batch_size):
        sampler = make(**self.options(allocation, batch_size))
        batches = list(sampler)
        assert len(batches) == len(sampler)
        assert sorted(np.concatenate(batches)) == list(range(sum(SIZES.values())))
        sizes = [len(batch) for batch in batches]
        assert sizes[:-1] == [sampler.batch_size_at(step) for step in range(len(batches) - 1)]
        assert 0 < sizes[-1] == sampler.batch_size_at(len(batches) - 1)
        repeating = make(allocation, batch_size=batch_size, num_steps=None, stop="first_exhausted")
        assert batches[: len(repeating)] == list(repeating)
        plan = sampler.plan(len(batches) // 2)
        assert plan.indices.tolist() == batches[len(batches) // 2]
        assert not plan.epochs.any()

    def test_ranks_epochs_and_states_of_any_step(self, allocation, batch_size):
        options = self.options(allocation, batch_size)
        whole = make(**options)
        batches = list(whole)
        for step in (0, 11, len(batches) - 1):
            ranks = [make(**options, rank=rank, world_size=3) for rank in range(3)]
            state = json.loads(json.dumps(whole.state_dict(step)))
            assert state["once"] is True
            for rank in ranks:
                rank.load_state_dict(state)
            assert [a + b + c for a, b, c in zip(*ranks, strict=True)] == batches[step:]
        whole.set_epoch(1)
        other = list(whole)
        assert sorted(np.concatenate(other)) == sorted(np.concatenate(batches))
        assert other != batches
        assert list(pickle.loads(pickle.dumps(whole))) == other


def test_once_follows_changes_of_batch_size_and_domains_that_join():
    sampler = make(num_steps=None, stop=ONCE)
    with pytest.raises(ValueError, match=r"'fa' would grow, but a pass that draws each sample once"):
        sampler.set_schedule(schedules.constant(Mixture.proportional(SIZES | {"fa": 60})), from_step=4)
    sampler.set_batch_size(50, from_step=10)
    sampler.set_schedule(schedules.constant(Mixture.proportional(SIZES | {"ug": 60})), from_step=20)
    assert sampler.batch_size == 50
    batches = list(sampler)
    assert sorted(np.concatenate(batches)) == list(range(sum(SIZES.values()) + 60))
    assert len(batches) == len(sampler) == 10 + math.ceil((sum(SIZES.values()) + 60 - 300) / 50)


def test_once_learns_a_mixture_too_and_draws_domains_smaller_than_their_share_of_a_batch():
    schedule = OnlineDataMixing(Mixture.temperature_sampling({"a": 300, "b": 3}, math.inf), delay=200)
    sampler = make("quota", schedule, batch_size=32, num_steps=None, stop=ONCE)
    assert sorted(np.concatenate(list(sampler))) == list(range(303))
    assert len(sampler) == 10


def test_once_names_a_step_at_which_nothing_is_left_to_draw():
    sampler = make(schedule=schedules.constant(ABSENT), num_steps=None, stop=ONCE)
    with pytest.raises(ValueError, match=r"no domain that the mixture of step 7[0-9] draws has a sample left"):
        list(sampler)


@pytest.mark.parametrize("batch_size", [5_000, [(0, 5_000), (3, 30)]])
def test_a_pass_smaller_than_a_batch_goes_on_from_its_state(batch_size):
    options = {"batch_size": batch_size, "num_steps": None, "stop": ONCE}
    sampler, other = make(**options), make(**options)
    (batch,) = sampler
    assert sorted(batch) == list(range(sum(SIZES.values())))
    other.load_state_dict(sampler.state_dict(step=0))
    assert list(other) == [batch]
    other.load_state_dict(sampler.state_dict(step=1))
    assert list(other) == []


def test_states_with_and_without_repetition_are_of_other_jobs():
    once, other = make(num_steps=None, stop=ONCE), make()
    for one, two in ((once, other), (other, once)):
        with pytest.raises(ValueError, match=r"once is (True|False) in the state and (True|False) here"):
            one.load_state_dict(two.state_dict(3))


def test_proportional_quota_draws_every_sample_once():
    sampler = make(
        "quota",
        schedules.constant(Mixture.proportional({"a": 60, "b": 30, "c": 10})),
        batch_size=10,
        stop="first_exhausted",
        num_steps=None,
    )
    assert sorted(np.concatenate(list(sampler))) == list(range(100))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stop": "last_exhausted"}, r"stop = 'last_exhausted'; expected None or one of 'first_exhausted', 'all_exh"),
        ({"stop": "all_exhausted", "schedule": schedules.constant(ABSENT)}, "does not draw domain 'fa', although some"),
        ({"stop": ONCE, "num_steps": 3}, "sets num_steps, but num_steps = 3"),
        ({"stop": ONCE, "batch_size": 1120, "world_size": 2}, "batch_size = 1, what is left for the last batch"),
        ({"stop": "first_exhausted", "num_steps": 3}, "sets num_steps, but num_steps = 3"),
        (
            {
                "stop": "first_exhausted",
                "schedule": OnlineDataMixing(Mixture.temperature_sampling(SIZES, math.inf), delay=2),
            },
            "known beforehand",
        ),
    ],
)
def test_bad_rules_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        make(**({"num_steps": None} | options))
