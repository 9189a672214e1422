"""TarDataset: order, workers, pickling, bounds on what is open, the flat form."""

import gc
import itertools
import os
import pickle
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from torch.utils.data import DataLoader

from pycooldown import DomainBatchSampler, Mixture, schedules
from pycooldown.data import TarDataset


@pytest.fixture
def shards(write_shards):
    """Three domains with 2, 1 and 3 shards."""
    return write_shards({"en": [40, 25], "de": [10], "sw": [3, 0, 4]})


def keys(samples):
    return [sample["__key__"] for sample in samples]


KEYS = [
    f"{domain}/{number}/{i}"
    for domain, number, count in [("en", 0, 40), ("en", 1, 25), ("de", 0, 10), ("sw", 0, 3), ("sw", 2, 4)]
    for i in range(count)
]


def test_domains_lie_end_to_end(shards):
    dataset = TarDataset(shards)
    assert dataset.domains == ("en", "de", "sw")
    assert dataset.sizes == {"en": 65, "de": 10, "sw": 7}
    assert len(dataset) == 82
    assert keys(dataset.__getitems__(range(82))) == keys(dataset) == KEYS
    last = dataset[-1]
    assert last == {"__key__": "sw/2/3", "__url__": shards["sw"][2], "__domain__": "sw", "txt": b"sw/2/3"}


def test_bad_indices_are_refused(shards):
    dataset = TarDataset(shards)
    for index in (82, -83):
        with pytest.raises(IndexError, match=rf"index {index} is out of range: the dataset has 82 samples"):
            dataset[index]
    with pytest.raises(TypeError):
        dataset["en/0/0"]
    assert keys(dataset.__getitems__(np.array([0, 81]))) == [KEYS[0], KEYS[81]]


@pytest.mark.parametrize("max_open", [1, 2, 100])
def test_any_number_of_open_shards_gives_the_same_samples(shards, max_open):
    dataset = TarDataset(shards, max_open=max_open)
    order = np.random.default_rng(0).integers(0, 82, 500)
    assert keys(dataset.__getitems__(order)) == [KEYS[i] for i in order]
    with open("/proc/self/maps") as maps:
        mapped = {line.split()[-1] for line in maps if os.path.dirname(shards["en"][0]) in line}
    assert 0 < len(mapped) <= max_open


def test_flat_form_holds_the_same_bytes(shards):
    dataset = TarDataset(shards)
    order = np.random.default_rng(0).integers(0, 82, 500)
    buffer, offsets = dataset.flat(order, "txt")
    assert buffer.dtype == np.uint8
    assert offsets.dtype == np.int64
    assert [buffer[a:b].tobytes().decode() for a, b in itertools.pairwise(offsets)] == [KEYS[i] for i in order]
    with pytest.raises(KeyError, match=r"sample 'en/0/0' of .*en-0\.tar has no 'jpg'"):
        dataset.flat([0], "jpg")
    assert [part.size for part in dataset.flat([], "txt")] == [0, 1]


@pytest.mark.parametrize(("workers", "context"), [(0, None), (2, "fork"), (2, "spawn")])
def test_mixes_through_a_data_loader(shards, workers, context):
    dataset = TarDataset(shards)
    mixture = Mixture.temperature_sampling(dataset.sizes, tau=5.0)

    def sampler():
        return DomainBatchSampler(schedules.constant(mixture), batch_size=8, seed=1, num_steps=12)

    expected = [[KEYS[i] for i in batch] for batch in sampler()]
    loader = DataLoader(
        dataset, batch_sampler=sampler(), num_workers=workers, multiprocessing_context=context, collate_fn=keys
    )
    assert list(loader) == expected


def test_pickles_by_path_and_notices_changed_shards(shards):
    dataset = TarDataset(shards)
    pickled = pickle.dumps(dataset)
    assert len(pickled) < 2000
    assert keys(pickle.loads(pickled)) == KEYS
    os.replace(shards["en"][1], shards["de"][0])
    Path(shards["en"][1]).write_bytes(bytes(1024))
    with pytest.raises(ValueError, match="have changed since the dataset was pickled"):
        pickle.loads(pickled)


def test_shard_that_changes_under_the_dataset_is_refused(shards):
    dataset = TarDataset(shards)
    with open(shards["de"][0], "ab") as file:
        file.write(bytes(512))
    with pytest.raises(OSError, match=r"de-0\.tar has changed since it was indexed"):
        dataset[65]


def yield_to_other_threads(phase, info):
    time.sleep(0)


def test_threads_may_share_a_dataset(shards):
    dataset = TarDataset(shards, max_open=1)
    gc.callbacks.append(yield_to_other_threads)  # in the middle of making a sample
    wrong = []

    def read(seed):
        order = np.random.default_rng(seed).integers(0, 82, 2000)
        if keys(dataset.__getitems__(order)) != [KEYS[i] for i in order]:
            wrong.append(seed)

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    gc.callbacks.remove(yield_to_other_threads)
    assert not wrong


def test_arguments_are_checked(shards):
    with pytest.raises(ValueError, match="on_error = 'ignore'; expected 'raise' or 'skip'"):
        TarDataset(shards, on_error="ignore")
    with pytest.raises(ValueError, match="max_open = 0; expected at least 1 shard"):
        TarDataset(shards, max_open=0)
