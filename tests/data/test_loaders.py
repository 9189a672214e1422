"""TarDataset and the sampler work in the loaders of torchdata, Accelerate and Lightning."""

import itertools
import json

import accelerate
import pytest
import pytorch_lightning as lightning
import torch
from accelerate.utils import DataLoaderConfiguration
from torch.utils.data import DataLoader
from torchdata.stateful_dataloader import StatefulDataLoader

from pycooldown import DomainBatchSampler, schedules
from pycooldown.data import TarDataset

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")

COUNTS = {"en": [23, 40], "de": [31], "sw": [6, 4]}
SIZES = {domain: sum(counts) for domain, counts in COUNTS.items()}
NUM_STEPS = 14


@pytest.fixture
def dataset(write_shards):
    return TarDataset(write_shards(COUNTS))


def make_sampler(num_steps=NUM_STEPS, **options):
    schedule = schedules.cooldown(SIZES, switch_step=9)
    return DomainBatchSampler(schedule, batch_size=8, seed=5, num_steps=num_steps, allocation="quota", **options)


def keys(samples):
    return [sample["__key__"] for sample in samples]


def numbers(samples):
    """Return the keys as a tensor of integers, since Accelerate and Lightning move tensors to their device."""
    return torch.tensor([int.from_bytes(key.encode()) for key in keys(samples)])


def decoded(tensor):
    return [number.to_bytes(8).lstrip(b"\0").decode() for number in tensor.tolist()]


@pytest.fixture
def expected(dataset):
    return [keys(dataset.__getitems__(batch)) for batch in make_sampler()]


@pytest.mark.parametrize("stop", [0, 1, 6, NUM_STEPS])
@pytest.mark.parametrize("workers", [0, 2])
def test_stateful_data_loader_goes_on_in_mid_pass(dataset, expected, workers, stop):
    def make():
        return StatefulDataLoader(dataset, batch_sampler=make_sampler(), num_workers=workers, collate_fn=keys)

    first, second = make(), make()
    iterator = iter(first)
    seen = [next(iterator) for _ in range(stop)]
    second.load_state_dict(json.loads(json.dumps(first.state_dict())) if workers == 0 else first.state_dict())
    assert seen + list(second) == expected
    assert list(second) == expected  # a further pass


def reset():
    """Reset the state that Accelerate keeps for the process, for which it has no public function."""
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
    accelerate.state.GradientState._reset_state()


@pytest.fixture
def accelerator():
    """Yield an Accelerator that splits each batch over the processes."""
    reset()
    yield accelerate.Accelerator(cpu=True, dataloader_config=DataLoaderConfiguration(split_batches=True))
    reset()


def test_accelerate_prepares_the_loader(dataset, expected, accelerator):
    sampler = make_sampler()
    loader = accelerator.prepare(DataLoader(dataset, batch_sampler=sampler, collate_fn=numbers))
    assert len(loader) == NUM_STEPS
    steps = []
    for batch in loader:
        steps.append(decoded(batch))
        if len(steps) == 6:
            state = sampler.state_dict(step=6)  # Accelerate has read a batch ahead
            break
    assert steps == expected[:6]
    sampler.load_state_dict(state)
    assert [decoded(batch) for batch in loader] == expected[6:]


@pytest.mark.parametrize("world_size", [2, 4])
def test_accelerate_slices_the_global_batch_as_the_sampler_does(dataset, expected, accelerator, world_size):
    """Slices are the same whether Accelerate makes them, or a sampler with a rank and an unprepared loader."""
    sliced, own = [], []
    for rank in range(world_size):
        loader = DataLoader(dataset, batch_sampler=make_sampler(), collate_fn=keys)
        prepared = accelerate.data_loader.prepare_data_loader(
            loader, num_processes=world_size, process_index=rank, split_batches=True, put_on_device=False
        )
        sliced.append(list(prepared))
        sampler = make_sampler(rank=rank, world_size=world_size)
        own.append(list(DataLoader(dataset, batch_sampler=sampler, collate_fn=keys)))
    assert sliced == own
    assert [list(itertools.chain.from_iterable(parts)) for parts in zip(*sliced, strict=True)] == expected


class Recorder(lightning.LightningModule):
    """Train a number, and record the batches."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.steps = []

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def training_step(self, batch, batch_idx):
        self.steps.append(decoded(batch))
        return self.weight * 1.0


class SamplerState(lightning.Callback):
    """Keep the sampler's state in checkpoints."""

    def __init__(self, sampler):
        self.sampler = sampler

    def on_save_checkpoint(self, trainer, module, checkpoint):
        checkpoint["sampler"] = self.sampler.state_dict(trainer.global_step)

    def on_load_checkpoint(self, trainer, module, checkpoint):
        self.sampler.load_state_dict(checkpoint["sampler"])


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.filterwarnings("ignore:The 'train_dataloader' does not have many workers")
def test_lightning_trains_and_goes_on_from_a_checkpoint(dataset, expected, tmp_path, workers):
    def fit(max_steps, checkpoint=None):
        module, sampler = Recorder(), make_sampler(num_steps=None)  # one endless epoch; max_steps ends it
        loader = DataLoader(dataset, batch_sampler=sampler, num_workers=workers, collate_fn=numbers)
        trainer = lightning.Trainer(
            accelerator="cpu",
            max_steps=max_steps,
            use_distributed_sampler=False,  # the sampler slices the batch itself
            callbacks=[SamplerState(sampler)],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(module, loader, ckpt_path=checkpoint)
        trainer.save_checkpoint(tmp_path / "last.ckpt")
        return module.steps

    steps = fit(6)
    assert steps == expected[:6]
    assert steps + fit(NUM_STEPS, tmp_path / "last.ckpt") == expected
