"""The state of a sampler: saved, loaded, pickled, refused where it is another job's."""

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
def test_pickles_where_it_stands(allocation, stop):
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
        ({"seed": 4}, "seed is 4 in the state and 3 here"),
        ({"batch_size": 10}, "batch_size is 10 in the state and 30 here"),
        ({"allocation": "systematic"}, "allocation is 'systematic'"),
        ({"shuffle": False}, "shuffle is False"),
        ({"schedule": "constant"}, "schedule is 'constant' in the state and 'cooldown.tau=5.0, .*23.' here"),
        ({"sizes": SIZES | {"fa": 18}}, "domain 'fa' has 18 samples in the state and 17 here"),
        ({"sizes": SIZES | {"ug": 5}}, "domain 'ug' is only in the state"),
        ({"sizes": {"zh": 1500, "de": 700, "gl": 90}}, "domain 'fa' is only in this job"),
        ({"sizes": dict(reversed(SIZES.items()))}, "the domains are in another order"),
        ({"step": 8}, "210 draws in 8 steps of 30"),
        ({"draws": {"zh": 210}}, "different domains"),
        ({"draws": None}, "different domains"),
        ({"draws": dict.fromkeys(SIZES, 52.5)}, "'draws' holds 52.5; expected integers"),
        ({"draws": dict.fromkeys(SIZES, 2**70)}, "expected integers"),
        ({"step": "7"}, "step is '7'; expected an integer"),
    ],
)
def test_state_of_another_job(change, message):
    sampler = make()
    before = sampler.plan(9).indices
    with pytest.raises(ValueError, match=message):
        sampler.load_state_dict(STATE | change)
    assert sampler.state_dict()["step"] == 0
    assert np.array_equal(sampler.plan(9).indices, before)


def test_incomplete_state():
    with pytest.raises(ValueError, match=r"state lacks \['draws', 'seed'\]"):
        make().load_state_dict({k: v for k, v in STATE.items() if k not in ("seed", "draws")})
