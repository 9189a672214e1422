"""Batches to a device: how much of a copy `DevicePrefetcher` hides behind a step, and shards of tar to the GPU."""

from __future__ import annotations

import io
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from common import DEVICE, Run, missing, parse, synchronize

from pycooldown import DomainBatchSampler, Mixture, schedules
from pycooldown.data import DevicePrefetcher, TarDataset


def seconds(batches: Iterable[torch.Tensor], step: Callable[[torch.Tensor], object]) -> float:
    """How long it takes to go through the batches."""
    synchronize()
    start = time.perf_counter()
    for batch in batches:
        step(batch)
    synchronize()
    return time.perf_counter() - start


def overlap(run: Run) -> None:
    """Time steps on batches that are there, that are copied when needed, and that are copied ahead."""
    count, size, width = (3, 1 << 10, 8) if run.dry else (60, 32 << 20, 4096)
    batches = [torch.randint(256, (size,), dtype=torch.uint8) for _ in range(3)]
    weight = torch.randn(width, width, device=DEVICE, dtype=torch.bfloat16)

    def step(batch: torch.Tensor) -> None:
        out = weight
        for _ in range(8):
            out = out @ weight
        batch.sum()

    resident = [batch.to(DEVICE) for batch in batches]
    feeds = {
        "there already": lambda: (resident[i % 3] for i in range(count)),
        "copied when needed": lambda: (batches[i % 3].to(DEVICE) for i in range(count)),
        "pinned": lambda: (batches[i % 3].pin_memory().to(DEVICE, non_blocking=True) for i in range(count)),
        "DevicePrefetcher": lambda: DevicePrefetcher([batches[i % 3] for i in range(count)], DEVICE),
    }
    if DEVICE == "cpu":
        del feeds["pinned"]
    seconds(feeds["there already"](), step)
    for name, feed in feeds.items():
        taken = seconds(feed(), step)
        run.write(feed=name, batches=count, mib=size / 2**20, ms_per_batch=None if run.dry else 1e3 * taken / count)


def tar_to_gpu(run: Run) -> None:
    """Batches that a sampler chooses from tar shards, decoded to tensors and moved to the device."""
    samples, length, steps, batch_size = (64, 32, 3, 8) if run.dry else (20_000, 4096, 200, 256)
    with tempfile.TemporaryDirectory() as folder:
        shards = {}
        for domain, size in (("large", samples), ("small", samples // 8)):
            path = Path(folder) / f"{domain}.tar"
            shards[domain] = [str(path)]
            with tarfile.open(path, "w") as tar:
                for i in range(size):
                    info = tarfile.TarInfo(f"{i}.bin")
                    info.size = length
                    tar.addfile(info, io.BytesIO(bytes(length)))
        dataset = TarDataset(shards)
        mixture = Mixture.temperature_sampling(dataset.sizes, 5)
        sampler = DomainBatchSampler(schedules.constant(mixture), batch_size=batch_size, seed=0, num_steps=steps)

        def batch(indices: list[int]) -> torch.Tensor:
            found = dataset.__getitems__(indices)
            return torch.frombuffer(bytearray(b"".join(bytes(s["bin"]) for s in found)), dtype=torch.uint8)

        taken = seconds(DevicePrefetcher([batch(i) for i in sampler] if run.dry else map(batch, sampler), DEVICE), len)
    rate = None if run.dry else steps * batch_size / taken
    run.write(feed="tar shards", samples_per_second=rate, mb_per_second=None if rate is None else rate * length / 1e6)


def main() -> None:
    """Both."""
    run, _ = parse(__doc__)
    overlap(run)
    if absent := missing("webdataset"):
        run.write(feed="webdataset", skipped=absent)
    tar_to_gpu(run)


if __name__ == "__main__":
    main()
