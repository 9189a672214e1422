"""With threads, forks, signal handlers and interrupts, a sampler gives the same samples or an error."""

import os
import pickle
import signal
import threading
import time
from itertools import islice

import numpy as np
import pytest

from pycooldown import DomainBatchSampler, Mixture, schedules

SIZES = {"zh": 1500, "de": 700, "gl": 90, "fa": 41}
ANNEAL = schedules.anneal(SIZES, tau=5, final_tau=1, num_steps=150)
ALLOCATIONS = ("multinomial", "systematic", "quota")
NUM_STEPS = 200


def make(allocation="quota", schedule=ANNEAL):
    sampler = DomainBatchSampler(schedule, batch_size=30, seed=3, num_steps=NUM_STEPS, allocation=allocation)
    sampler.set_schedule(schedules.constant(Mixture.proportional(SIZES | {"fa": 60})), from_step=170)
    return sampler


def in_thread(function):
    """Start a thread, and return a function that waits for it and raises its error."""
    errors = []

    def run():
        try:
            function()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()

    def join():
        thread.join()
        if errors:
            raise errors[0]

    return join


@pytest.mark.parametrize("allocation", ALLOCATIONS)
def test_monitors_in_other_threads_change_nothing(allocation):
    whole, states = list(make(allocation)), [make(allocation).state_dict(step) for step in range(0, NUM_STEPS, 20)]
    draws = [list(state["draws"].values()) for state in states]
    sampler, ended = make(allocation), threading.Event()

    def monitor(first):
        for turn in range(first, 10**9):
            if ended.is_set():
                return
            i = turn * 7 % len(states)
            assert sampler.exposure(20 * i).draws.tolist() == draws[i]
            assert sampler.plan(20 * i).indices.tolist() == whole[20 * i]
            state = sampler.state_dict(20 * i)
            assert {k: v for k, v in state.items() if k != "changes"} == {
                k: v for k, v in states[i].items() if k != "changes"
            }
            assert pickle.loads(pickle.dumps(sampler)).plan(20 * i).indices.tolist() == whole[20 * i]

    monitors = [in_thread(lambda first=first: monitor(first)) for first in range(3)]
    read = list(sampler)
    ended.set()
    for join in monitors:
        join()
    assert read == whole


def test_threads_that_share_a_sampler_plan_the_same():
    whole = list(make())
    sampler = make()

    def read(steps):
        assert [sampler.plan(step).indices.tolist() for step in steps] == [whole[step] for step in steps]

    for join in [in_thread(lambda i=i: read(range(i, NUM_STEPS, 1 + i % 3))) for i in range(4)]:
        join()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this platform does not fork")
@pytest.mark.filterwarnings("ignore:.*use of fork.*:DeprecationWarning")
def test_a_process_that_forks_while_another_thread_plans():
    """A forked child plans right: it waits for no thread of its parent and sees no half-planned batch."""
    whole = list(make("systematic"))
    sampler, ended = make("systematic"), threading.Event()

    def monitor():
        while not ended.is_set():
            sampler.exposure(NUM_STEPS)

    join = in_thread(monitor)
    try:
        for turn in range(10):
            pid = os.fork()
            if pid == 0:
                os._exit(0 if sampler.plan(turn).indices.tolist() == whole[turn] else 1)
            assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    finally:
        ended.set()
        join()


class Breaking:
    """A schedule that calls a function when a step's mixture is first requested, see `Schedule`."""

    def __init__(self, schedule, at, do):
        self.schedule, self.at, self.do = schedule, at, do

    def mixture(self, step):
        if step == self.at:
            self.at = None
            self.do()
        return self.schedule.mixture(step)

    def next_change(self, step):
        return self.schedule.next_change(step)

    def describe(self):
        return self.schedule.describe()


def interrupt():
    raise KeyboardInterrupt


@pytest.mark.parametrize("allocation", ALLOCATIONS)
@pytest.mark.parametrize("at", [75, 110, 145])
def test_goes_on_exactly_after_an_interrupt(allocation, at):
    whole = list(make(allocation))
    schedule = Breaking(ANNEAL, None, interrupt)
    sampler = make(allocation, schedule)
    read = list(islice(sampler, 30))
    schedule.at = at
    with pytest.raises(KeyboardInterrupt):
        sampler.exposure()
    read += islice(sampler, 10)
    schedule.at = at + 1
    with pytest.raises(KeyboardInterrupt):
        sampler.plan(160)
    read += islice(sampler, 20)
    schedule.at = at + 2
    while len(read) < NUM_STEPS:
        try:
            for batch in sampler:
                read.append(batch)
        except KeyboardInterrupt:
            assert len(read) < NUM_STEPS
    assert read == whole
    assert sampler.exposure().draws.tolist() == make(allocation).exposure().draws.tolist()


def test_a_signal_handler_may_not_use_a_sampler_that_plans():
    schedule = Breaking(ANNEAL, None, lambda: sampler.state_dict())
    sampler = make(schedule=schedule)
    read = list(islice(sampler, 5))
    schedule.at = 60
    with pytest.raises(RuntimeError, match="a signal handler or a finalizer used a sampler while its own thread was"):
        sampler.plan(60)
    assert read + list(sampler) == list(make())


@pytest.mark.parametrize("allocation", ALLOCATIONS)
@pytest.mark.parametrize("schedule", [schedules.constant(Mixture.proportional(SIZES)), "anneal"])
def test_a_signal_interrupts_a_long_forecast(allocation, schedule, request):
    """A signal ends a forecast that would take hours. It comes after a pause, so that the core has begun."""
    # Shells start background jobs with SIGINT ignored. Python would then raise no KeyboardInterrupt.
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, previous))
    far = 10**12
    if schedule == "anneal":
        schedule = schedules.anneal(SIZES, tau=5, final_tau=1, num_steps=far)
    sampler, fresh = (DomainBatchSampler(schedule, batch_size=30, seed=3, allocation=allocation) for _ in range(2))
    read, begun = list(islice(sampler, 5)), threading.Event()

    def interrupt_main():
        begun.wait()
        time.sleep(0.1)
        os.kill(os.getpid(), signal.SIGINT)

    join = in_thread(interrupt_main)
    with pytest.raises(KeyboardInterrupt):  # noqa: PT012
        begun.set()
        sampler.exposure(far)
    join()
    assert read + list(islice(sampler, 5)) == list(islice(fresh, 10))


def test_a_second_thread_waits():
    """Calls from another thread wait while the core plans without the GIL."""
    schedule = schedules.constant(Mixture.proportional({"a": 10**7, "b": 10**6}))
    sampler = DomainBatchSampler(schedule, batch_size=200_000, seed=0, num_steps=40)
    draws = [sampler.exposure(step).draws for step in range(0, 40, 4)]

    def count():
        for step in range(0, 40, 4):
            assert np.array_equal(sampler.exposure(step).draws, draws[step // 4])

    joins = [in_thread(count) for _ in range(2)]
    for step, batch in enumerate(sampler):
        if step % 8 == 0:
            assert batch == sampler.plan(step).indices.tolist()
    for join in joins:
        join()
