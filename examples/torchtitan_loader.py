"""torchtitan: its data loader and its loss, with a mixture.

python examples/torchtitan_loader.py

A sketch of a job: name the two configs in your model's config_registry, and run `MixtureTrainer` in place of Trainer.
Trainer needs GPUs, so loader, loss and hook are called here in its order. Pipeline parallelism does not work with it,
because the loss is called after the hook of several micro-batches.
"""

import tempfile
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from torchtitan.components.dataloader import BaseDataLoader
from torchtitan.components.loss import BaseLoss
from torchtitan.trainer import Trainer

from pycooldown import DomainBatchSampler, schedules
from pycooldown.data import TokenDataset, token_sources
from pycooldown.losses import cross_entropy


class MixtureDataLoader(BaseDataLoader):
    """Micro-batches of this data-parallel rank; the ranks of a tensor- or context-parallel group get the same ones."""

    @dataclass(kw_only=True, slots=True)
    class Config(BaseDataLoader.Config):
        """`dataset_path` has a folder of flat uint16 files, one for each domain; yours may have any token source."""

        global_batch_size: int  # as training.global_batch_size: the sampler's steps are then optimizer steps
        steps: int

    def __init__(self, config, *, dp_world_size, dp_rank, tokenizer, seq_len, local_batch_size, **options):
        del tokenizer, options  # the tokens exist already, and the sampler needs no snapshots
        sources = {path.stem: token_sources.flat(path, "uint16") for path in Path(config.dataset_path).glob("*.bin")}
        columns = ("input_ids", "position_ids", "shift_labels", "domain_ids")
        self.dataset = TokenDataset(dict(sorted(sources.items())), seq_len, columns=columns)
        self.sampler = DomainBatchSampler(
            schedules.cooldown(self.dataset.sizes, tau=5.0, final_tau=1.0, switch_step=config.steps * 3 // 4),
            batch_size=config.global_batch_size, seed=0, num_steps=config.steps, allocation="quota",
            rank=dp_rank, world_size=dp_world_size,
        )  # fmt: skip
        self.local_batch_size, self.step = local_batch_size, 0

    def __iter__(self):
        """Yield (inputs, labels); with gradient accumulation, a step takes several of them."""
        for indices in self.sampler:
            self.step += 1  # torchtitan saves between steps, when all micro-batches of this one have been taken
            weights = torch.tensor(self.sampler.mixture(self.step - 1).loss_weights, dtype=torch.float32)
            for begin in range(0, len(indices), self.local_batch_size):
                rows = TokenDataset.collate(self.dataset.__getitems__(indices[begin : begin + self.local_batch_size]))
                inputs = {"input": rows["input_ids"], "positions": rows["position_ids"].long()}
                yield inputs | {"domain_ids": rows["domain_ids"], "domain_weights": weights}, rows["shift_labels"]

    def state_dict(self):
        """Return the position in the data, the same on all ranks; a job may continue with another number of ranks."""
        return {"sampler": self.sampler.state_dict(self.step)}

    def load_state_dict(self, state_dict):
        """Continue from the saved position."""
        if state_dict:
            self.sampler.load_state_dict(state_dict["sampler"])
            self.step = state_dict["sampler"]["step"]


class MixtureLoss(BaseLoss):
    """Cross-entropy with weights by domain, over the number of tokens of the global batch."""

    @dataclass(kw_only=True, slots=True)
    class Config(BaseLoss.Config):
        """The config, which has no options."""

    def __init__(self, config, *, compile_config=None):
        self.domains = {}  # of the micro-batch

    def __call__(self, pred, labels, global_valid_tokens=None, **options):
        """Return the loss of logits (N, T, V), and metrics."""
        loss = cross_entropy(pred.transpose(1, 2), labels, reduction="sum", **self.domains)
        return loss if global_valid_tokens is None else loss / global_valid_tokens, {}


class MixtureTrainer(Trainer):
    """torchtitan's trainer, which passes the domains of a micro-batch to the loss and not to the model."""

    def post_dataloading_process(self, input_dict, labels):
        """Remove the domains from the input. There is one per sequence, so context parallelism may cut sequences."""
        self.loss_fn.domains = {name: input_dict.pop(name) for name in ("domain_ids", "domain_weights")}
        return super().post_dataloading_process(input_dict, labels)


def main(folder):
    """Do the work of `Trainer.train_step`, in one process."""
    for name, stride, count in (("en", 1, 9000), ("sw", 3, 500)):
        (stride * np.arange(count) % 32).astype(np.uint16).tofile(f"{folder}/{name}.bin")
    config = MixtureDataLoader.Config(dataset_path=folder, global_batch_size=8, steps=20)
    build = {"dp_world_size": 1, "dp_rank": 0, "tokenizer": None, "seq_len": 16, "local_batch_size": 4}
    trainer = object.__new__(MixtureTrainer)
    trainer.loss_fn, trainer.model_config, trainer.ntokens_seen = MixtureLoss.Config().build(), None, 0
    trainer.parallel_dims = SimpleNamespace(cp_enabled=False)
    trainer.config = SimpleNamespace(parallelism=SimpleNamespace(spmd_backend="default"))
    loader, seen, state, logits = config.build(**build), [], None, torch.zeros(32, 32, requires_grad=True)  # of bigrams
    for micro_batch, (inputs, labels) in enumerate(loader):  # two for each step
        tokens, labels, extra = trainer.post_dataloading_process(inputs, labels)
        loss, _ = trainer.loss_fn(logits[tokens], labels, global_valid_tokens=2 * labels.numel())
        logits.data -= 100 * torch.autograd.grad(loss, logits)[0]
        seen.append(tokens)
        state = state if micro_batch != 23 else loader.state_dict()
    print(f"loss {2 * loss.item():.4f}; beside tokens the model gets {sorted(extra)}")
    (again := config.build(**build)).load_state_dict(state)
    same = all(torch.equal(inputs["input"], before) for (inputs, _), before in zip(again, seen[24:], strict=True))
    print(f"goes on exactly: {same}")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        main(temporary)
