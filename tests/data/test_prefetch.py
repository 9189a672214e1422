"""DevicePrefetcher yields the loader's batches, on the device."""

import collections

import pytest
import torch

from pycooldown.data import DevicePrefetcher

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


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
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
