"""Feed batches to a device: how much of a copy overlaps a step, and shards of tar and tokens through a DataLoader."""

from __future__ import annotations

import io
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import DEVICE, ON_GPU, Run, parse, synchronize

from pycooldown import DomainBatchSampler, Mixture, schedules
from pycooldown.data import TarDataset, TokenDataset, token_sources


def seconds(batches: Iterable[torch.Tensor], step: Callable[[torch.Tensor], object]) -> float:
    """Return the time to iterate over the batches."""
    synchronize()
    start = time.perf_counter()
    for batch in batches:
        step(batch)
    synchronize()
    return time.perf_counter() - start


def overlap(run: Run) -> None:
    """Time steps on batches that are on the device, that are copied when needed, and that are copied asynchronously."""
    count, size, width = (3, 1 << 10, 8) if run.dry else (60, 32 << 20, 4096)
    batches = [torch.randint(256, (size,), dtype=torch.uint8) for _ in range(3)]
    weight = torch.randn(width, width, device=DEVICE, dtype=torch.bfloat16)

    def step(batch: torch.Tensor) -> None:
        out = weight
        for _ in range(8):
            out = out @ weight
        batch.sum()

    resident = [batch.to(DEVICE) for batch in batches]
    pinned = [batch.pin_memory() if ON_GPU else batch for batch in batches]
    feeds = {
        "there already": lambda: (resident[i % 3] for i in range(count)),
        "copied when needed": lambda: (batches[i % 3].to(DEVICE) for i in range(count)),
        "pinned, not waited for": lambda: (pinned[i % 3].to(DEVICE, non_blocking=True) for i in range(count)),
    }
    seconds(feeds["there already"](), step)
    for name, feed in feeds.items():
        taken = seconds(feed(), step)
        run.write(feed=name, batches=count, mib=size / 2**20, ms_per_batch=None if run.dry else 1e3 * taken / count)


def to_gpu(run: Run, feed: str, dataset: Any, collate: Callable[[Any], torch.Tensor], batch_size: int) -> None:
    """Time batches that a sampler chooses, from a DataLoader with workers and pinned memory to the device."""
    if run.written(feed=feed):
        return
    steps = 3 if run.dry else 200
    mixture = Mixture.temperature_sampling(dataset.sizes, 5)
    sampler = DomainBatchSampler(schedules.constant(mixture), batch_size=batch_size, seed=0, num_steps=steps)
    workers = 0 if run.dry else 8
    loader = torch.utils.data.DataLoader(
        dataset, batch_sampler=sampler, collate_fn=collate, num_workers=workers, pin_memory=ON_GPU
    )
    size = 0

    def moved() -> Iterable[torch.Tensor]:
        nonlocal size
        for batch in loader:
            size += batch.nbytes
            yield batch.to(DEVICE, non_blocking=True)

    taken = seconds(moved(), len)
    rates = {"samples_per_second": steps * batch_size / taken, "mb_per_second": size / taken / 1e6}
    run.write(feed=feed, workers=workers, **(dict.fromkeys(rates) if run.dry else rates))


def tars(folder: Path, samples: int, length: int) -> TarDataset:
    """Write shards of bytes, of two domains."""
    shards = {}
    for domain, size in (("large", samples), ("small", samples // 8)):
        path = folder / f"{domain}.tar"
        shards[domain] = [str(path)]
        with tarfile.open(path, "w") as tar:
            for i in range(size):
                info = tarfile.TarInfo(f"{i}.bin")
                info.size = length
                tar.addfile(info, io.BytesIO(bytes(length)))
    return TarDataset(shards)


def tokens(folder: Path, count: int, length: int) -> TokenDataset:
    """Write flat files of tokens of two domains, cut into sequences."""
    sources = {}
    for domain, size in (("large", count), ("small", count // 8)):
        path = folder / f"{domain}.bin"
        np.random.default_rng(0).integers(0, 50_000, size, np.uint16).tofile(path)
        sources[domain] = token_sources.flat(path, "uint16")
    return TokenDataset(sources, length=length)


def joined(samples: list[Mapping[str, Any]]) -> torch.Tensor:
    """Return the concatenated bytes of samples."""
    return torch.frombuffer(bytearray(b"".join(bytes(sample["bin"]) for sample in samples)), dtype=torch.uint8)


def input_ids(batch: Mapping[str, Any]) -> torch.Tensor:
    """Return the tokens of a batch, (B, T)."""
    return torch.as_tensor(batch["input_ids"])


def main() -> None:
    """Run all benchmarks."""
    run, _ = parse(__doc__)
    overlap(run)
    with tempfile.TemporaryDirectory() as folder:
        samples, length, batch_size = (64, 32, 8) if run.dry else (20_000, 4096, 256)
        to_gpu(run, "tar shards", tars(Path(folder), samples, length), joined, batch_size)
    with tempfile.TemporaryDirectory() as folder:
        count, length, batch_size = (4096, 16, 8) if run.dry else (100_000_000, 1024, 64)
        to_gpu(run, "tokens", tokens(Path(folder), count, length), input_ids, batch_size)


if __name__ == "__main__":
    main()
