"""TarDataset keeps its order in workers and after pickling, with few open shards and in the flat form."""

import gc
import itertools
import os
import pickle
import subprocess
import sys
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
    """Return three domains with 2, 1 and 3 shards."""
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
    for index in (2**63, -(2**63) - 1, 2**100):
        with pytest.raises(IndexError, match=r"beyond 2\^63 is out of range: the dataset has 82 samples"):
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


@pytest.mark.parametrize("read", ["items", "flat"])
@pytest.mark.parametrize("mmap", [True, False])
def test_shard_that_is_truncated_in_use_is_an_error_that_names_it(shards, mmap, read):
    """The error names the shard. The test runs in a new process, since a missing mapped page could kill it."""
    code = """if True:
        import os, sys
        from pycooldown.data import TarDataset
        path, mmap, read = sys.argv[1], sys.argv[2] == "True", sys.argv[3]
        dataset = TarDataset({"en": path}, mmap=mmap)
        get = dataset.__getitems__ if read == "items" else lambda indices: dataset.flat(indices, "txt")
        get(range(40))
        os.truncate(path, 4096)
        try:
            get(range(40))
        except OSError as error:
            print(error)
    """
    arguments = [shards["en"][0], str(mmap), read]
    child = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)
    assert child.returncode == 0, child.stderr
    assert f"{shards['en'][0]} has changed since it was indexed" in child.stdout


def test_mapped_shard_may_be_deleted_or_replaced(shards):
    """The map keeps the file as it was opened."""
    dataset = TarDataset(shards)
    assert keys(dataset.__getitems__(range(82))) == KEYS
    os.replace(shards["en"][1], shards["en"][0])
    os.unlink(shards["de"][0])
    assert keys(dataset.__getitems__(range(82))) == KEYS


def test_without_maps_the_samples_are_the_same(shards):
    dataset = TarDataset(shards, mmap=False)
    assert keys(dataset.__getitems__(range(82))) == KEYS
    assert dataset.flat([0, 81], "txt")[0].tobytes() == (KEYS[0] + KEYS[81]).encode()
    with open("/proc/self/maps") as maps:
        assert not any(os.path.dirname(shards["en"][0]) in line for line in maps)
    assert keys(pickle.loads(pickle.dumps(dataset))) == KEYS


def yield_to_other_threads(phase, info):
    time.sleep(0)


def test_threads_may_share_a_dataset(shards):
    dataset = TarDataset(shards, max_open=1)
    gc.callbacks.append(yield_to_other_threads)  # other threads run while a sample is made
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


def test_patterns_are_expanded_in_order(shards):
    folder = os.path.dirname(shards["en"][0])
    TarDataset(shards)  # writes indexes, which must not count as shards
    dataset = TarDataset(
        {"en": f"{folder}/en-{{0..1}}.tar", "de": [f"{folder}/de-[0-9].tar"], "sw": f"{folder}/sw-{{0,1,2}}*"}
    )
    assert dataset.shards == shards
    assert keys(dataset) == KEYS
    assert dataset.shard_sizes == {"en": [40, 25], "de": [10], "sw": [3, 0, 4]}
    odd = os.path.join(folder, "odd{0..1}*.tar")
    os.replace(shards["de"][0], odd)
    assert TarDataset({"de": odd}).shards == {"de": [odd]}  # a file with exactly this name


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({}, ValueError, "shards is empty"),
        (["a.tar"], TypeError, "shards is a list; expected a mapping from domains to paths"),
        ({"a": []}, ValueError, "domain 'a' has no shards"),
        ({"a": ""}, ValueError, "domain 'a' has an empty path"),
        ({"a": True}, TypeError, "domain 'a' has shards True; expected a path"),
        ({"a": None}, TypeError, "domain 'a' has shards None"),
        ({"a": {"x.tar": 3}}, TypeError, "domain 'a' has shards {'x.tar': 3}"),
        ({"a": [True]}, TypeError, "domain 'a' has the shard True, a bool; expected a path"),
        ({3: "x.tar"}, TypeError, "has the domain 3, a int; expected a name"),
        ({"a": "pipe:cat x.tar"}, ValueError, r"'pipe:' does not; stream it with pycooldown\.data\.mix"),
        ({"a": "hf://host/x.tar"}, ValueError, "'hf://' does not; stream it"),
        ({"a": "https://host/*.tar"}, ValueError, "http has no listings, .* name every file, with braces"),
        ({"a": "https://host/a.tar?token=1"}, ValueError, "queries are not read; .* download objects that need signed"),
        ({"a": "file:///x.tar"}, ValueError, "expected a path, without 'file://'"),
        ({"a": "missing-*.tar"}, FileNotFoundError, r"no file matches the pattern 'missing-\*\.tar'"),
        ({"a": "missing-{0..1}.tar"}, FileNotFoundError, r"missing-0\.tar"),
    ],
)
def test_what_is_not_a_shard_is_named(given, error, message):
    with pytest.raises(error, match=message):
        TarDataset(given)


def test_arguments_are_checked(shards):
    with pytest.raises(ValueError, match="on_error = 'ignore'; expected 'raise' or 'skip'"):
        TarDataset(shards, on_error="ignore")
    with pytest.raises(ValueError, match="max_open = 0; expected at least 1 shard"):
        TarDataset(shards, max_open=0)
