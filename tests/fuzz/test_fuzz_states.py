"""Damaged states of samplers are harmless, or refused with a ValueError that changes nothing.

The default suite tries a few hundred states. ``nox -s fuzz`` tries many more, with new ones each time.
"""

import copy
import json
from itertools import islice

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pycooldown import DomainBatchSampler, schedules

SIZES = {"zh": 1500, "de": 700, "fa": 41}
GROWN = {"zh": 1500, "de": 810, "fa": 60, "ug": 50}
FIRST = schedules.cooldown(SIZES, switch_step=25)
THEN = schedules.anneal(GROWN, tau=5, final_tau=1, num_steps=60)
ALLOCATIONS = ("multinomial", "systematic", "quota")

numbers = st.one_of(
    st.integers(-3, 3),
    st.integers(),
    st.sampled_from([2**31, 2**32, 2**40, 2**61, 2**62, 2**63, 2**64, 2**70]).flatmap(
        lambda n: st.sampled_from([n, -n, n - 1, 1 - n])
    ),
)
scalars = st.one_of(numbers, st.none(), st.booleans(), st.floats(), st.text(max_size=3), st.sampled_from(list(GROWN)))
values = st.recursive(
    scalars,
    lambda v: st.one_of(st.lists(v, max_size=3), st.dictionaries(st.text(max_size=2), v, max_size=3)),
    max_leaves=6,
)


def job(allocation):
    sampler = DomainBatchSampler(FIRST, batch_size=30, seed=5, num_steps=90, allocation=allocation)
    sampler.set_schedule(THEN, from_step=40)
    return sampler


STATES = {
    (allocation, step): json.dumps(job(allocation).state_dict(step))
    for allocation in ALLOCATIONS
    for step in (0, 10, 40, 77)
}


def places(value):
    """Yield the (container, key) pairs of a JSON value."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in list(items):
        yield value, key
        yield from places(inner)


@st.composite
def damaged(draw):
    """Draw an allocation and a job's state after one to four changes."""
    allocation, step = draw(st.sampled_from(sorted(STATES)))
    state = json.loads(STATES[allocation, step])
    for _ in range(draw(st.integers(1, 4))):
        container, key = draw(st.sampled_from(list(places(state))))
        match draw(st.sampled_from(["replace", "number", "move", "delete", "add", "copy"])):
            case "replace":
                container[key] = draw(values)
            case "number":
                container[key] = draw(numbers)
            case "move" if type(container[key]) is int:  # two values change and keep their sum
                others = [k for k in (container if isinstance(container, dict) else range(len(container))) if k != key]
                other = draw(st.sampled_from(others)) if others else key
                amount = draw(numbers)
                if type(container[other]) is int:
                    container[key] -= amount
                    container[other] += amount
            case "delete":
                del container[key]
            case "add" if isinstance(container, dict):
                container[draw(st.text(max_size=3))] = draw(values)
            case "copy":
                container[key] = copy.deepcopy(draw(st.sampled_from([c[k] for c, k in places(state)])))
    return allocation, state


@settings(max_examples=max(300, settings().max_examples))
@given(damaged())
def test_a_damaged_state_is_refused_or_harmless(case):
    allocation, state = case
    sampler = job(allocation)
    list(islice(sampler, 3))
    before = sampler.state_dict()
    try:
        sampler.load_state_dict(state)
    except ValueError:
        assert sampler.state_dict() == before
        assert next(iter(sampler)) == job(allocation).plan(3).indices.tolist()
        return
    size = sum(GROWN.values())
    for batch in islice(sampler, 60):
        assert len(batch) == 30
        assert min(batch) >= 0
        assert max(batch) < size
    json.dumps(sampler.state_dict())


@pytest.mark.parametrize("state", [json.loads(text) for text in STATES.values()])
def test_undamaged_states_are_accepted(state):
    sampler = job(state["allocation"])
    sampler.load_state_dict(state)
    assert sampler.state_dict() == state
