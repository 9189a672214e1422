"""Sample orders and saved states are frozen, so that a job started with an older version resumes the same."""

import copy
import json

import pytest
from golden_jobs import FOLDER, block_record, core_record, job, next_batches, order_jobs, order_record, state_jobs

ORDERS = json.loads((FOLDER / "orders.json").read_text())
STATES = json.loads((FOLDER / "states.json").read_text())


def test_random_numbers_tables_and_permutations():
    assert core_record() == ORDERS["core"]
    assert block_record() == ORDERS["blocks"]


@pytest.mark.parametrize(("name", "make"), [pytest.param(*job, id=job[0]) for job in order_jobs()])
def test_orders_of_samples_are_frozen(name, make):
    assert order_record(make()) == ORDERS[name]


@pytest.mark.parametrize(("name", "allocation"), list(state_jobs()))
def test_states_resume_to_the_same_samples(name, allocation):
    for record in STATES[f"{name}/{allocation}"]:
        sampler, before = job(name, allocation), copy.deepcopy(record)
        if "learned" in record:
            sampler.schedule.load_state_dict(record["learned"])
        sampler.load_state_dict(record["state"])
        assert next_batches(sampler) == record["follow"]
        assert record == before


def test_every_record_has_its_job():
    assert set(ORDERS) == {"core", "blocks", *(name for name, _ in order_jobs())}
    assert set(STATES) == set(map("/".join, state_jobs()))
