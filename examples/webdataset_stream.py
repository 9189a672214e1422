"""webdataset: streamed tar shards of several domains, mixed by a schedule, with weights for the loss.

    python examples/webdataset_stream.py

For shards on local disks `pycooldown.data.TarDataset` gives random access instead.
"""

import io
import tarfile
import tempfile

import torch
from webdataset import WebLoader

from pycooldown import Mixture, schedules
from pycooldown.data import mix
from pycooldown.losses import cross_entropy

STEPS, BATCH = 20, 8


def write_shards(folder):
    """Stand in for your shards: samples of 17 tokens as text, where each domain counts in steps of its own."""
    for domain, (stride, shards) in {"en": (1, 3), "sw": (3, 1)}.items():
        for shard in range(shards):
            with tarfile.open(f"{folder}/{domain}-{shard:06d}.tar", "w") as tar:
                for i in range(20):
                    text = " ".join(str((7 * i + stride * t) % 32) for t in range(17)).encode()
                    member = tarfile.TarInfo(f"{i:06d}.txt")
                    member.size = len(text)
                    tar.addfile(member, io.BytesIO(text))


def make_loader(folder, start_step=0):
    """Return batches of (tokens, domain ids); after a crash, from the number of steps that were trained."""
    domains = ["en", "sw"]
    # Draw in proportion to size, which repeats little, and let the loss weights compensate.
    schedule = schedules.constant(Mixture.scalarization({"en": 60, "sw": 20}, tau=5.0))
    urls = {"en": f"{folder}/en-{{000000..000002}}.tar", "sw": f"{folder}/sw-000000.tar"}  # http or pipe: as well

    def decode(sample):
        tokens = torch.tensor([int(word) for word in sample["txt"].split()])
        return tokens, domains.index(sample["__domain__"])

    # Ranks are found as webdataset finds them; batch_size is over all ranks, `batched` takes this rank's share of it.
    stream = mix(urls, schedule, batch_size=BATCH, seed=0, num_steps=STEPS, start_step=start_step, elastic=True)
    world_size = torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1
    stream = stream.map(decode).batched(BATCH // world_size)
    return schedule, WebLoader(stream, batch_size=None, num_workers=2)


def main():
    """Train a small model, and show that a job that continues sees the batches that would have followed."""
    with tempfile.TemporaryDirectory() as folder:
        write_shards(folder)
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Embedding(32, 32), torch.nn.Linear(32, 32))
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        schedule, loader = make_loader(folder)
        seen = []
        for step, (tokens, domain_ids) in enumerate(loader):
            seen.append(tokens)
            weights = torch.tensor(schedule.mixture(step).loss_weights, dtype=torch.float32)
            logits = model(tokens[:, :-1]).transpose(1, 2)
            loss, stats = cross_entropy(
                logits, tokens[:, 1:], domain_ids=domain_ids, domain_weights=weights, return_stats=True
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        print((stats.loss_sum / stats.token_count).tolist())

        _, loader = make_loader(folder, start_step=12)
        same = all(torch.equal(a, b) for (a, _), b in zip(loader, seen[12:], strict=True))
        print(f"goes on exactly: {same}")


if __name__ == "__main__":
    main()
