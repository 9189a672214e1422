"""The plan of a cache evicts as well as brute force, reproduces the simulation's figures and keeps its limits."""

from functools import lru_cache

import numpy as np
import pytest
from regular_samples import RegularSamples

from pycooldown import DomainBatchSampler, Mixture, _core, schedules
from pycooldown.data.byte_ranges import Spans
from pycooldown.data.cache.blocks import Blocks
from pycooldown.data.cache.plan import BlockUses, cache_actions, forecast


def job(largest, *, block, tau=5.0, batch_size=1_024, shard=1_000, length=1):
    """Return the uses of a job that reads the largest of 8 domains (1000:1) once, and its number of steps."""
    sizes = {f"d{k}": int(largest * 1000 ** (-k / 7)) for k in range(8)}
    shards = {domain: [min(shard, size - at) for at in range(0, size, shard)] for domain, size in sizes.items()}
    mixture = Mixture.temperature_sampling(sizes, tau)
    steps = int(largest / (batch_size * mixture.sampling[0]))
    options = {"batch_size": batch_size, "seed": 0, "num_steps": steps, "allocation": "systematic"}
    options |= {"shuffle": "blocks", "shard_sizes": shards, "block": block}
    sampler = DomainBatchSampler(schedules.constant(mixture), **options)
    dataset = RegularSamples(shards, length)
    return BlockUses(sampler, dataset, Blocks.cut(dataset, block)), steps


def fewest_fetches(uses, room):
    """Return the fewest fetches for steps of one block, found by trying every eviction."""

    @lru_cache(None)
    def fewest(at, held):
        if at == len(uses):
            return 0
        if uses[at] in held:
            return fewest(at + 1, held)
        kept = [held] if len(held) < room else [held - {victim} for victim in held]
        return 1 + min(fewest(at + 1, rest | {uses[at]}) for rest in kept)

    return fewest(0, frozenset())


@pytest.mark.parametrize("room", [1, 2, 3, 4])
def test_no_eviction_is_better(room):
    rng = np.random.default_rng(room)
    for _ in range(30):
        uses = rng.integers(0, 6, 14)
        planner = _core.CachePlanner(np.ones(6, int), limit=room, depth=0)
        fetches, steps, after, evict_ends, evictions = planner.plan(uses, np.arange(1, 15), num_steps=14)
        assert len(fetches) == fewest_fetches(tuple(uses.tolist()), room)
        assert planner.most_held_bytes <= room
        assert (after == steps).all()
        assert evict_ends[-1] == len(evictions)


def replay(uses, actions, sizes, prefetched=0):
    """Carry out the actions, check that each is allowed, and return the most bytes held."""
    held, place, most, last_step = set(), 0, 0, {}
    for step, blocks in enumerate(uses):
        while place < len(actions.fetches) and actions.steps[place] == step:
            begin = actions.evict_ends[place - 1] if place else 0
            for victim in actions.evictions[begin : actions.evict_ends[place]].tolist():
                held.remove(victim)
                # When a victim is evicted, every step that uses it has been read.
                assert last_step[victim] < actions.after[place] - prefetched
            assert actions.after[place] <= step
            assert actions.fetches[place] not in held
            held.add(int(actions.fetches[place]))
            place += 1
            most = max(most, int(sum(sizes[list(held)])))
        assert set(blocks.tolist()) <= held
        last_step |= dict.fromkeys(blocks.tolist(), step)
    assert place == len(actions.fetches)
    return most


def join(parts):
    """Join the actions of all parts."""
    parts, evicted = list(parts), 0
    ends = []
    for part in parts:
        ends.append(part.evict_ends + evicted)
        evicted += len(part.evictions)
    arrays = [np.concatenate([getattr(part, name) for part in parts]) for name in ("fetches", "steps", "after")]
    evictions = np.concatenate([part.evictions for part in parts])
    return parts[-1]._replace(
        fetches=arrays[0], steps=arrays[1], after=arrays[2], evict_ends=np.concatenate(ends), evictions=evictions
    )


@pytest.mark.parametrize("depth", [0, 300, 2_000])
@pytest.mark.parametrize("share", [0.2, 0.5])
@pytest.mark.parametrize(("horizon", "prefetched"), [(0, 0), (500, 0), (0, 6)])
def test_actions_keep_the_limit_and_never_take_what_is_in_use(share, depth, horizon, prefetched):
    uses, steps = job(8_000, block=32, batch_size=16, shard=300)
    limit = int(uses.blocks.sizes.sum() * share)
    options = {"start": 0, "stop": steps, "limit": limit, "depth": depth, "prefetched": prefetched}
    actions = join(cache_actions(uses, **options, horizon=horizon))
    each = [uses.at(step) for step in range(steps)]
    assert replay(each, actions, uses.blocks.sizes, prefetched) <= limit
    ahead = 0
    sizes = uses.blocks.sizes
    for place in range(len(actions.fetches)):  # bytes fetched for the open window, this fetch included
        window = (actions.steps[: place + 1] >= actions.after[place]) & (
            actions.steps[: place + 1] < actions.steps[place]
        )
        ahead = max(ahead, int(sizes[actions.fetches[: place + 1][window]].sum()))
    assert ahead <= depth
    again = join(cache_actions(uses, **options, horizon=horizon))
    assert all((one == other).all() for one, other in zip(actions[:5], again[:5]))
    forecasted = forecast(uses, stop=steps, limits=[limit], depths=[depth], prefetched=prefetched).forecasts[0]
    if not horizon:  # parts are short at first, and the last one has all other uses
        assert len(actions.fetches) == forecasted.requests


def test_a_resumed_job_fetches_nothing_that_is_there():
    uses, steps = job(8_000, block=32, batch_size=64, shard=300)
    held = np.arange(0, len(uses.blocks), 3)
    limit = int(uses.blocks.sizes.sum())
    actions = join(cache_actions(uses, start=50, stop=steps, limit=limit, depth=100, prefetched=0, held=held))
    assert not set(actions.fetches.tolist()) & set(held.tolist())
    assert len(set(actions.fetches.tolist())) == len(actions.fetches)
    assert actions.steps.min() >= 50
    assert actions.after.min() >= 50


@pytest.mark.parametrize(
    ("block", "expected", "requests"), [(64, (1.47, 1.13, 1.00), 141), (256, (1.70, 1.13, 1.00), 116)]
)
def test_figures_of_the_simulation(block, expected, requests):
    """Bytes fetched over bytes used match the simulation at 10, 25 and 50 % of the data."""
    uses, steps = job(256_000, block=block)
    limits = [int(uses.blocks.sizes.sum() * share) for share in (0.1, 0.25, 0.5)]
    plan = forecast(uses, stop=steps, limits=limits, depths=[0, 0, 0], prefetched=0)
    for found, wanted in zip(plan.forecasts, expected):
        assert found.bytes_fetched / found.bytes_used < wanted + 0.02
        assert found.bytes_fetched / found.bytes_used >= 1 + 0.7 * (wanted - 1)
    assert 0.7 * requests < plan.uses_per_step < 1.02 * requests


def test_the_smallest_limit_is_the_smallest():
    uses, steps = job(8_000, block=32, batch_size=64, shard=300)
    for depth, prefetched in ((0, 0), (1_000, 0), (0, 5)):
        options = {"stop": steps, "prefetched": prefetched}
        limit = forecast(uses, limits=[0], depths=[depth], **options).smallest_limit
        plan = forecast(uses, limits=[limit, limit - 1], depths=[depth, depth], **options)
        distinct = len(np.unique(np.concatenate([uses.at(step) for step in range(steps)])))
        assert [found.requests == distinct for found in plan.forecasts] == [True, False]


def test_a_limit_below_a_step_is_exceeded_and_counted():
    uses, steps = job(4_000, block=32, batch_size=64, shard=300)
    plan = forecast(uses, stop=steps, limits=[100, 10**6], depths=[50, 50], prefetched=0)
    assert plan.forecasts[0].steps_over_limit > steps / 2
    assert plan.forecasts[1].steps_over_limit == plan.forecasts[1].steps_shrunk == 0
    small = forecast(uses, stop=steps, limits=[2_500], depths=[2_000], prefetched=0).forecasts[0]
    assert small.steps_shrunk > 0 == small.steps_over_limit


def test_few_uses_are_planned_at_first_and_nothing_is_evicted_for_that(monkeypatch):
    """While all blocks fit, parts of the plan are short. Fetches equal those of one plan of all uses."""
    uses, steps = job(8_000, block=32, batch_size=64, shard=300)
    monkeypatch.setattr("pycooldown.data.cache.plan.PART", 200)
    limit = int(uses.blocks.sizes.sum()) // 3
    options = {"start": 0, "stop": steps, "limit": limit, "depth": 300, "prefetched": 4}
    parts = list(cache_actions(uses, **options))
    assert len(parts) > 3
    assert not any(len(part.evictions) for part in parts[:3])
    assert len(parts[-1].evictions)
    plan = forecast(uses, stop=steps, limits=[limit], depths=[300], prefetched=4).forecasts[0]
    assert sum(len(part.fetches) for part in parts) == plan.requests


def test_blocks_of_samples_are_those_of_their_bytes():
    uses, _ = job(4_000, block=32, batch_size=60, shard=300, length=7)
    samples = np.random.default_rng(0).integers(0, sum(uses.dataset.sizes.values()), 500)
    located = uses.blocks.used_by(uses.dataset.locate(samples))
    assert uses.blocks.used_by_samples(samples, uses.dataset).tolist() == located.tolist()


def test_ranks_of_two_nodes_share_each_step():
    uses, _ = job(4_000, block=32, batch_size=60, shard=300)
    nodes = [
        BlockUses(uses.sampler, uses.dataset, uses.blocks, ranks=ranks, world_size=7) for ranks in ((0, 4), (4, 7))
    ]
    for step in (0, 9):
        assert np.concatenate([node.samples(step) for node in nodes]).tolist() == uses.samples(step).tolist()
        assert set(nodes[0].at(step)) | set(nodes[1].at(step)) == set(uses.at(step))


def test_blocks_are_cut_within_objects():
    dataset = RegularSamples({"a": [5, 0, 3], "b": [4]}, length=10)
    blocks = Blocks.cut(dataset, 2)
    spans = [blocks.span(number) for number in range(len(blocks))]
    assert spans == [(0, 0, 20), (0, 20, 40), (0, 40, 50), (2, 0, 20), (2, 20, 30), (3, 0, 20), (3, 20, 40)]
    assert blocks.firsts.tolist() == [0, 3, 3, 5, 7]
    assert blocks.used_by(dataset.locate(np.array([11, 0, 1, 4]))).tolist() == [0, 2, 6]
    wide = Spans(np.array([0, 2]), np.array([5, 0]), np.array([45, 30]))
    assert blocks.used_by(wide).tolist() == [0, 1, 2, 3, 4]
    with pytest.raises(ValueError, match="are in no block"):
        blocks.used_by(Spans(np.array([3]), np.array([39]), np.array([41])))
    with pytest.raises(ValueError, match="block = 0"):
        Blocks.cut(dataset, 0)


@pytest.mark.parametrize(
    ("blocks", "ends", "steps", "message"),
    [
        ([0, 9], [1, 2], 2, "block 9; there are 3"),
        ([0, 0], [2], 1, "a step has a block twice"),
        ([0], [1], 2, "expected the ends of at least num_steps steps"),
        ([0, 1], [1], 1, "the last one that of blocks"),
    ],
)
def test_wrong_uses_are_refused(blocks, ends, steps, message):
    planner = _core.CachePlanner(np.ones(3, int), limit=3, depth=0)
    with pytest.raises(ValueError, match=message):
        planner.plan(np.array(blocks), np.array(ends), num_steps=steps)
