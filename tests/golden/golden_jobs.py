"""The jobs whose sample orders and saved states are frozen, and how their records are made.

    python tests/golden/golden_jobs.py

adds a record for each job that has none. An existing record is never written again, since users' runs depend on it.
Add jobs, and delete none.
"""

import hashlib
import json
import math
from itertools import islice
from pathlib import Path

import numpy as np

from pycooldown import AliasTable, DomainBatchSampler, Mixture, _core, schedules
from pycooldown.adaptive import DoReMi, GroupDRO, OnlineDataMixing, Statistics, VarianceAware

FOLDER = Path(__file__).parent
ALLOCATIONS = ("multinomial", "systematic", "quota")
SIZES = {"zh": 1500, "de": 700, "gl": 90, "fa": 41}
GROWN = {"zh": 1500, "de": 810, "gl": 90, "fa": 60, "ug": 50}  # two domains grow, one joins
AGAIN = GROWN | {"fa": 97}
MANY = {f"d{i}": 40_000 // (i + 1) + 70 for i in range(300)}
UNIFORM = Mixture.temperature_sampling(SIZES, math.inf)
SHARDS = {"zh": [700, 0, 650, 150], "de": [128] * 5 + [60], "gl": [90], "fa": [7] * 5 + [6]}
BLOCKS = {"shuffle": "blocks", "shard_sizes": SHARDS, "block": 16, "group": 4}
STEPS = (0, 1, 2, 24, 25, 26, 39, 40, 41, 70, 119, 400)  # before, at and after the changes below
SAVED = (0, 7, 40, 75)  # the steps of the saved states
NUM_STEPS = 600
DELAY = 4

SCHEDULES = {
    "constant": schedules.constant(Mixture.temperature_sampling(SIZES, 5)),
    "scalarization": schedules.constant(Mixture.scalarization(SIZES, 3)),
    "cooldown": schedules.cooldown(SIZES, switch_step=25),
    "anneal_linear": schedules.anneal(SIZES, tau=5, final_tau=1, num_steps=60),
    "anneal_cosine": schedules.anneal(SIZES, tau=1, final_tau=4, num_steps=90, shape="cosine"),
    "anneal_exponential": schedules.anneal(MANY, tau=5, final_tau=1.5, num_steps=200, shape="exponential"),
    "staircase": schedules.staircase(
        [
            (0, Mixture.temperature_sampling(SIZES, 2.5)),
            (25, Mixture(tuple(SIZES), list(SIZES.values()), [0.25, 0.5, 0.25, 0], [0.5, 0.3, 0.2, 0])),
            (40, Mixture.proportional(SIZES)),
        ]
    ),
    "unimax": schedules.unimax(SIZES, budget=2_000, max_epochs=2),
    "unimax_frontload": schedules.unimax(SIZES, budget=3_600, max_epochs=2, mode="frontload", num_steps=120),
    "order_matters": schedules.order_matters(SIZES, switch_step=25),
    "many": schedules.cooldown(MANY, switch_step=25),
}
CHANGES = [
    (schedules.cooldown(GROWN, switch_step=60), 40),
    (schedules.anneal(AGAIN, tau=3, final_tau=1, num_steps=200), 70),
]
METHODS = {
    "group_dro": lambda: GroupDRO(UNIFORM, step_size=0.1, delay=DELAY),
    "doremi": lambda: DoReMi(UNIFORM, delay=DELAY),
    "odm": lambda: OnlineDataMixing(UNIFORM, delay=DELAY),
    "variance_aware": lambda: VarianceAware(UNIFORM, interval=3, delay=DELAY),
}


def make(schedule, allocation, *, changes=(), **options):
    """Return a sampler of 30 samples a batch, with all changes announced."""
    options = {"batch_size": 30, "seed": 2**63 + 5, "num_steps": NUM_STEPS} | options
    sampler = DomainBatchSampler(schedule, allocation=allocation, **options)
    for changed, from_step in changes:
        sampler.set_schedule(changed, from_step=from_step)
    return sampler


def statistics(step):
    """Return made-up statistics of a step. Fractions are multiples of 1/64, so that arithmetic is exact."""
    units = (np.arange(5 * len(SIZES)).reshape(5, -1) * 37 + step * 11) % 64
    loss, hits, *others = 1 + units / 64
    count = np.full(len(SIZES), 16.0)
    return Statistics(count * loss, count, 8 * hits, *others)


def digest(*arrays):
    """Return sixteen hexadecimal digits of SHA-256 over the arrays as little-endian int64."""
    return hashlib.sha256(b"".join(np.asarray(a).astype("<i8").tobytes() for a in arrays)).hexdigest()[:16]


def plan_record(plan):
    """Return the digest of a plan, and its first samples."""
    return [digest(plan.domain_ids, plan.indices, plan.epochs), *plan.indices[:3].tolist()]


def order_record(sampler):
    """Return records of plans at several steps, and the draws before the last of them."""
    return {
        "schedule": sampler.schedule.describe(),
        "plans": {str(step): plan_record(sampler.plan(step)) for step in STEPS},
        "draws": sampler.exposure(STEPS[-1]).draws[:5].tolist(),
    }


def order_jobs():
    """Return samplers by name."""
    for allocation in ALLOCATIONS:
        for name, schedule in SCHEDULES.items():
            yield f"{name}/{allocation}", lambda s=schedule, a=allocation: make(s, a)
        yield f"in_order/{allocation}", lambda a=allocation: make(SCHEDULES["constant"], a, shuffle=False)
        yield f"blocks/{allocation}", lambda a=allocation: make(SCHEDULES["constant"], a, **BLOCKS)
        yield f"many_samples/{allocation}", lambda a=allocation: make(SCHEDULES["many"], a, batch_size=513, seed=0)
        yield f"changes/{allocation}", lambda a=allocation: make(SCHEDULES["cooldown"], a, changes=CHANGES)


def next_batches(sampler):
    """Return the batches after a resume, as far as a schedule that learns has decided them."""
    return digest(*islice(sampler, DELAY))


def state_records(name, allocation):
    """Return states of several steps, the schedule's state at each, and the digest of the batches that follow."""
    for step in SAVED:
        sampler = job(name, allocation)
        batches = iter(sampler)
        for trained in range(step):
            next(batches)
            if name in METHODS:
                sampler.schedule.update(trained, statistics(trained))
        record = {"state": sampler.state_dict()}
        if name in METHODS:
            record["learned"] = sampler.schedule.state_dict()
        yield record | {"follow": next_batches(sampler)}


def job(name, allocation):
    """Return a job as its script makes it before it loads a state."""
    if name == "changes":
        return make(SCHEDULES["cooldown"], allocation, changes=CHANGES)
    if name == "blocks":
        return make(SCHEDULES["cooldown"], allocation, **BLOCKS)
    return make(METHODS[name]() if name in METHODS else SCHEDULES[name], allocation)


def state_jobs():
    """Return (schedule or method, allocation) pairs by name."""
    for allocation in ALLOCATIONS:
        for name in ("constant", "cooldown", "anneal_linear", "unimax_frontload", "changes", "blocks", *METHODS):
            yield name, allocation


def core_record():
    """Return a record of random numbers, alias tables and permutations."""
    record = {}
    for size in (1, 2, 3, 100, 129, 5_000):
        weights = 1 / np.arange(1, size + 1.0)
        table = AliasTable(weights)
        draws = table.draw(10_000, seed=7, offset=2**33 + 1)
        record[f"alias/{size}"] = [digest(np.round(table.probabilities * 2**32)), digest(draws), *draws[:3].tolist()]
    for size in (1, 2, 7, 63, 64, 65, 4_095, 4_096, 70_001):
        order = _core.permutation(size, seed=2**64 - 1, domain=3, epoch=2**40)
        record[f"permutation/{size}"] = [digest(order), *order[:3].tolist()]
    return record


def block_record():
    """Return a record of permutations by blocks."""
    record, shards = {}, np.array([300, 0, 64, 65, 1, 1_000])
    for block, group in ((1, 1), (64, 16), (37, 3)):
        order = _core.block_permutation(shards, block=block, group=group, seed=2**64 - 1, domain=3, epoch=2**40)
        record[f"{block}/{group}"] = [digest(order), *order[:3].tolist()]
    return record


def records():
    """Return the names of files and their contents."""
    orders = {"core": core_record, "blocks": block_record} | {
        name: lambda m=m: order_record(m()) for name, m in order_jobs()
    }
    states = {f"{name}/{a}": lambda n=name, a=a: list(state_records(n, a)) for name, a in state_jobs()}
    return {"orders.json": orders, "states.json": states}


def main():
    """Write the missing records."""
    for file, makers in records().items():
        path = FOLDER / file
        frozen = json.loads(path.read_text()) if path.exists() else {}
        frozen |= {name: maker() for name, maker in makers.items() if name not in frozen}
        lines = (f"{json.dumps(name)}: {json.dumps(record)}" for name, record in frozen.items())
        path.write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main()
