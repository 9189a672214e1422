"""DevicePrefetcher yields the loader's batches, on the device."""

import collections

import pytest
import torch

from pycooldown.data import DevicePrefetcher

NEEDS_CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
Pair = collections.namedtuple("Pair", "x y")


def batches(count, size=64):
    for i in range(count):
        x = torch.arange(size * (1 + i % 3)) + i
        yield {"x": x, "nested": [x.float(), (x.bool(), "text")], "pair": Pair(x[None].clone(), i)}


def test_is_a_no_op_on_the_cpu():
    loader = list(batches(3))
    prefetcher = DevicePrefetcher(loader, "cpu")
    assert len(prefetcher) == 3
    assert all(a is b for a, b in zip(prefetcher, loader, strict=True))


def test_other_devices_are_refused():
    with pytest.raises(ValueError, match="expected a CPU or CUDA device"):
        DevicePrefetcher([], "meta")


class Counter:
    """A loader whose state is how many batches were taken from it."""

    def __init__(self, count):
        self.count, self.taken = count, 0

    def __iter__(self):
        while self.taken < self.count:
            self.taken += 1
            yield torch.tensor([self.taken])

    def state_dict(self):
        return {"taken": self.taken}

    def load_state_dict(self, state):
        self.taken = state["taken"]


@pytest.mark.parametrize("kind", ["cpu", pytest.param("cuda", marks=NEEDS_CUDA)])
@pytest.mark.parametrize("stop", range(6))
def test_state_is_behind_the_batches_that_were_yielded(kind, stop):
    first, second = (DevicePrefetcher(Counter(5), kind) for _ in range(2))
    iterator = iter(first)
    seen = [int(next(iterator)) for _ in range(stop)]
    assert first.state_dict() == {"taken": stop}
    second.load_state_dict(first.state_dict())
    assert seen + [int(batch) for batch in second] == [1, 2, 3, 4, 5]


def test_one_batch_is_taken_ahead_and_none_is_lost():
    """The order of uploads and hand-overs, without a device."""
    loader, events = Counter(3), []
    prefetcher = DevicePrefetcher(loader, "cpu")
    for batch in prefetcher._one_ahead(lambda number, batch: events.append(f"up {number}") or int(batch)):
        events.append(f"use {batch}, state {prefetcher.state_dict()['taken']}, taken {loader.taken}")
    assert events == [
        "up 0",
        "up 1",
        "use 1, state 1, taken 2",
        "up 2",
        "use 2, state 2, taken 3",
        "use 3, state 3, taken 3",
    ]


@NEEDS_CUDA
@pytest.mark.parametrize("count", [0, 1, 2, 9])
def test_values_survive_the_buffers_being_used_again(count):
    size = 1 << 20  # so that copies take a while
    seen = []
    for batch in DevicePrefetcher(batches(count, size), "cuda"):
        assert batch["x"].is_cuda
        torch.cuda._sleep(10_000_000)  # the compute stream lags behind the copies
        seen.append({"x": batch["x"] + 0, "nested": batch["nested"][0] + 0, "pair": batch["pair"]})
    expected = list(batches(count, size))
    assert len(seen) == count
    for got, want in zip(seen, expected, strict=True):
        assert torch.equal(got["x"].cpu(), want["x"])
        assert torch.equal(got["nested"].cpu(), want["nested"][0])
        assert torch.equal(got["pair"].x.cpu(), want["pair"].x)
        assert got["pair"].y == want["pair"].y
