"""OLMo-core: its trainer's data loader, with a mixture.

python examples/olmo_core_loader.py

A sketch of a job: give a `MixtureDataLoader` to OLMo-core's Trainer as `data_loader`. As that wants GPUs, its methods
are called here in the trainer's order.
The loss is computed in OLMo-core's output layer, which has no weights by domain: use mixtures that
sample by the target, such as temperature sampling, whose loss weights are 1.
"""

import tempfile
from pathlib import Path

import numpy as np
import torch
from olmo_core.data.data_loader import DataLoaderBase
from torch.utils.data import DataLoader

from pycooldown import DomainBatchSampler, schedules
from pycooldown.data import TokenDataset, token_sources


class MixtureDataLoader(DataLoaderBase):
    """Batches of this data-parallel rank.

    Args:
        dataset: Sequences of tokens.
        schedule: The mixture at each step.
        steps: Steps of an epoch, as the trainer counts them; a mixture has no epoch of its own.
        global_batch_size: Batch size in tokens, as in OLMo-core.
        seed: Decides the order of sequences.
        **options: `work_dir`, `dp_world_size`, `dp_rank` and `fs_local_rank` of `DataLoaderBase`.
    """

    def __init__(self, dataset, schedule, *, steps, global_batch_size, seed, **options):
        super().__init__(global_batch_size=global_batch_size, **options)
        if global_batch_size % (dataset.length * self.dp_world_size):
            raise ValueError(
                f"global_batch_size = {global_batch_size} is not a whole number of sequences for each rank"
            )
        self.dataset = dataset
        self.sampler = DomainBatchSampler(
            schedule, batch_size=global_batch_size // dataset.length, seed=seed, num_steps=steps, allocation="quota",
            rank=self.dp_rank, world_size=self.dp_world_size,
        )  # fmt: skip

    @property
    def total_batches(self):
        """Return the number of steps of an epoch."""
        return len(self.sampler)

    @DataLoaderBase.global_batch_size.setter
    def global_batch_size(self, size):
        """Refuse another size, because OLMo-core would then renumber the steps on which the schedule depends."""
        raise NotImplementedError(
            f"global_batch_size = {size}: give the sampler a ramp, batch_size=[(step, size), ...]"
        )

    def reshuffle(self, epoch=None, **options):
        """Begin an epoch, or continue the one whose state was loaded."""
        self._epoch = epoch if epoch is not None else (self._epoch or 0) + 1
        self.sampler.set_epoch(self._epoch)

    def state_dict(self):
        """Return the position in the data; workers may have read ahead of it. Ranks may change."""
        return {"epoch": self._epoch, "sampler": self.sampler.state_dict(self.batches_processed)}

    def load_state_dict(self, state_dict):
        """Continue from the saved position."""
        self.sampler.load_state_dict(state_dict["sampler"])
        self._epoch, self.batches_processed = state_dict["epoch"], state_dict["sampler"]["step"]

    def _iter_batches(self):
        yield from DataLoader(self.dataset, batch_sampler=self.sampler, collate_fn=TokenDataset.collate, num_workers=1)

    def get_mock_batch(self):
        """Return a batch of the right shape for the trainer's trial run; nothing is drawn for it."""
        return TokenDataset.collate(self.dataset.__getitems__([0] * (self.rank_batch_size // self.dataset.length)))

    def global_num_tokens_in_batch(self, batch):
        """Return the tokens of all ranks."""
        return self.global_batch_size


def main(folder):
    """Read an epoch as the trainer does, and again from the middle."""
    sources = {}
    for name, stride, count in (("en", 1, 9000), ("sw", 3, 500)):
        path = Path(folder, f"{name}.npy")  # OLMo's flat files, which have no header
        (stride * np.arange(count) % 32).astype(np.uint16).tofile(path)
        sources[name] = token_sources.flat(path, "uint16")
    dataset = TokenDataset(sources, 16, columns=("input_ids",))  # OLMo-core shifts them itself
    schedule = schedules.cooldown(dataset.sizes, tau=5.0, final_tau=1.0, switch_step=15)

    def make_loader():
        return MixtureDataLoader(dataset, schedule, steps=20, global_batch_size=8 * 16, seed=0, work_dir=folder)

    loader, seen, state = make_loader(), [], None
    print("mock batch:", tuple(loader.get_mock_batch()["input_ids"].shape))
    loader.reshuffle(epoch=1)
    for batch in loader:
        seen.append(batch["input_ids"])
        state = loader.state_dict() if loader.batches_processed == 12 else state
    loader.reset()
    epochs = loader.sampler.exposure().epochs.tolist()
    print(f"{len(seen)} of {loader.total_batches} batches; epochs of each domain: {epochs}")
    again = make_loader()
    again.load_state_dict(state)
    again.reshuffle(epoch=1)
    same = all(torch.equal(batch["input_ids"], before) for batch, before in zip(again, seen[12:], strict=True))
    print(f"goes on exactly: {same}")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        main(temporary)
