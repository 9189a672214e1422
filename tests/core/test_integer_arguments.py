"""In every function of the core, an integer out of range raises an error that names the argument."""

import inspect
import re
import tempfile

import numpy as np
import pytest

from pycooldown import AliasTable, DomainBatchSampler, Mixture, _core, schedules

TABLE = AliasTable([1.0, 2.0])


def planner(**options):
    options = {"sizes": [5, 7], "allocation": _core.Allocation.quota, "batch_size": 2, "seed": 0, **options}
    return _core.BatchPlanner(**options, shuffle=True)


def plan(**options):
    planner().plan(**{"spans": [(TABLE, 9)], "step": 0, "begin": 0, "end": 2, **options})


def skip_rows(**options):
    options = {"first_step": 0, "num_steps": 1, "look_ahead": 1, "end": 2, **options}
    planner().skip_rows(np.ones((1, 2)), **options)


def cross_entropy(**options):
    numbers = {"num_domains": 0, "ignore_index": -100, "num_threads": 1, "num_whole_classes": 0, **options}
    logits, rows = np.zeros((1, 3), np.float32), np.zeros(1, np.int64)
    none = {
        "grad": None,
        "domain_ids": None,
        "want_stats": False,
        "label_smoothing": 0.0,
        "z_loss": 0.0,
        "softcap": 0.0,
    }
    _core.cross_entropy(logits, target=rows, scale=rows.astype(np.float32), **none, **numbers)


def fill(pad_id):
    reader, none = _core.TokenReader(), np.zeros(0, np.uint64)
    reader.add(
        "t",
        bytes=np.zeros(0, np.uint8),
        dtype="uint16",
        block_offsets=none,
        block_ends=none,
        ends=none,
        ends_path=None,
        vocabulary_size=None,
    )
    arrays = dict.fromkeys(("position_ids", "segment_ids", "labels", "shift_labels"))
    pieces = {"pieces": np.zeros(1, np.int64), "begins": np.zeros(0, np.int64), "limits": np.zeros(0, np.int64)}
    options = {"whole_documents": False, "across_documents": False, "input_ids": np.zeros((0, 4), np.int64)}
    reader.fill(**pieces, **options, **arrays, pad_id=pad_id)


def add_tokens(vocabulary_size):
    none = np.zeros(0, np.uint64)
    arrays = {"bytes": np.zeros(0, np.uint8), "block_offsets": none, "block_ends": none, "ends": none}
    _core.TokenReader().add("t", **arrays, dtype="uint16", ends_path=None, vocabulary_size=vocabulary_size)


def block_permutation(**options):
    _core.block_permutation([5], **{"block": 2, "group": 2, "seed": 0, **options})


def numbers():
    """Return the numbers of an empty file."""
    with tempfile.NamedTemporaryFile() as file:
        return _core.MappedNumbers(file.name, 0, 0)


def index():
    """Return the index of an empty shard."""
    return _core.TarIndex.scan_object(lambda offset, size: bytes(size), 1024)


def block_maps(max_maps=1):
    with tempfile.NamedTemporaryFile() as states:
        states.write(bytes(16))
        states.flush()
        return _core.BlockMaps(folder="", bases=[0], bounds=[], stems=[], states=states.name, max_maps=max_maps)


UINT64, INT64, INT32 = (0, 2**64), (-(2**63), 2**63), (-(2**31), 2**31)
# For each argument, a call that passes it and the range of its type.
ARGUMENTS = {
    "AliasTable.draw n": (lambda v: TABLE.draw(v, seed=0), INT64),
    "AliasTable.draw seed": (lambda v: TABLE.draw(1, seed=v), UINT64),
    "AliasTable.draw offset": (lambda v: TABLE.draw(1, seed=0, offset=v), UINT64),
    "AliasTable.draw num_threads": (lambda v: TABLE.draw(1, seed=0, num_threads=v), INT32),
    "draw_as_device n": (lambda v: _core.draw_as_device(TABLE, v, seed=0, offset=0), INT64),
    "draw_as_device seed": (lambda v: _core.draw_as_device(TABLE, 1, seed=v, offset=0), UINT64),
    "draw_as_device offset": (lambda v: _core.draw_as_device(TABLE, 1, seed=0, offset=v), UINT64),
    "philox4x32 counter": (lambda v: _core.philox4x32([0, 0, 0, v], [0, 0]), (0, 2**32)),
    "philox4x32 key": (lambda v: _core.philox4x32([0, 0, 0, 0], [0, v]), (0, 2**32)),
    "permutation size": (lambda v: _core.permutation(v, seed=0), INT64),
    "permutation seed": (lambda v: _core.permutation(1, seed=v), UINT64),
    "permutation domain": (lambda v: _core.permutation(1, seed=0, domain=v), (0, 2**32)),
    "permutation epoch": (lambda v: _core.permutation(1, seed=0, epoch=v), UINT64),
    "BatchPlanner batch_size": (lambda v: planner(batch_size=v), INT64),
    "BatchPlanner seed": (lambda v: planner(seed=v), UINT64),
    "BatchPlanner.set_epoch_sizes domain": (lambda v: planner().set_epoch_sizes(v, [(0, 5)]), UINT64),
    "BatchPlanner.set_epoch_sizes first_draw": (lambda v: planner().set_epoch_sizes(0, [(v, 5)]), UINT64),
    "BatchPlanner.set_epoch_sizes size": (lambda v: planner().set_epoch_sizes(0, [(0, v)]), UINT64),
    "BatchPlanner.set_batch_sizes first_step": (lambda v: planner().set_batch_sizes([(v, 5)]), UINT64),
    "BatchPlanner.set_batch_sizes batch_size": (lambda v: planner().set_batch_sizes([(0, v)]), UINT64),
    "BatchPlanner.plan step": (lambda v: plan(step=v), UINT64),
    "BatchPlanner.plan begin": (lambda v: plan(begin=v), UINT64),
    "BatchPlanner.plan end": (lambda v: plan(end=v), UINT64),
    "BatchPlanner.skip first_step": (lambda v: planner().skip([(TABLE, 9)], v, 1), UINT64),
    "BatchPlanner.skip last_step": (lambda v: planner().skip([(TABLE, 9)], 0, v), UINT64),
    "BatchPlanner.skip_rows first_step": (lambda v: skip_rows(first_step=v), UINT64),
    "BatchPlanner.skip_rows num_steps": (lambda v: skip_rows(num_steps=v), UINT64),
    "BatchPlanner.skip_rows look_ahead": (lambda v: skip_rows(look_ahead=v), UINT64),
    "BatchPlanner.skip_rows end": (lambda v: skip_rows(end=v), UINT64),
    "block_permutation block": (lambda v: block_permutation(block=v), UINT64),
    "block_permutation group": (lambda v: block_permutation(group=v), UINT64),
    "block_permutation seed": (lambda v: block_permutation(seed=v), UINT64),
    "block_permutation domain": (lambda v: block_permutation(domain=v), (0, 2**32)),
    "block_permutation epoch": (lambda v: block_permutation(epoch=v), UINT64),
    "BatchPlanner.set_blocks domain": (lambda v: planner().set_blocks(v, [5], block=2, group=2), UINT64),
    "BatchPlanner.set_blocks block": (lambda v: planner().set_blocks(0, [5], block=v, group=2), UINT64),
    "BatchPlanner.set_blocks group": (lambda v: planner().set_blocks(0, [5], block=2, group=v), UINT64),
    "CachePlanner limit": (lambda v: _core.CachePlanner([1], limit=v, depth=1), INT64),
    "CachePlanner depth": (lambda v: _core.CachePlanner([1], limit=1, depth=v), INT64),
    "CachePlanner prefetched": (lambda v: _core.CachePlanner([1], limit=1, depth=1, prefetched=v), INT64),
    "BlockMaps max_maps": (block_maps, UINT64),
    "BlockRanges.give block": (lambda v: block_maps().read([], [], []).give(v, b""), INT64),
    "CachePlanner.plan num_steps": (
        lambda v: _core.CachePlanner([1], limit=1, depth=1).plan([], [], num_steps=v),
        UINT64,
    ),
    "TarIndex.scan_object size": (lambda v: _core.TarIndex.scan_object(bytes, v), UINT64),
    "TarIndex.path shard": (lambda v: index().path(v), (0, 2**32)),
    "TarIndex.version shard": (lambda v: index().version(v), (0, 2**32)),
    "TarIndex.samples shard": (lambda v: index().samples(v), (0, 2**32)),
    "TarIndex.shard_size shard": (lambda v: index().shard_size(v), (0, 2**32)),
    "TarIndex.shard_mtime_ns shard": (lambda v: index().shard_mtime_ns(v), (0, 2**32)),
    "TarIndex.has_fingerprint shard": (lambda v: index().has_fingerprint(v, "/dev/null"), (0, 2**32)),
    "TarIndex.verify shard": (lambda v: index().verify(v), (0, 2**32)),
    "TarIndexWriter.add shard": (lambda v: _core.TarIndexWriter().add(index(), v, "", ""), (0, 2**32)),
    "TarIndex.from_bytes shard_size": (lambda v: _core.TarIndex.from_bytes(b"", v, 0), UINT64),
    "TarIndex.from_bytes shard_mtime_ns": (lambda v: _core.TarIndex.from_bytes(b"", 0, v), INT64),
    "TarIndex.count shard_size": (lambda v: _core.TarIndex.count(b"", v, 0), UINT64),
    "TarIndex.count shard_mtime_ns": (lambda v: _core.TarIndex.count(b"", 0, v), INT64),
    "TarReader max_maps": (_core.TarReader, UINT64),
    "map_file size": (lambda v: _core.map_file("/dev/null", v), UINT64),
    "MappedNumbers size": (lambda v: _core.MappedNumbers(__file__, v, 0), UINT64),
    "MappedNumbers offset": (lambda v: _core.MappedNumbers(__file__, 0, v), UINT64),
    "MappedNumbers.count_up_to value": (lambda v: numbers().count_up_to(v), UINT64),
    "MappedNumbers.copy begin": (lambda v: numbers().copy(v, 3), UINT64),
    "MappedNumbers.copy end": (lambda v: numbers().copy(0, v), UINT64),
    "TokenReader.add vocabulary_size": (add_tokens, UINT64),
    "TokenReader.fill pad_id": (fill, INT64),
    "cross_entropy num_domains": (lambda v: cross_entropy(num_domains=v), INT64),
    "cross_entropy ignore_index": (lambda v: cross_entropy(ignore_index=v), INT64),
    "cross_entropy num_threads": (lambda v: cross_entropy(num_threads=v), INT32),
    "cross_entropy num_whole_classes": (lambda v: cross_entropy(num_whole_classes=v), INT64),
}


@pytest.mark.parametrize("argument", list(ARGUMENTS))
def test_integers_out_of_range_are_value_errors(argument):
    call, (low, end) = ARGUMENTS[argument]
    name = argument.split()[-1]
    for value in (low - 1, end, -(2**100), 2**100):
        with pytest.raises(ValueError, match=rf"^{name} = {value}; expected an integer in \["):
            call(value)
    with pytest.raises(ValueError, match=rf"^{name} = an integer of 100001 bits; expected"):
        call(1 << 100_000)
    with pytest.raises(TypeError, match=rf"^{name} is of type float; expected an integer"):
        call(1.0)
    for value in (np.int64(-1) if low == 0 else np.uint64(end if end > 2**32 else 2**31),):
        with pytest.raises(ValueError, match=rf"^{name} = {value}; expected an integer in \["):
            call(value)


def test_every_argument_that_is_an_integer_is_listed():
    """Integer arguments are found by `int` in the signatures that pybind11 writes."""
    classes = [_core, *(value for _, value in inspect.getmembers(_core, inspect.isclass))]
    found = set()
    for owner in classes:
        for name, member in inspect.getmembers(owner):
            if "(" not in (text := getattr(member, "__doc__", None) or "") or name == "__class__":
                continue
            signature = text.splitlines()[0]
            for argument, kind in re.findall(r"(\w+): ([^=]*?)(?= =|, \w+:|, \*|\))", signature):
                if re.search(r"\bint\b|SupportsInt", kind):
                    found.add((owner.__name__, name, argument))
    assert len(found) >= 30
    listed = {argument.split()[0].split(".")[-1] for argument in ARGUMENTS}
    assert {name for _, name, _ in found if not name.startswith("__")} <= listed


def test_more_draws_than_memory_holds_are_an_error():
    with pytest.raises((MemoryError, ValueError)):
        TABLE.draw(2**62, seed=0)


MIXTURE = Mixture.temperature_sampling({"a": 50, "b": 7}, tau=2)


@pytest.mark.parametrize("name", ["batch_size", "seed", "num_steps", "rank", "world_size"])
@pytest.mark.parametrize("value", [-1, 2**64, 2**100, 1.5, "1"])
def test_integers_of_a_sampler_out_of_range_are_named(name, value):
    options = {"batch_size": 4, "seed": 0, "num_steps": 10, name: value}
    if name == "num_steps" and value in (2**64, 2**100):
        pytest.skip("the number of steps has no upper bound")
    with pytest.raises((ValueError, TypeError), match=name):
        DomainBatchSampler(schedules.constant(MIXTURE), **options)


@pytest.mark.parametrize("call", ["plan", "exposure"])
@pytest.mark.parametrize("value", [-1, 2**64, 2**100, 1.5, "1"])
def test_steps_of_a_sampler_out_of_range_are_named(call, value):
    sampler = DomainBatchSampler(schedules.constant(MIXTURE), batch_size=4, seed=0)
    with pytest.raises((ValueError, TypeError), match="step"):
        getattr(sampler, call)(value)
