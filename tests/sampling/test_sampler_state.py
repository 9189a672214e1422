"""A sampler's state is saved, loaded and pickled, and refused if it belongs to another job."""

import json
import pickle
from itertools import islice

import numpy as np
import pytest

from pycooldown import DomainBatchSampler, Mixture, schedules

SIZES = {"zh": 1500, "de": 700, "gl": 90, "fa": 17}
SCHEDULES = {
    "constant": schedules.constant(Mixture.temperature_sampling(SIZES, 5)),
    "scalarization": schedules.constant(Mixture.scalarization(SIZES, 5)),
    "cooldown": schedules.cooldown(SIZES, switch_step=23),
}


def make(schedule="cooldown", **options):
    return DomainBatchSampler(SCHEDULES[schedule], **({"batch_size": 30, "seed": 3, "num_steps": 60} | options))


def test_far_resume_needs_no_replay():
    sampler = make("constant", num_steps=None)
    state = sampler.state_dict()
    draws = {"zh": 15 * 10**9, "de": 10**10, "gl": 4 * 10**9, "fa": 10**9}
    sampler.load_state_dict(state | {"step": 10**9, "draws": draws})
    plan = sampler.plan(10**9)
    zh = plan.indices[plan.domain_ids == 0]
    assert set(plan.epochs[plan.domain_ids == 0]) == {10**7}
    assert len(np.unique(zh)) == len(zh)
    assert len(json.dumps(sampler.state_dict(10**9 + 1))) < 64 * 4 + 200


@pytest.mark.parametrize("stop", [0, 10, 30])
@pytest.mark.parametrize("allocation", ["multinomial", "systematic", "quota"])
def test_a_pickle_keeps_the_position(allocation, stop):
    sampler = make(allocation=allocation, num_steps=40)
    sampler.set_schedule(SCHEDULES["scalarization"], from_step=33)
    list(islice(sampler, stop))
    copy = pickle.loads(pickle.dumps(sampler))
    assert copy.state_dict() == sampler.state_dict()
    assert list(copy) == list(sampler)


def test_a_far_position_is_pickled_without_a_replay():
    sampler = make("constant", num_steps=None)
    draws = {"zh": 15 * 10**9, "de": 10**10, "gl": 4 * 10**9, "fa": 10**9}
    sampler.load_state_dict(sampler.state_dict() | {"step": 10**9, "draws": draws})
    assert next(iter(pickle.loads(pickle.dumps(sampler)))) == next(iter(sampler))


STATE = make().state_dict(step=7)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 2}, "version 2"),
        ({"version": 1.5}, "version 1.5"),
        ({"seed": 4}, "seed is 4 in the state and 3 here"),
        ({"batch_size": 10}, "batch_size is 10 in the state and 30 here"),
        ({"allocation": "systematic"}, "allocation is 'systematic'"),
        ({"shuffle": False}, "shuffle is False"),
        ({"schedule": "constant"}, "schedule is 'constant' in the state and 'cooldown.tau=5.0, .*23.' here"),
        ({"sizes": SIZES | {"fa": 18}}, "domain 'fa' has 18 samples in the state and 17 here"),
        ({"sizes": SIZES | {"ug": 5}}, "domain 'ug' is only in the state"),
        ({"sizes": {"zh": 1500, "de": 700, "gl": 90}}, "domain 'fa' is only in this job"),
        ({"sizes": dict(reversed(SIZES.items()))}, "the domains are in another order"),
        ({"step": 8}, "210 draws in 8 steps; expected 240"),
        ({"draws": {"zh": 210}}, "different domains"),
        ({"draws": None}, "different domains"),
        ({"draws": [52, 52, 53, 53]}, "different domains"),
        ({"draws": dict.fromkeys(SIZES, True)}, "'draws' holds True; expected integers"),
        ({"draws": {"zh": 212, "de": -2, "gl": 0, "fa": 0}}, "none below 0"),
        ({"draws": {"zh": 2**62, "de": 0, "gl": 0, "fa": 0}}, "expected integers below"),
        ({"step": 2**70, "draws": dict.fromkeys(SIZES, 2**61)}, "before 2.62 samples are drawn"),
        ({"step": -1}, "step is -1; expected an integer >= 0"),
        ({"step": True}, "step is True; expected an integer >= 0"),
        ({"credits": dict.fromkeys(SIZES, 0)}, "it has credits, which only quota allocation keeps"),
        ({"sizes": [1500, 700, 90, 17]}, r"sizes is \[1500, 700, 90, 17\] in the state"),
        ({"sizes": SIZES | {"fa": None}}, "domain 'fa' has None samples in the state"),
        ({"changes": [None]}, "change 1 is None; expected a mapping"),
        ({"version": [1]}, "version .1."),
        ({"draws": dict.fromkeys(SIZES, 52.5)}, "'draws' holds 52.5; expected integers"),
        ({"draws": dict.fromkeys(SIZES, 2**70)}, "expected integers"),
        ({"step": "7"}, "step is '7'; expected an integer"),
    ],
)
def test_the_state_of_another_job_is_refused(change, message):
    sampler = make()
    before = sampler.plan(9).indices
    with pytest.raises(ValueError, match=message):
        sampler.load_state_dict(STATE | change)
    assert sampler.state_dict()["step"] == 0
    assert np.array_equal(sampler.plan(9).indices, before)


def test_an_incomplete_state_is_refused():
    with pytest.raises(ValueError, match=r"state lacks \['draws', 'seed'\]"):
        make().load_state_dict({k: v for k, v in STATE.items() if k not in ("seed", "draws")})


@pytest.mark.parametrize("state", [None, [], "state", 7, [("version", 1)]])
def test_values_that_are_no_state_are_refused(state):
    with pytest.raises(ValueError, match=r"state is a \w+; expected a value of DomainBatchSampler.state_dict"):
        make().load_state_dict(state)


@pytest.mark.parametrize(
    ("credits", "message"),
    [
        (dict.fromkeys(SIZES, 1), "credits sum to 4"),
        ({"zh": 2**32, "de": -(2**32), "gl": 0, "fa": 0}, "the least is -4294967296; expected 0 and none below"),
        ({"zh": 2**70, "de": -(2**70), "gl": 0, "fa": 0}, "expected integers below"),
        ({"zh": 0.0, "de": 0, "gl": 0, "fa": 0}, "'credits' holds 0.0"),
        ([], "'credits' names different domains"),
    ],
)
def test_damaged_credits_are_refused(credits, message):
    state = make(allocation="quota").state_dict(step=7)
    with pytest.raises(ValueError, match=message):
        make(allocation="quota").load_state_dict(state | {"credits": credits})


@pytest.mark.parametrize("allocation", ["multinomial", "systematic", "quota"])
def test_wrong_steps_are_refused(allocation):
    sampler = make(allocation=allocation, num_steps=None)
    for method in (sampler.plan, sampler.exposure, sampler.state_dict):
        with pytest.raises(ValueError, match="step = -1; expected a step >= 0"):
            method(-1)
        with pytest.raises(ValueError, match=r"expected a step before which fewer than 2.62 samples are drawn"):
            method(2**62)
        with pytest.raises(TypeError, match=r"step = 1.0, a float; expected an integer"):
            method(1.0)
