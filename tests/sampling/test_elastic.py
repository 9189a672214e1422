"""Any number of ranks and workers gives the same samples in the same order, even if some are killed."""

import collections
import itertools
import json
import multiprocessing
import os
import signal
import time

import pytest

from pycooldown import DomainBatchSampler, schedules
from pycooldown.data import TarDataset

DataLoader = pytest.importorskip("torch.utils.data").DataLoader
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")

COUNTS = {"en": [23, 60], "de": [31], "sw": [6, 0, 4]}
SIZES = {domain: sum(counts) for domain, counts in COUNTS.items()}
BATCH = 16
ALLOCATIONS = ["multinomial", "systematic", "quota"]


@pytest.fixture
def shards(write_shards):
    return write_shards(COUNTS)


def make_sampler(num_steps, state=None, **options):
    schedule = schedules.cooldown(SIZES, switch_step=20)
    sampler = DomainBatchSampler(schedule, batch_size=BATCH, seed=5, num_steps=num_steps, **options)
    if state is not None:
        sampler.load_state_dict(state)
    return sampler


def keys(samples):
    return [sample["__key__"] for sample in samples]


def make_loader(shards, sampler, workers=0):
    return DataLoader(TarDataset(shards), batch_sampler=sampler, num_workers=workers, collate_fn=keys)


def in_order(shards, num_steps, **options):
    """Return the keys of each global batch, read by one process."""
    return list(make_loader(shards, make_sampler(num_steps, **options)))


def assert_nothing_lost_or_repeated(steps, **options):
    """Assert that domains are drawn as forecast, and each sample once in each epoch."""
    counts = collections.Counter(itertools.chain.from_iterable(steps))
    draws = make_sampler(len(steps), **options).exposure().draws.tolist()
    for (domain, shard_sizes), drawn in zip(COUNTS.items(), draws, strict=True):
        names = [f"{domain}/{number}/{i}" for number, size in enumerate(shard_sizes) for i in range(size)]
        epochs, begun = divmod(drawn, len(names))
        assert sorted(counts[name] for name in names) == [epochs] * (len(names) - begun) + [epochs + 1] * begun
        assert epochs >= 1


MANY = pytest.param(7, 8, marks=pytest.mark.slow)  # starts 56 processes


@pytest.mark.parametrize(
    ("world_size", "workers"),
    [*((ranks, workers) for ranks in (1, 2, 3, 7) for workers in (0, 1, 4, 8) if (ranks, workers) != (7, 8)), MANY],
)
def test_order_depends_on_neither_ranks_nor_workers(shards, world_size, workers):
    ranks = [
        iter(make_loader(shards, make_sampler(10, rank=rank, world_size=world_size), workers))
        for rank in range(world_size)
    ]
    assert [list(itertools.chain.from_iterable(parts)) for parts in zip(*ranks, strict=True)] == in_order(shards, 10)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("allocation", ALLOCATIONS)
def test_a_job_goes_on_at_other_world_sizes(shards, allocation, workers):
    """A job runs on 4, 3 and 8 ranks in turn. Batches read ahead of the saved step come again."""
    state, steps = None, []
    for world_size, end in [(4, 11), (3, 25), (8, 40)]:
        samplers = [
            make_sampler(40, state, rank=r, world_size=world_size, allocation=allocation) for r in range(world_size)
        ]
        ranks = [
            iter(make_loader(shards, sampler, workers if rank < 2 else 0)) for rank, sampler in enumerate(samplers)
        ]
        while len(steps) < end:
            steps.append(list(itertools.chain.from_iterable(next(rank) for rank in ranks)))
        states = [json.dumps(sampler.state_dict(end)) for sampler in samplers]
        assert len(set(states)) == 1
        state = json.loads(states[0])
    assert steps == in_order(shards, 40, allocation=allocation)
    assert_nothing_lost_or_repeated(steps, allocation=allocation)


def test_a_killed_worker_costs_no_sample(shards):
    sampler, steps = make_sampler(30), []
    others = set(multiprocessing.active_children())
    loader = iter(make_loader(shards, sampler, 2))
    workers = set(multiprocessing.active_children()) - others
    with pytest.raises(RuntimeError, match=r"DataLoader worker .*(killed by signal|exited unexpectedly)"):  # noqa: PT012
        for batch in loader:
            steps.append(batch)
            if len(steps) == 9:
                os.kill(workers.pop().pid, signal.SIGKILL)
    assert 9 <= len(steps) < 30
    state = json.loads(json.dumps(sampler.state_dict(len(steps))))
    steps += make_loader(shards, make_sampler(30, state), 2)
    assert steps == in_order(shards, 30)
    assert_nothing_lost_or_repeated(steps)


def train(rank, world_size, shards, num_steps, folder, barrier, pause):
    """Run one rank of a job, which records the samples of each step. Rank 0 saves the state every third step.

    At step ``pause`` the rank waits to be killed. So a job cannot end before a slow machine kills it.
    """
    os.setsid()  # a process group, so that workers can be killed too
    path = folder / "state.json"
    sampler = make_sampler(num_steps, rank=rank, world_size=world_size)
    if path.exists():
        sampler.load_state_dict(json.loads(path.read_text()))
    first = sampler.state_dict()["step"]
    with open(folder / f"{first}-{rank:02d}.jsonl", "w", buffering=1) as log:
        for step, batch in enumerate(make_loader(shards, sampler, 1), first):
            if step == pause:
                signal.pause()
            print(json.dumps([step, batch]), file=log)
            barrier.wait()
            if rank == 0 and step % 3 == 2:
                path.with_suffix(".new").write_text(json.dumps(sampler.state_dict(step + 1)))
                os.replace(path.with_suffix(".new"), path)


def saved_step(folder):
    path = folder / "state.json"
    return json.loads(path.read_text())["step"] if path.exists() else 0


def test_killed_ranks_cost_no_sample(shards, tmp_path):
    """Jobs of 4, 3 and 8 processes lose no sample, although a rank of the first two is killed."""
    context, num_steps, steps = multiprocessing.get_context("fork"), 48, []
    for world_size, dies_after, victim in [(4, 9, 2), (3, 24, 0), (8, None, None)]:
        barrier, first = context.Barrier(world_size), saved_step(tmp_path)
        pause = dies_after and dies_after + 7
        arguments = (world_size, shards, num_steps, tmp_path, barrier, pause)
        ranks = [context.Process(target=train, args=(rank, *arguments)) for rank in range(world_size)]
        for rank in ranks:
            rank.start()
        try:
            if dies_after is None:
                for rank in ranks:
                    rank.join()
                    assert rank.exitcode == 0
            else:
                while saved_step(tmp_path) < dies_after:
                    assert all(rank.is_alive() for rank in ranks)
                    time.sleep(0.002)
                os.kill(ranks[victim].pid, signal.SIGKILL)
        finally:  # as a launcher does after a rank has died
            for rank in ranks:
                if rank.is_alive():
                    os.killpg(rank.pid, signal.SIGKILL)
                rank.join()
        done = saved_step(tmp_path) if dies_after else num_steps
        assert first < done
        parts = [
            dict(json.loads(line) for line in path.read_text().splitlines()[: done - first])
            for path in sorted(tmp_path.glob(f"{first}-*.jsonl"))
        ]
        steps += [list(itertools.chain.from_iterable(part[step] for part in parts)) for step in range(first, done)]
    assert steps == in_order(shards, num_steps)
    assert_nothing_lost_or_repeated(steps)
