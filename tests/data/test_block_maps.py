"""Mapped blocks give the bytes of any ranges. Missing and damaged blocks are named instead of read."""

import os

import numpy as np
import pytest

from pycooldown.data.cache.block_files import BlockFiles
from pycooldown.data.cache.blocks import Blocks
from pycooldown.data.cache.states import BlockStates
from pycooldown.data.index import TarReader
from pycooldown.data.stores import StoredObject

SIZES, BLOCK = [1_000, 0, 777, 64], 100


class Cache:
    """Hold all blocks of some objects of random bytes in files."""

    def __init__(self, folder, max_maps=1_000):
        rng = np.random.default_rng(0)
        self.contents = [rng.integers(0, 256, size, np.uint8).tobytes() for size in SIZES]
        objects = [StoredObject(f"s3://made-up/{i}", size, "v") for i, size in enumerate(SIZES)]
        dataset = type("Data", (), {"objects": objects})
        self.blocks = Blocks.cut_evenly(dataset, BLOCK, 10)
        self.files = BlockFiles(folder, objects, self.blocks)
        self.states = BlockStates(str(folder / "states"), len(self.blocks))
        for number in range(len(self.blocks)):
            self.write(number)
        self.maps = self.files.map(str(folder / "states"), max_maps)

    def content(self, number):
        item, start, end = self.blocks.span(number)
        return self.contents[item][start:end]

    def write(self, number):
        self.files.write(number, self.content(number))
        self.states.appear(number)

    def evict(self, number):
        self.states.vanish(number)
        self.files.delete(number)

    def read(self, *ranges):
        return self.maps.read(*np.array(ranges, np.int64).reshape(-1, 3).T)

    def bytes_of(self, ranges):
        return [self.contents[item][start:end] for item, start, end in ranges]


@pytest.fixture
def cache(tmp_path):
    return Cache(tmp_path)


def random_ranges(count, seed=0):
    rng = np.random.default_rng(seed)
    items = rng.choice([0, 2, 3], count)
    bounds = np.sort(rng.integers(0, np.array(SIZES)[items][:, None] + 1, (count, 2)))
    return [(item, start, end) for item, (start, end) in zip(items.tolist(), bounds.tolist())]


def test_ranges_are_those_of_the_objects(cache):
    ranges = random_ranges(300)
    found = cache.read(*ranges)
    assert found.missing == found.damaged == []
    assert list(found) == cache.bytes_of(ranges)
    assert TarReader.join(found).tobytes() == b"".join(cache.bytes_of(ranges))
    assert list(cache.read()) == []


@pytest.mark.parametrize("wrong", [(0, 990, 1_001), (1, 0, 1), (0, -1, 4), (0, 5, 4), (4, 0, 1), (-1, 0, 1)])
def test_ranges_outside_of_the_objects_are_refused(cache, wrong):
    with pytest.raises(ValueError, match="are in no block"):
        cache.read((0, 0, 10), wrong)


def test_missing_blocks_are_named_and_can_be_given_or_appear(cache):
    ranges = [(0, 150, 420), (2, 10, 30)]  # blocks 1 to 4, and 10
    for number in (2, 3, 10):
        cache.evict(number)
    found = cache.read(*ranges)
    assert sorted(found.missing) == [2, 3, 10]
    for read in (lambda: found[0], lambda: TarReader.join(found)):
        with pytest.raises(ValueError, match="blocks are missing"):
            read()
    found.give(2, cache.content(2))
    cache.write(10)
    found.retry()
    assert found.missing == [3]
    found.give(3, memoryview(cache.content(3)))
    found.retry()
    assert list(found) == cache.bytes_of(ranges)
    for number, content in ((2, b"short"), (7, cache.content(7))):
        with pytest.raises(ValueError, match=f"block {number}"):
            found.give(number, content)


@pytest.mark.parametrize("at", [0, 63, 64, 99, 100, 108, 116, 123])
def test_one_changed_bit_is_damage(cache, at):
    path = cache.files.path(4)
    content = bytearray(path.read_bytes())
    assert len(content) == 124
    content[at] ^= 1
    path.write_bytes(content)
    found = cache.read((0, 410, 420), (0, 510, 520))
    assert (found.missing, found.damaged) == ([4], [4])
    cache.evict(4)
    cache.write(4)
    found.retry()
    assert list(found) == cache.bytes_of([(0, 410, 420), (0, 510, 520)])


def flip_last_bit(path):
    content = bytearray(path.read_bytes())
    content[-25] ^= 1  # the last byte of the content, before the seal
    path.write_bytes(content)


def test_a_file_is_checked_by_one_process_of_a_node(cache, tmp_path):
    other = cache.files.map(str(tmp_path / "states"), 1_000)  # as in another process
    assert cache.read((0, 0, 200)).missing == []
    flip_last_bit(cache.files.path(0))
    flip_last_bit(cache.files.path(5))
    ranges = np.array([[0, 0, 600]], np.int64).T
    assert other.read(*ranges).damaged == [5]  # block 0 was checked
    cache.evict(0)
    cache.write(0)
    flip_last_bit(cache.files.path(0))  # a new file is checked anew
    assert sorted(other.read(*ranges).damaged) == [0, 5]


def test_evicted_blocks_are_unmapped_and_blocks_in_use_stay(cache):
    held = cache.read((0, 0, 1_000))
    assert cache.maps.num_mapped == 10
    for number in (0, 1, 2):
        cache.evict(number)
    cache.write(1)  # a new file for the same block
    cache.read((3, 0, 10))
    assert cache.maps.num_mapped == 8
    assert list(held) == cache.bytes_of([(0, 0, 1_000)])
    assert sorted(cache.read((0, 0, 300)).missing) == [0, 2]


def test_few_blocks_stay_mapped(tmp_path):
    cache = Cache(tmp_path, max_maps=4)
    for start in range(0, 1_000, 100):
        ranges = [(0, start, start + 10), (3, 0, 64)]
        assert list(cache.read(*ranges)) == cache.bytes_of(ranges)
        assert cache.maps.num_mapped <= 6
    found = cache.read((0, 0, 1_000))  # more blocks than may stay mapped
    assert TarReader.join(found).tobytes() == cache.contents[0]


def test_a_file_that_loses_its_pages_is_an_error(cache):
    found = cache.read((0, 0, 50), (2, 0, 50))
    os.truncate(cache.files.path(0), 0)
    for read in (lambda: found[0], lambda: TarReader.join(found)):
        with pytest.raises(OSError, match="was truncated while it was mapped"):
            read()


def test_states_of_other_blocks_are_refused(cache, tmp_path):
    (tmp_path / "short").write_bytes(bytes(9))
    with pytest.raises(OSError, match="is not of these blocks"):
        cache.files.map(str(tmp_path / "short"), 4)
