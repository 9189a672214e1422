"""The shuffle by blocks is exact, elastic, local to groups of blocks, and recorded in the state."""

import json
import pickle
from collections import Counter

import numpy as np
import pytest

from pycooldown import DomainBatchSampler, Mixture, _core, schedules

SHARDS = {"en": [1_000] * 4 + [130, 0, 7], "de": [64] * 5, "is": [3, 50, 90]}
SIZES = {domain: sum(sizes) for domain, sizes in SHARDS.items()}
SCHEDULE = schedules.cooldown(SIZES, tau=3, switch_step=30)


def make(schedule=SCHEDULE, **options):
    options = {"batch_size": 60, "seed": 5, "num_steps": 200, "shuffle": "blocks", "shard_sizes": SHARDS} | options
    return DomainBatchSampler(schedule, **options)


def blocks_of(shards, block):
    """Return the number of the block of each sample."""
    sizes = [min(block, size - start) for size in shards for start in range(0, size, block)]
    return np.repeat(np.arange(len(sizes)), sizes)


@pytest.mark.parametrize("block", [1, 3, 64, 2_000])
@pytest.mark.parametrize("group", [1, 2, 16, 1_000])
@pytest.mark.parametrize("shards", [[1], [5, 0, 5], [64] * 9, [1_000, 130, 7, 64, 63, 65] * 5, list(range(80))])
def test_an_epoch_is_a_permutation_by_groups_of_blocks(shards, group, block):
    order = _core.block_permutation(np.array(shards), block=block, group=group, seed=7, domain=2, epoch=3)
    assert sorted(order) == list(range(sum(shards)))
    numbers = blocks_of(shards, block)[order]
    num_blocks = len(set(numbers))
    first, last = np.full(num_blocks, len(order)), np.zeros(num_blocks, int)
    np.minimum.at(first, numbers, np.arange(len(order)))
    np.maximum.at(last, numbers, np.arange(len(order)))
    open_blocks = Counter()
    for number in range(num_blocks):
        open_blocks.update(range(first[number], last[number] + 1))
    # Whole and short blocks are dealt to groups separately, so a group may have one block more than `group`.
    assert max(open_blocks.values()) <= min(group + 1, num_blocks)


def test_orders_differ_by_seed_domain_epoch_group_and_block():
    options = {"block": 64, "group": 16, "seed": 1, "domain": 0, "epoch": 0}
    orders = [
        tuple(_core.block_permutation(np.full(20, 500), **options | change))
        for change in ({}, {"seed": 2}, {"domain": 1}, {"epoch": 1}, {"group": 8}, {"block": 32})
    ]
    assert len(set(orders)) == len(orders)


def test_samples_of_a_group_are_mixed():
    """Within a group, neighbours in the order are as rarely of one block as in a full shuffle."""
    order = _core.block_permutation(np.full(1_024, 64), block=64, group=16, seed=0)
    blocks, places = order // 64, order % 64
    same = np.mean(blocks[1:] == blocks[:-1])
    assert abs(same - 1 / 16) < 0.005
    ranks = np.corrcoef(np.arange(len(order)) % 1_024, places)[0, 1]
    assert abs(ranks) < 0.02
    starts = blocks.reshape(-1, 1_024).min(axis=1)
    assert abs(np.corrcoef(np.arange(len(starts)), starts)[0, 1]) < 0.5


@pytest.mark.parametrize("allocation", ["multinomial", "systematic", "quota"])
def test_each_epoch_has_each_sample_once(allocation):
    sampler = make(allocation=allocation)
    plans = [sampler.plan(step) for step in range(200)]
    indices, epochs = (np.concatenate([getattr(plan, name) for plan in plans]) for name in ("indices", "epochs"))
    starts = np.cumsum([0, *SIZES.values()])
    draws = sampler.exposure(200).draws
    for number, size in enumerate(SIZES.values()):
        mine = (indices >= starts[number]) & (indices < starts[number + 1])
        for epoch in range(draws[number] // size):
            assert sorted(indices[mine & (epochs == epoch)] - starts[number]) == list(range(size))
    order = _core.block_permutation(np.array(SHARDS["de"]), block=64, group=16, seed=5, domain=1, epoch=0)
    mine = (indices >= starts[1]) & (indices < starts[2]) & (epochs == 0)
    assert indices[mine].tolist() == (starts[1] + order).tolist()


def test_other_numbers_of_ranks_and_far_steps_give_the_same_samples():
    whole = [make().plan(step).indices.tolist() for step in range(200)]
    assert [make().plan(step).indices.tolist() for step in (150, 3, 90)] == [whole[150], whole[3], whole[90]]
    ranks = [list(make(rank=rank, world_size=7)) for rank in range(7)]
    assert [[i for part in parts for i in part] for parts in zip(*ranks)] == whole


def test_a_state_goes_on_with_the_same_samples():
    sampler = make()
    whole = list(sampler)
    state = json.loads(json.dumps(sampler.state_dict(step=77)))
    resumed = make(rank=1, world_size=2)
    resumed.load_state_dict(state)
    assert list(resumed) == [batch[30:] for batch in whole[77:]]
    copied = pickle.loads(pickle.dumps(sampler))
    assert copied.plan(120).indices.tolist() == whole[120]


@pytest.mark.parametrize(
    "change",
    [
        {"block": 32},
        {"group": 8},
        {"shuffle": True, "shard_sizes": None},
        {"shard_sizes": SHARDS | {"de": [320]}},
    ],
)
def test_a_state_of_another_shuffle_is_refused(change):
    with pytest.raises(ValueError, match="state is of another job: shuffle is"):
        make(**change).load_state_dict(make().state_dict(step=3))
    with pytest.raises(ValueError, match="state is of another job: shuffle is"):
        make().load_state_dict(make(**change).state_dict(step=3))


def test_the_order_of_shard_sizes_domains_is_that_of_the_schedule():
    turned = dict(reversed(SHARDS.items()))
    assert make(shard_sizes=turned).plan(11).indices.tolist() == make().plan(11).indices.tolist()
    assert make(shard_sizes=turned).state_dict(step=2) == make().state_dict(step=2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shuffle": "block"}, "shuffle = 'block'; expected True, False or 'blocks'"),
        ({"shard_sizes": None}, "needs shard_sizes"),
        ({"shard_sizes": {"en": [4_137]}}, "domain 'de' has 320 samples in the schedule and none in shard_sizes"),
        ({"shard_sizes": SHARDS | {"is": [3]}}, "domain 'is' has 143 samples in the schedule and 3 in shard_sizes"),
        ({"shard_sizes": SHARDS | {"fi": [3]}}, "domain 'fi' has no samples in the schedule and 3 in shard_sizes"),
        ({"shard_sizes": SHARDS | {"is": [150, -7]}}, "negative size in domain 'is'"),
        ({"block": 0}, "block = 0; expected 1"),
        ({"group": 2**31}, "group = 2147483648; expected 1"),
        ({"shuffle": True}, "shard_sizes is for shuffle='blocks'"),
        ({"shuffle": False, "shard_sizes": None, "group": 4}, "group is for shuffle='blocks', but shuffle = False"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)


def test_domains_cannot_grow_or_join():
    sampler = make()
    for sizes in (SIZES | {"de": 500}, SIZES | {"fi": 500}):
        with pytest.raises(ValueError, match="neither join nor grow"):
            sampler.set_schedule(schedules.constant(Mixture.proportional(sizes)), from_step=50)
    sampler.set_schedule(schedules.constant(Mixture.proportional(SIZES)), from_step=50)
    assert len(sampler.plan(60).indices) == 60


def test_watchers_are_called_with_each_step():
    heard = []
    sampler = make(num_steps=4)
    sampler.watch(heard.append)
    assert len(list(sampler)) == len(list(pickle.loads(pickle.dumps(sampler)))) == 4
    sampler.load_state_dict(sampler.state_dict(step=2))
    for _ in sampler:
        heard.append("batch")
    assert heard == [0, 1, 2, 3, 2, "batch", 3, "batch"]
