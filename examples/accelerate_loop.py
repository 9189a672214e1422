"""A loop on Hugging Face Accelerate: a model of transformers whose loss is weighed by domain.

    python examples/accelerate_loop.py
    torchrun --nproc-per-node 2 examples/accelerate_loop.py     # or `accelerate launch`, on GPUs

On CPUs use torchrun: `accelerate launch --cpu --num_processes 2` starts only one process, without a warning.
"""

import sys
import tempfile

import torch
from accelerate import Accelerator
from accelerate.utils import DataLoaderConfiguration, set_seed
from torch.utils.data import DataLoader
from transformers import LlamaConfig, LlamaForCausalLM

from pycooldown import DomainBatchSampler, Mixture, schedules
from pycooldown.huggingface import fuse_loss

STEPS, SAVE_AT = 20, 12
STARTS = torch.arange(420)[:, None] * 7  # stands in for your data: 400 samples of "en", then 20 of "sw"
TOKENS = torch.cat([STARTS[:400] + torch.arange(16), STARTS[400:] + 3 * torch.arange(16)]) % 32
SIZES = {"en": 400, "sw": 20}


class Position:
    """The data's part of Accelerate's checkpoints: the sampler's state for the steps that were *trained*."""

    def __init__(self, sampler):
        self.sampler, self.step = sampler, 0

    def state_dict(self):
        """Return the sampler's state. The step is passed, because Accelerate's loader is a batch ahead."""
        return self.sampler.state_dict(self.step)

    def load_state_dict(self, state):
        """Continue from the saved position."""
        self.sampler.load_state_dict(state)
        self.step = state["step"]


def main(folder, resume=False):
    """Train, or continue from the checkpoint in the folder; return the last loss."""
    set_seed(0)
    # split_batches: Accelerate cuts the global batch into slices, as the sampler would. So the sampler's own rank and
    # world_size stay at 0 and 1, and it is given the global batch size.
    accelerator = Accelerator(
        cpu=not torch.cuda.is_available(), dataloader_config=DataLoaderConfiguration(split_batches=True)
    )
    config = LlamaConfig(
        vocab_size=32, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2
    )
    model = LlamaForCausalLM(config)
    fuse_loss(model)  # before `prepare` wraps it
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    schedule = schedules.constant(Mixture.temperature_sampling(SIZES, tau=3.0))
    sampler = DomainBatchSampler(schedule, batch_size=16, seed=0, num_steps=STEPS, allocation="systematic")

    def collate(indices):
        indices = torch.tensor(indices)
        return {"tokens": TOKENS[indices], "domain_ids": (indices >= 400).long()}

    loader = DataLoader(range(len(TOKENS)), batch_sampler=sampler, collate_fn=collate)
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    position = Position(sampler)
    accelerator.register_for_checkpointing(position)
    if resume:
        accelerator.load_state(folder)

    for batch in loader:
        mixture = sampler.mixture(position.step)
        weights = torch.tensor(mixture.loss_weights, dtype=torch.float32, device=accelerator.device)
        # The loss is a mean over this process's tokens, of which all have equally many here. For rows of unlike lengths
        # pass num_items_in_batch, the tokens with a loss on all processes over their number.
        outputs = model(
            batch["tokens"], labels=batch["tokens"], domain_ids=batch["domain_ids"], domain_weights=weights,
            return_stats=True,
        )  # fmt: skip
        accelerator.backward(outputs.loss)
        optimizer.step()
        optimizer.zero_grad()
        position.step += 1
        if position.step == SAVE_AT:
            accelerator.save_state(folder)
    sums = torch.stack([outputs.domain_stats.loss_sum, outputs.domain_stats.token_count.double()])
    sums = accelerator.reduce(sums, "sum")
    accelerator.print(dict(zip(SIZES, (sums[0] / sums[1]).tolist())))
    return (sums[0].sum() / sums[1].sum()).item()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        run = sys.argv[1] if len(sys.argv) > 1 else temporary  # processes must share it
        whole = main(run)
        again = main(run, resume=True)
        print(f"goes on exactly: {whole == again}")
