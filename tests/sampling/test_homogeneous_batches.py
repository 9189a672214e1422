"""Homogeneous batches hold one domain each, and are as exact and elastic as mixed ones."""

import json
import pickle

import numpy as np
import pytest

from pycooldown import DomainBatchSampler, Mixture, schedules

SIZES = {"en": 900, "de": 90, "sw": 33}
ALLOCATIONS = ("multinomial", "systematic", "quota")


def make(schedule=None, *, homogeneous=True, **options):
    schedule = schedule or schedules.constant(Mixture.temperature_sampling(SIZES, 3))
    options = {"batch_size": 16, "seed": 5, "num_steps": 200, **options}
    return DomainBatchSampler(schedule, homogeneous=homogeneous, **options)


@pytest.mark.parametrize("allocation", ALLOCATIONS)
def test_each_batch_is_of_one_domain_whose_epochs_are_permutations(allocation):
    sampler = make(allocation=allocation)
    plans = [sampler.plan(step) for step in range(200)]
    assert all(len(set(plan.domain_ids)) == 1 and len(plan.indices) == 16 for plan in plans)
    assert {int(plan.domain_ids[0]) for plan in plans} == {0, 1, 2}
    bounds = np.cumsum([0, *SIZES.values()])
    for domain, size in enumerate(SIZES.values()):
        own = [plan for plan in plans if plan.domain_ids[0] == domain]
        drawn = np.concatenate([plan.indices for plan in own])
        assert np.concatenate([plan.epochs for plan in own]).tolist() == [i // size for i in range(len(drawn))]
        for begin in range(0, len(drawn) - size + 1, size):
            assert sorted(drawn[begin : begin + size]) == list(range(bounds[domain], bounds[domain + 1]))


@pytest.mark.parametrize("allocation", ALLOCATIONS)
def test_domains_follow_the_mixture(allocation):
    mixture = Mixture.temperature_sampling(SIZES, 3)
    sampler = make(allocation=allocation, num_steps=4000)
    batches = sampler.exposure().draws / 16
    expected = 4000 * mixture.sampling
    if allocation == "quota":  # off by less than one batch at any step
        for step in (7, 100, 4000):
            assert np.abs(sampler.exposure(step).draws / 16 - step * mixture.sampling).max() < 1
    else:  # 5 standard deviations
        assert (np.abs(batches - expected) < 5 * np.sqrt(expected * (1 - mixture.sampling))).all()


@pytest.mark.parametrize("allocation", ALLOCATIONS)
@pytest.mark.parametrize(
    "schedule",
    [
        None,
        schedules.cooldown(SIZES, tau=5, final_tau=1, switch_step=20),
        schedules.anneal(SIZES, tau=5, final_tau=1, num_steps=40),
    ],
)
def test_states_ranks_and_far_steps_agree(allocation, schedule):
    batch_size = [(0, 16), (25, 9)]
    options = {"allocation": allocation, "batch_size": batch_size, "num_steps": 60}
    whole = make(schedule, **options)
    batches = list(whole)
    assert [len(batch) for batch in batches] == [16] * 25 + [9] * 35
    ranks = [make(schedule, rank=rank, world_size=3, **options) for rank in range(3)]
    assert [[*a, *b, *c] for a, b, c in zip(*ranks, strict=True)] == batches
    state = json.loads(json.dumps(whole.state_dict(step=31)))
    resumed = make(schedule, **options)
    resumed.load_state_dict(state)
    assert list(pickle.loads(pickle.dumps(resumed))) == batches[31:]
    far = make(schedule, **options)
    assert far.plan(50).indices.tolist() == batches[50]
    draws = np.bincount(np.concatenate([far.plan(step).domain_ids for step in range(60)]), minlength=3)
    assert far.exposure().draws.tolist() == draws.tolist()


def test_changes_in_a_running_job_keep_batches_of_one_domain():
    sampler = make(allocation="quota", num_steps=80)
    begun = [next(iterator) for iterator in [iter(sampler)] for _ in range(30)]
    assert len(begun) == 30
    grown = {**SIZES, "sw": 50, "is": 40}
    sampler.set_schedule(schedules.constant(Mixture.temperature_sampling(grown, 3)), from_step=40)
    sampler.set_batch_size(8, from_step=50)
    plans = [sampler.plan(step) for step in range(80)]
    assert all(len(set(plan.domain_ids)) == 1 for plan in plans)
    assert 3 in {int(plan.domain_ids[0]) for plan in plans[40:]}
    assert sampler.exposure().draws.sum() == 50 * 16 + 30 * 8


def test_a_pass_ends_before_a_sample_comes_again():
    sampler = make(num_steps=None, stop="first_exhausted")
    plans = [sampler.plan(step) for step in range(sampler.num_steps + 1)]
    assert not any(plan.epochs.any() for plan in plans[:-1])
    assert plans[-1].epochs.any()


def test_states_of_homogeneous_and_mixed_batches_differ():
    homogeneous, mixed = make(), make(homogeneous=False)
    assert "homogeneous" not in mixed.state_dict()
    assert homogeneous.state_dict()["version"] == 2  # older versions refuse this state
    with pytest.raises(ValueError, match="homogeneous is True in the state and False here"):
        mixed.load_state_dict(homogeneous.state_dict())
    with pytest.raises(ValueError, match="homogeneous is False in the state and True here"):
        homogeneous.load_state_dict(mixed.state_dict())


def test_a_batch_fits_into_each_domain():
    with pytest.raises(ValueError, match="batch_size = 34, but domain 'sw' has 33 samples: a homogeneous batch"):
        make(batch_size=34)
    make(schedules.constant(Mixture(tuple(SIZES), list(SIZES.values()), [0.5, 0.5, 0], [0.5, 0.5, 0])), batch_size=34)
    with pytest.raises(ValueError, match="batch_size = 40, but domain 'sw' has 33 samples"):
        make().set_batch_size(40, from_step=3)


@pytest.mark.parametrize("batch_size", ["4096 tokens", {"tokens": 4096}, {"en": 16, "de": 8, "sw": 8}])
def test_budgets_in_tokens_and_sizes_by_domain_are_refused_with_the_reason(batch_size):
    with pytest.raises(TypeError, match=r"expected an integer, the samples of a batch.*TokenDataset"):
        make(batch_size=batch_size)
