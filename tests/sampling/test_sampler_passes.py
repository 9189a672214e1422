"""Passes over a sampler have the right length, and start anew or continue after an interruption."""

from itertools import islice

import pytest

from pycooldown import DomainBatchSampler, Mixture, schedules

SIZES = {"en": 200, "sw": 20}


def make(num_steps=10, batch_size=6):
    schedule = schedules.constant(Mixture.temperature_sampling(SIZES, 5))
    return DomainBatchSampler(schedule, batch_size=batch_size, seed=1, num_steps=num_steps)


WHOLE = list(make())


def loader(sampler, workers):
    torch = pytest.importorskip("torch")
    return torch.utils.data.DataLoader(torch.arange(220), batch_sampler=sampler, num_workers=workers)


def batches(reader):
    return [batch if isinstance(batch, list) else batch.tolist() for batch in reader]


def test_a_second_pass_starts_anew():
    sampler = make(num_steps=3)
    assert list(sampler) == list(sampler) == WHOLE[:3]


def test_an_interrupted_pass_continues():
    sampler, consumed = make(), []
    for batch in sampler:
        consumed.append(batch)
        if len(consumed) == 4:
            break
    assert sampler.state_dict()["step"] == 4
    assert consumed + list(sampler) == WHOLE
    assert list(sampler) == WHOLE


@pytest.mark.parametrize("workers", [None, 0, 2])
class TestLength:
    """The length of the sampler itself, and of loaders, which request batches ahead of their use."""

    @pytest.fixture
    def reader(self, workers):
        return make() if workers is None else loader(make(), workers)

    def test_does_not_change_while_it_is_read(self, reader):
        assert [len(reader) for _ in reader] == [10] * 10
        assert len(reader) == 10

    def test_a_pass_of_as_many_steps_is_whole_and_the_next_one_starts_anew(self, reader):
        for _ in range(4):
            assert batches(islice(reader, len(reader))) == WHOLE

    def test_counting_down_from_it_gives_whole_passes(self, reader):
        for _ in range(3):
            iterator = iter(reader)
            assert batches(next(iterator) for _ in range(len(reader))) == WHOLE

    def test_stays_that_of_a_whole_pass_where_a_state_is_loaded(self, reader):
        sampler = reader if isinstance(reader, DomainBatchSampler) else reader.batch_sampler
        sampler.load_state_dict(make().state_dict(7))
        assert len(reader) == 10
        assert batches(islice(reader, len(reader))) == WHOLE[7:]
        assert batches(islice(reader, len(reader))) == WHOLE


def test_the_state_of_a_pass_that_has_ended_goes_on_with_its_end_and_then_anew():
    sampler = make()
    sampler.load_state_dict(make().state_dict(10))
    assert list(sampler) == []
    assert list(sampler) == WHOLE


@pytest.mark.parametrize("read", [3, 10])
def test_a_state_loaded_into_a_running_pass_decides_the_next_one(read):
    sampler = make()
    running = iter(sampler)
    list(islice(running, read))
    sampler.load_state_dict(make().state_dict(5))
    if read == 10:
        assert list(running) == []  # the old pass ends and keeps the loaded position
    assert list(sampler) == WHOLE[5:]


def test_after_the_last_batch_a_state_is_still_that_of_the_end():
    sampler = make()
    list(islice(sampler, 10))
    assert sampler.state_dict()["step"] == 10
    resumed = make()
    resumed.load_state_dict(sampler.state_dict())
    assert list(resumed) == []


def test_a_pass_may_have_no_steps():
    sampler = make(num_steps=0)
    assert (len(sampler), list(sampler), list(sampler)) == (0, [], [])


@pytest.mark.parametrize("workers", [1, 2])
def test_a_loader_that_is_dropped_after_reading_ahead_goes_on_from_what_was_consumed(workers):
    sampler = make()
    reader = loader(sampler, workers)
    consumed = batches(islice(reader, 3))
    assert sampler.state_dict()["step"] > 3
    assert len(reader) == 10
    sampler.load_state_dict(sampler.state_dict(step=3))
    assert consumed + batches(reader) == WHOLE
    assert batches(reader) == WHOLE


def test_a_pass_dropped_when_the_loader_had_read_ahead_to_its_end_starts_anew():
    """The pass has ended if the loader has requested its last batch, whatever was consumed."""
    sampler = make()
    reader = loader(sampler, 2)
    batches(islice(reader, 8))
    assert sampler.state_dict()["step"] in (0, 10)
    assert batches(reader) == WHOLE


@pytest.mark.filterwarnings("ignore:The 'train_dataloader' does not have many workers")
def test_lightning_trains_whole_epochs(tmp_path):
    lightning = pytest.importorskip("pytorch_lightning")
    torch = pytest.importorskip("torch")

    class Recorder(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.weight, self.steps = torch.nn.Parameter(torch.zeros(())), []

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

        def training_step(self, batch, batch_idx):
            self.steps.append(batch.tolist())
            return self.weight * 1.0

    module = Recorder()
    trainer = lightning.Trainer(
        accelerator="cpu",
        max_epochs=3,
        use_distributed_sampler=False,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    )
    trainer.fit(module, loader(make(), 0))
    assert module.steps == WHOLE * 3
