"""Lightning: a LightningModule with a mixture, per-domain logs and exact resume.

python examples/lightning_module.py
"""

import tempfile

import pytorch_lightning as lightning
import torch
from torch.utils.data import DataLoader, TensorDataset

from pycooldown import DomainBatchSampler, schedules
from pycooldown.losses import CrossEntropyLoss

SIZES = {"en": 400, "sw": 20}
VOCABULARY, LENGTH, BATCH, LOG_EVERY = 32, 16, 16, 10


class Model(lightning.LightningModule):
    """A model whose loss is weighed by the mixture of the step."""

    def __init__(self, sampler):
        super().__init__()
        self.sampler = sampler
        self.layers = torch.nn.Sequential(torch.nn.Embedding(VOCABULARY, 32), torch.nn.Linear(32, VOCABULARY))
        self.loss = CrossEntropyLoss(return_stats=True)
        self.register_buffer("sums", torch.zeros(2, len(SIZES), dtype=torch.float64))

    def configure_optimizers(self):
        """Return the optimizer."""
        return torch.optim.AdamW(self.parameters(), lr=1e-2)

    def training_step(self, batch, batch_idx):
        """Return the loss of a batch of (tokens, domain ids)."""
        tokens, domain_ids = batch
        # global_step counts optimizer steps, which are the sampler's steps unless gradients are accumulated.
        weights = torch.tensor(self.sampler.mixture(self.global_step).loss_weights, dtype=torch.float32)
        logits = self.layers(tokens[:, :-1]).transpose(1, 2)
        # A mean over this process's tokens. For rows of unlike lengths see the sum in plain_pytorch_ddp.py.
        loss, stats = self.loss(logits, tokens[:, 1:], domain_ids=domain_ids, domain_weights=weights.to(self.device))
        self.sums += torch.stack([stats.loss_sum, stats.token_count.double()])
        if (self.global_step + 1) % LOG_EVERY == 0:  # over several batches, as one may lack a rare domain
            sums = self.all_gather(self.sums).reshape(-1, 2, len(SIZES)).sum(dim=0)
            self.log_dict({f"loss/{name}": mean for name, mean in zip(SIZES, (sums[0] / sums[1]).float())})
            self.sums.zero_()
        return loss

    def on_save_checkpoint(self, checkpoint):
        """Save the position in the data with the weights."""
        checkpoint["sampler"] = self.sampler.state_dict(self.global_step)

    def on_load_checkpoint(self, checkpoint):
        """Continue from the position in the data."""
        self.sampler.load_state_dict(checkpoint["sampler"])


def fit(folder, max_steps, checkpoint=None):
    """Train up to a step and return the model."""
    lightning.seed_everything(0, verbose=False)
    trainer = lightning.Trainer(
        accelerator="auto" if torch.cuda.is_available() else "cpu",
        max_steps=max_steps,
        use_distributed_sampler=False,  # the sampler slices the batch itself
        default_root_dir=folder,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    # Lightning counts the batches of a pass from its start, so the sampler has no end and max_steps stops.
    sampler = DomainBatchSampler(
        schedules.cooldown(SIZES, tau=5.0, final_tau=1.0, switch_step=15), batch_size=BATCH, seed=0,
        rank=trainer.global_rank, world_size=trainer.world_size,
    )  # fmt: skip
    starts = torch.arange(sum(SIZES.values()))[:, None] * 7  # stands in for your data, domains laid end to end
    domain_ids = torch.repeat_interleave(torch.arange(len(SIZES)), torch.tensor(list(SIZES.values())))
    tokens = (starts + torch.arange(LENGTH + 1) * (1 + 2 * domain_ids[:, None])) % VOCABULARY
    loader = DataLoader(TensorDataset(tokens, domain_ids), batch_sampler=sampler)
    model = Model(sampler)
    trainer.fit(model, loader, ckpt_path=checkpoint)
    trainer.save_checkpoint(f"{folder}/step-{max_steps}.ckpt")
    print({name: value.item() for name, value in trainer.callback_metrics.items()})
    return model


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        whole = fit(temporary, 20)
        fit(temporary, 12)
        again = fit(temporary, 20, f"{temporary}/step-12.ckpt")
        same = all(torch.equal(a, b) for a, b in zip(whole.parameters(), again.parameters()))
        print(f"goes on exactly: {same}")
