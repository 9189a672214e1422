"""Plain PyTorch with DistributedDataParallel: a mixture in a loop of your own, with checkpoints and exact resume.

    torchrun --nproc-per-node 2 examples/plain_pytorch_ddp.py run       # a folder for checkpoints
    torchrun --nproc-per-node 2 examples/plain_pytorch_ddp.py run       # again: goes on from the newest one
    python examples/plain_pytorch_ddp.py run                            # the same two processes without torchrun

The order of samples does not depend on the number of processes, so a job may continue with more or fewer of them.
"""

import os
import sys
import tempfile
from pathlib import Path

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

from pycooldown import DomainBatchSampler, schedules
from pycooldown.losses import cross_entropy

SIZES = {"en": 400, "sw": 20}  # samples of each domain
VOCABULARY, LENGTH, BATCH, STEPS, SAVE_EVERY = 32, 16, 16, 12, 8


class Samples(torch.utils.data.Dataset):
    """Stands in for your dataset: the domains laid end to end. An item is (tokens, domain)."""

    def __init__(self):
        starts = torch.randint(VOCABULARY, (sum(SIZES.values()), 1), generator=torch.Generator().manual_seed(0))
        self.domain_ids = torch.repeat_interleave(torch.arange(len(SIZES)), torch.tensor(list(SIZES.values())))
        self.tokens = (starts + torch.arange(LENGTH + 1) * (1 + 2 * self.domain_ids[:, None])) % VOCABULARY

    def __len__(self):
        return len(self.tokens)

    def __getitem__(self, index):
        return self.tokens[index], self.domain_ids[index]


def train(folder):
    """Train on this process's share of each batch."""
    rank, world_size = dist.get_rank(), dist.get_world_size()
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if torch.cuda.is_available() else torch.device("cpu")
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Embedding(VOCABULARY, 32), torch.nn.Linear(32, VOCABULARY)).to(device)
    model = DistributedDataParallel(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)

    # batch_size is the global one. Each process gets its slice of every batch, so there is no DistributedSampler.
    schedule = schedules.cooldown(SIZES, tau=5.0, final_tau=1.0, switch_step=10)
    sampler = DomainBatchSampler(
        schedule, batch_size=BATCH, seed=0, num_steps=STEPS, allocation="quota", rank=rank, world_size=world_size
    )
    step = 0
    if checkpoints := sorted(folder.glob("step-*.pt")):
        state = torch.load(checkpoints[-1], map_location=device, weights_only=True)
        model.module.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        sampler.load_state_dict(state["sampler"])  # before iterating; any number of processes and workers
        step = state["step"]

    for tokens, domain_ids in DataLoader(Samples(), batch_sampler=sampler, num_workers=1):
        tokens, domain_ids = tokens.to(device), domain_ids.to(device)
        weights = torch.tensor(sampler.mixture(step).loss_weights, dtype=torch.float32, device=device)
        logits = model(tokens[:, :-1])
        total, stats = cross_entropy(
            logits.transpose(1, 2), tokens[:, 1:], domain_ids=domain_ids, domain_weights=weights,
            reduction="sum", return_stats=True,
        )  # fmt: skip
        # DDP averages gradients over processes. Slices need not be equal, so divide by the tokens of the global batch.
        optimizer.zero_grad()
        (total * world_size / (BATCH * LENGTH)).backward()
        optimizer.step()
        step += 1

        sums = torch.stack([stats.loss_sum, stats.token_count.double()])  # one small all-reduce for all domains
        dist.all_reduce(sums)
        if rank == 0:
            losses = ", ".join(f"{name} {value:.17g}" for name, value in zip(SIZES, (sums[0] / sums[1]).tolist()))
            print(f"step {step}: {losses}", flush=True)
            if step % SAVE_EVERY == 0:
                state = {"step": step, "model": model.module.state_dict(), "optimizer": optimizer.state_dict()}
                # The step is passed, because a loader with workers has requested more batches than were trained on.
                torch.save(state | {"sampler": sampler.state_dict(step)}, folder / "new.pt")
                os.replace(folder / "new.pt", folder / f"step-{step:08d}.pt")  # complete or absent


def main(rank=None, store=None):
    """Join the other processes, train and leave."""
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    if rank is None:
        dist.init_process_group(backend)  # torchrun sets the addresses of the others
    else:
        dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "run")
    folder.mkdir(parents=True, exist_ok=True)
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    train(folder)
    dist.destroy_process_group()


if __name__ == "__main__":
    if "RANK" in os.environ:
        main()
    else:
        with tempfile.TemporaryDirectory() as temporary:
            torch.multiprocessing.spawn(main, (f"{temporary}/store",), nprocs=2)
