"""One index of all shards is made once, updated, mapped by all processes, and refused if it is damaged."""

import os
import pickle
import random
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from linked_shards import write_linked_shards

from pycooldown.data import TarDataset
from pycooldown.data.dataset_index import open_index
from pycooldown.data.index_building import build_index
from pycooldown.data.shard_lists import parse_shards

COUNTS = {"en": [40, 25], "de": [10], "sw": [3, 0, 4]}


@pytest.fixture
def shards(write_shards):
    return write_shards(COUNTS)


@pytest.fixture
def index(shards, tmp_path):
    build_index(shards, tmp_path / "dataset.idx")
    return tmp_path / "dataset.idx"


def test_it_gives_what_the_shards_give(shards, index):
    one, many = TarDataset(index), TarDataset(shards)
    assert one.sizes == many.sizes
    assert one.domains == many.domains
    assert one.shards == many.shards == shards
    assert one.shard_sizes == many.shard_sizes == COUNTS
    assert list(one.objects) == list(many.objects)
    order = np.random.default_rng(0).integers(-82, 82, 300)
    assert one.__getitems__(order) == many.__getitems__(order)
    for a, b in zip(one.flat(order, "txt"), many.flat(order, "txt")):
        assert np.array_equal(a, b)
    for a, b in zip(one.locate(order, "txt"), many.locate(order, "txt")):
        assert np.array_equal(a, b)


def test_a_folder_is_opened_by_its_index_and_can_be_moved(index, tmp_path):
    expected = [sample["txt"] for sample in TarDataset(tmp_path)]
    moved = tmp_path.parent / f"{tmp_path.name}-moved"
    shutil.copytree(tmp_path, moved)
    for path in tmp_path.glob("*.tar"):
        shutil.copystat(path, moved / path.name)
        path.unlink()
    dataset = TarDataset(moved)
    assert [sample["txt"] for sample in dataset] == expected
    assert dataset[0]["__url__"] == str(moved / "en-0.tar")


def test_shards_elsewhere_are_known_by_their_absolute_paths(shards, tmp_path, monkeypatch):
    (tmp_path / "out").mkdir()
    monkeypatch.chdir(tmp_path)
    build_index({"en": "en-*.tar"}, "out/x.idx")
    monkeypatch.chdir("/")
    assert TarDataset(tmp_path / "out" / "x.idx").shards == {"en": shards["en"]}


def test_what_has_not_changed_is_not_written_again(shards, index):
    before = index.stat()
    build_index(shards, index)
    assert TarDataset(shards, index=index).sizes == {"en": 65, "de": 10, "sw": 7}
    assert index.stat().st_ino == before.st_ino


def test_only_changed_shards_are_read_again(shards, index, write_shards):
    """Unchanged shards are not scanned: their first headers are destroyed here, which a scan would refuse."""
    path = Path(shards["de"][0])
    before = path.stat()
    kept = open_index(str(index))
    path.write_bytes(Path(write_shards({"xx": [10]})["xx"][0]).read_bytes())
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))  # only the fingerprint shows the change
    build_index({**shards, "sw": shards["sw"][:1]}, index)
    dataset = TarDataset(index)
    assert dataset.sizes == {"en": 65, "de": 10, "sw": 3}
    assert dataset[65]["__key__"] == "xx/0/0"
    assert len(kept) == 82  # the former index is still mapped


def test_a_shard_rewritten_with_its_size_and_time_is_refused(shards, index, write_shards):
    path = Path(shards["de"][0])
    before = path.stat()
    path.write_bytes(Path(write_shards({"xx": [10]})["xx"][0]).read_bytes())
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(OSError, match=r"de-0\.tar has changed since it was indexed, though it has the size and time"):
        TarDataset(index)[65]
    path.write_bytes(b"x" * 1024)
    with pytest.raises(OSError, match=r"de-0\.tar has changed since it was indexed"):
        TarDataset(index)[65]


def test_faults_are_refused_or_listed(shards, tmp_path):
    path = Path(shards["de"][0])
    path.write_bytes(path.read_bytes()[:-10240])
    with pytest.raises(ValueError, match=r"de-0\.tar at byte \d+: the file ends without .*pass on_error='skip'"):
        build_index(shards, tmp_path / "x.idx")
    assert not (tmp_path / "x.idx").exists()
    build_index(shards, tmp_path / "x.idx", on_error="skip")
    for again in (lambda: build_index(shards, tmp_path / "x.idx"), lambda: TarDataset(tmp_path / "x.idx")):
        with pytest.raises(ValueError, match=r"de-0\.tar at byte \d+: the file ends without"):
            again()
    with pytest.warns(UserWarning, match="1 samples skipped, the first in .*de-0"):
        assert TarDataset(tmp_path / "x.idx", on_error="skip").sizes["de"] == 9


def test_damage_of_what_it_says_of_shards_is_refused(index):
    good = index.read_bytes()
    rng = random.Random(0)
    directory = int.from_bytes(good[48:56], "little")
    for _ in range(200):
        at = rng.choice([rng.randrange(8, 80), rng.randrange(directory, len(good))])
        bad = bytearray(good)
        bad[at] ^= 1 << rng.randrange(8)
        index.write_bytes(bad[: rng.randrange(80, len(bad))] if rng.random() < 0.3 else bad)
        with pytest.raises(ValueError, match=r"dataset\.idx: the index is damaged; delete it"):
            TarDataset(index)


def outcome(dataset, i):
    try:
        return dataset[i]
    except ValueError as error:
        return str(error)


def test_damage_of_samples_is_refused_when_they_are_read(index):
    good = index.read_bytes()
    expected = list(TarDataset(index))
    directory = int.from_bytes(good[48:56], "little")
    rng = random.Random(0)
    refused = 0
    for _ in range(60):
        bad = bytearray(good)
        bad[rng.randrange(80, directory)] ^= 1 << rng.randrange(8)
        index.unlink()
        index.write_bytes(bad)
        dataset = TarDataset(index)
        answers = [outcome(dataset, i) for i in range(82)]
        errors = [answer for answer in answers if isinstance(answer, str)]
        assert all("the index is damaged" in error for error in errors)
        assert [answer for answer in answers if answer not in errors] == [
            sample for answer, sample in zip(answers, expected) if not isinstance(answer, str)
        ]
        refused += len(errors)
    assert refused >= 60


def test_an_index_written_to_in_use_is_refused(index):
    dataset = TarDataset(index)
    with index.open("r+b") as file:
        file.truncate(100)
    with pytest.raises(OSError, match=r"dataset\.idx has changed since it was opened"):
        dataset[0]


def test_files_that_are_no_index_of_a_data_set_are_named(shards, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"dataset\.idx is missing; make it with `pycooldown index`"):
        TarDataset(tmp_path)
    TarDataset(shards)
    for path in (shards["en"][0], f"{shards['en'][0]}.idx"):
        with pytest.raises(ValueError, match="is no index of a data set; make one with `pycooldown index`"):
            TarDataset(path)
    (tmp_path / "empty").touch()
    with pytest.raises(ValueError, match="is no index"):
        TarDataset(tmp_path / "empty")
    with pytest.raises(ValueError, match="leave one of them out"):
        TarDataset(tmp_path / "x.idx", index=tmp_path / "y.idx")


def test_pickles_by_path_and_notices_another_index(shards, index):
    dataset = TarDataset(index)
    pickled = pickle.dumps(dataset)
    assert len(pickled) < 1000
    assert pickle.loads(pickled)[81]["__key__"] == "sw/2/3"
    build_index({"en": shards["en"]}, index)
    with pytest.raises(ValueError, match="have changed since the dataset was pickled"):
        pickle.loads(pickled)
    assert dataset[81]["__key__"] == "sw/2/3"


def test_many_builders_make_one_index(shards, tmp_path):
    path = tmp_path / "x.idx"
    errors = []

    def build():
        try:
            build_index(shards, path, workers=2)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=build) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert len(TarDataset(path)) == 82
    assert sorted(p.name for p in tmp_path.glob("*.idx*")) == ["x.idx"]


def test_arguments_are_checked(shards, tmp_path):
    with pytest.raises(ValueError, match="workers = 0; expected at least 1"):
        build_index(shards, tmp_path / "x.idx", workers=0)
    with pytest.raises(ValueError, match="on_error = 'ignore'; expected 'raise' or 'skip'"):
        build_index(shards, tmp_path / "x.idx", on_error="ignore")
    with pytest.raises(FileNotFoundError, match="none"):
        build_index(shards, tmp_path / "none" / "x.idx")


def test_arguments_name_domains(shards, tmp_path):
    folder = tmp_path / "set"
    for domain, paths in shards.items():
        (folder / domain / "deep").mkdir(parents=True)
        for path in paths:
            shutil.copy(path, folder / domain / "deep")
    shutil.copy(shards["en"][0], folder / "fr-000.tar")
    names = {domain: [os.path.basename(p) for p in paths] for domain, paths in parse_shards([str(folder)]).items()}
    sw = ["sw-0.tar", "sw-1.tar", "sw-2.tar"]
    assert names == {"de": ["de-0.tar"], "en": ["en-0.tar", "en-1.tar"], "fr": ["fr-000.tar"], "sw": sw}
    assert parse_shards(["a=x.tar", "b=y=1", "a=z"]) == {"a": ["x.tar", "z"], "b": ["y=1"]}
    for wrong in (["x"], ["=x"], ["a=", "b=y"], ["a=x", "z"]):
        with pytest.raises(ValueError, match="expected a folder, or domain=pattern"):
            parse_shards(wrong)
    (tmp_path / "none").mkdir()
    with pytest.raises(ValueError, match="has no tar files"):
        parse_shards([str(tmp_path / "none")])


def test_the_command_writes_it(shards, tmp_path):
    pytest.importorskip("typer")

    def run(*arguments):
        return subprocess.run([sys.executable, "-m", "pycooldown", "index", *arguments], capture_output=True, text=True)

    done = run(tmp_path, "--workers", "2")
    assert done.returncode == 0, done.stderr
    rows = [re.findall(r"\w+", line) for line in done.stdout.splitlines()]
    assert [row for row in rows if row[:1] == ["en"]] == [["en", "2", "65"]]
    assert TarDataset(tmp_path).sizes == {"de": 10, "en": 65, "sw": 7}
    refused = run("en=x.tar")
    assert refused.returncode != 0
    assert "--out dataset.idx" in refused.stderr


def test_opening_takes_no_memory_for_samples(tmp_path):
    """A quarter of a million samples take less than 2 MB of memory."""
    path = tmp_path / "x.idx"
    build_index({"x": write_linked_shards(tmp_path / "shards", 25, 10_000)}, path)
    assert path.stat().st_size < 250_000 * (len("00000/000000") + 24)
    code = f"""if True:
        import re
        from pathlib import Path
        from pycooldown.data import TarDataset

        def resident():
            return int(re.search("VmRSS:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])

        before = resident()
        dataset = TarDataset({str(path)!r}, mmap=False)
        assert len(dataset) == 250_000
        assert dataset[249_999]["txt"].startswith(b"0/9999.")
        print(resident() - before)
    """
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(run.stdout) < 2_000  # KiB
