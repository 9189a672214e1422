"""The file of values by domain grows. A resumed run replaces its part, and readers see whole records only."""

import numpy as np
import pytest

from pycooldown import domain_log


def values(step, domains=3):
    return {"loss": np.arange(domains) + step / 8, "tokens": np.full(domains, step + 2**40)}


def test_records_are_read_by_numpy_alone(tmp_path):
    path = tmp_path / "domains.npy"
    for step in (10, 20, 30):
        domain_log.append(path, step, values(step))
    records = np.load(path)
    assert records["step"].tolist() == [10, 20, 30]
    assert records["tokens"].tolist() == [[step + 2**40] * 3 for step in (10, 20, 30)]
    np.testing.assert_array_equal(records["loss"], [np.arange(3) + step / 8 for step in (10, 20, 30)])


def test_a_resumed_run_replaces_what_it_logs_again(tmp_path):
    path = tmp_path / "domains.npy"
    for step in (10, 20, 30):
        domain_log.append(path, step, values(step))
    domain_log.append(path, 20, values(24))
    records = domain_log.read(path)
    assert records["step"].tolist() == [10, 20]
    assert records["loss"][1].tolist() == [3.0, 4.0, 5.0]
    domain_log.append(path, 5, values(5))  # the run starts again
    assert domain_log.read(path)["step"].tolist() == [5]
    assert path.stat().st_size == np.load(path).nbytes + np.load(path, mmap_mode="r").offset


def test_a_reader_keeps_the_records_that_a_resumed_run_drops(tmp_path):
    path = tmp_path / "domains.npy"
    for step in range(2000):
        domain_log.append(path, step, values(step))
    records = domain_log.read(path)  # mapped, so losing pages of the file would kill the process
    domain_log.append(path, 0, values(7))
    assert records["step"].tolist() == list(range(2000))
    assert domain_log.read(path)["step"].tolist() == [0]
    domain_log.append(path, 1, values(8, domains=4))
    assert records["step"][-1] == 1999
    assert [entry.name for entry in tmp_path.iterdir()] == ["domains.npy"]


def test_half_a_record_is_not_seen_and_is_overwritten(tmp_path):
    path = tmp_path / "domains.npy"
    domain_log.append(path, 10, values(10))
    with open(path, "ab") as file:
        file.write(b"half of a record")  # the process died here, before the count in the header
    assert domain_log.read(path)["step"].tolist() == [10]
    domain_log.append(path, 20, values(20))
    assert domain_log.read(path)["step"].tolist() == [10, 20]
    assert np.load(path)["loss"][1].tolist() == values(20)["loss"].tolist()


def test_another_number_of_domains_begins_anew(tmp_path):
    path = tmp_path / "domains.npy"
    domain_log.append(path, 10, values(10))
    domain_log.append(path, 20, values(20, domains=5))
    assert domain_log.read(path)["loss"].shape == (1, 5)


@pytest.mark.parametrize("content", [b"", b"no array", b"\x93NUMPY\x01\x00"])
def test_a_damaged_file_is_named(tmp_path, content):
    path = tmp_path / "domains.npy"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"domains\.npy is damaged"):
        domain_log.read(path)
    np.save(path, np.zeros(3))
    with pytest.raises(ValueError, match="expected records with a step"):
        domain_log.read(path)
