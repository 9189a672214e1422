"""litgpt: a data module with a mixture, for `litgpt pretrain`.

    python examples/litgpt_data.py

Yours: `PYTHONPATH=. litgpt pretrain MODEL --data litgpt_data.MixtureData --data.path TOKENS ...`. litgpt computes the
loss itself, without weights by domain, so the mixture has to sample by the target.
"""

import os
import sys
import tempfile
from pathlib import Path

import litgpt.__main__
import numpy as np
import torch
import torch.distributed as dist
from litgpt.data import DataModule
from torch.utils.data import DataLoader, IterableDataset

from pycooldown import DomainBatchSampler, schedules
from pycooldown.data import TokenDataset, token_sources


class MicroBatches(IterableDataset):
    """Micro-batches of one device; Fabric adds no sampler to an iterable dataset."""

    def __init__(self, dataset, sampler, size):
        self.dataset, self.sampler, self.size = dataset, sampler, size

    def __iter__(self):
        """Yield tokens (size, length); those of a step follow each other."""
        for indices in self.sampler:
            for begin in range(0, len(indices), self.size):
                rows = self.dataset.__getitems__(indices[begin : begin + self.size])
                yield torch.from_numpy(rows["input_ids"].astype(np.int64))


class Resumable(DataLoader):
    """A loader whose position in the data litgpt's checkpoints keep, as they do with litdata's."""

    begin = taken = 0  # steps before this run; micro-batches taken in it

    def __iter__(self):
        """Count the micro-batches that training takes; a worker may have read further ahead."""
        for batch in super().__iter__():
            self.taken += 1
            yield batch

    def state_dict(self):
        """Return the state after complete steps; the last checkpoint may be one step ahead."""
        sampler = self.dataset.sampler
        steps = self.taken * self.dataset.size * sampler.world_size // sampler.batch_size
        return sampler.state_dict(self.begin + steps)

    def load_state_dict(self, state):
        """Continue from the saved position, possibly with another number of devices."""
        self.dataset.sampler.load_state_dict(state)
        self.begin, self.taken = state["step"], 0


class MixtureData(DataModule):
    """A folder of flat uint16 files, one for each domain; `global_batch_size` is that of litgpt's `train`."""

    def __init__(self, path: str, global_batch_size: int, switch_step: int):
        super().__init__()
        self.path, self.global_batch_size, self.switch_step = path, global_batch_size, switch_step

    def connect(self, tokenizer=None, batch_size=1, max_seq_length=None):
        """Cut rows of one token more than the model sees, because litgpt takes inputs and targets from one row."""
        sources = {path.stem: token_sources.flat(path, "uint16") for path in sorted(Path(self.path).glob("*.bin"))}
        self.dataset = TokenDataset(sources, max_seq_length + 1, columns=("input_ids",))
        self.micro_batch_size = batch_size

    def train_dataloader(self):
        """Return a loader of this device's part of the mixture."""
        ranks = {"rank": dist.get_rank(), "world_size": dist.get_world_size()} if dist.is_initialized() else {}
        if self.global_batch_size % (ranks.get("world_size", 1) * self.micro_batch_size):
            raise ValueError(f"global_batch_size = {self.global_batch_size} is not a whole number of micro-batches")
        sampler = DomainBatchSampler(
            schedules.cooldown(self.dataset.sizes, tau=5.0, final_tau=1.0, switch_step=self.switch_step),
            batch_size=self.global_batch_size, seed=0, allocation="quota", **ranks,
        )  # fmt: skip
        return Resumable(MicroBatches(self.dataset, sampler, self.micro_batch_size), batch_size=None, num_workers=1)

    def val_dataloader(self):
        """Return rows of all domains; in your code, use held-out data."""
        rows = self.dataset.__getitems__(range(64))["input_ids"].astype(np.int64)
        return DataLoader(torch.from_numpy(rows), batch_size=self.micro_batch_size)


def pretrain(folder, out, *options):
    """Run `litgpt pretrain` with a small model on a CPU, and return its checkpoint."""
    model = {"block_size": 16, "vocab_size": 32, "padded_vocab_size": 32, "n_layer": 1, "n_head": 2, "n_embd": 32}
    data = {"path": folder, "global_batch_size": 8, "switch_step": 15}
    train = {"global_batch_size": 8, "micro_batch_size": 4, "max_tokens": 2560, "max_norm": 1, "lr_warmup_steps": 2}
    sys.argv = ["litgpt", "pretrain", "pythia-14m", "--data=__main__.MixtureData", f"--out_dir={out}", *options]
    sys.argv += ["--devices=1", "--precision=32-true", "--logger_name=csv", "--train.save_interval=12"]
    for section, values in {"model_config": model, "data": data, "train": train}.items():
        sys.argv += [f"--{section}.{key}={value}" for key, value in values.items()]
    litgpt.__main__.main()
    return torch.load(f"{out}/final/lit_model.pth")


def main(folder):
    """Pretrain, and continue from the checkpoint in the middle."""
    os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")  # litgpt compiles the model, which would take longer here
    for name, stride, count in (("en", 1, 9000), ("sw", 3, 500)):
        (stride * np.arange(count) % 32).astype(np.uint16).tofile(f"{folder}/{name}.bin")
    whole = pretrain(folder, f"{folder}/whole")
    rest = pretrain(folder, f"{folder}/rest", f"--resume={folder}/whole/step-00000012/lit_model.pth")
    print(f"{whole['iter_num']} micro-batches, the sampler at step {whole['train_dataloader']['step']}")
    same = all(torch.equal(weights, rest["model"][name]) for name, weights in whole["model"].items())
    print(f"goes on exactly: {same}")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        main(temporary)
