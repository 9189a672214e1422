"""Ranges of objects give the right bytes in few requests, despite passing failures, or raise a clear error."""

import errno
import os
import pickle

import numpy as np
import pytest
from object_server import serve_objects

pytest.importorskip("obstore")

from pycooldown.data import range_requests
from pycooldown.data.byte_ranges import StoreRanges
from pycooldown.data.stores import StoredObject, StoreError, find_object

CONTENT = np.random.default_rng(0).bytes(100_000)


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with serve_objects() as server:
        yield server


@pytest.fixture
def ranges(server):
    urls = [server.put("a", CONTENT), server.put("b", CONTENT[::-1])]
    return StoreRanges([find_object(url) for url in urls], gap=100, timeout=5, patience=20)


def read(ranges, *spans):
    objects, starts, ends = np.array(spans, np.int64).reshape(-1, 3).T
    return [bytes(content) for content in ranges.read(objects, starts, ends)]


def gets(server):
    return [(path, wanted) for method, path, wanted in server.requests if method == "GET"]


def test_ranges_come_in_their_order_and_neighbours_by_one_request(ranges, server):
    spans = [
        (1, 50, 60),
        (0, 900, 1000),
        (0, 10, 20),
        (0, 100, 150),
        (0, 12, 15),
        (0, 10, 20),
        (0, 7, 7),
        (0, 251, 260),
    ]
    expected = [(CONTENT[::-1] if number else CONTENT)[start:end] for number, start, end in spans]
    assert read(ranges, *spans) == expected
    assert sorted(gets(server)) == [
        ("/a", "bytes=10-149"),
        ("/a", "bytes=251-259"),
        ("/a", "bytes=900-999"),
        ("/b", "bytes=50-59"),
    ]
    assert read(ranges) == []


def test_a_range_longer_than_a_request_is_joined(ranges, server, monkeypatch):
    monkeypatch.setattr(range_requests, "RANGE_BYTES", 1000)
    spans = [(0, 5, 15), (0, 10, 5_010), (0, 5_000, 5_100), (0, 5_150, 6_090)]
    assert read(ranges, *spans) == [CONTENT[start:end] for _, start, end in spans]
    assert len(gets(server)) == 8


def test_many_random_ranges(ranges):
    rng = np.random.default_rng(1)
    starts = rng.integers(0, len(CONTENT), 500)
    ends = np.minimum(starts + rng.integers(0, 300, 500), len(CONTENT))
    found = ranges.read(np.zeros(500, np.int64), starts, ends)
    assert [bytes(content) for content in found] == [CONTENT[a:b] for a, b in zip(starts, ends)]


@pytest.mark.parametrize("fault", [503, 500, 429, "short", "drop"])
def test_passing_failures_are_tried_again(ranges, server, fault):
    server.faults += [fault, fault]
    assert read(ranges, (0, 10, 900), (1, 0, 100_000)) == [CONTENT[10:900], CONTENT[::-1]]


def test_an_error_is_raised_when_patience_ends(ranges, server):
    ranges.patience = 0.5
    server.faults += ["short"] * 100
    with pytest.raises(
        StoreError, match=r"bytes 10 to 900 could not be read in \d+ tries and 0.5 seconds: .*/a'"
    ) as caught:
        read(ranges, (0, 10, 900))
    assert caught.value.errno == errno.EIO
    assert "\n" not in str(caught.value)


def test_a_changed_object_is_refused(ranges, server):
    server.change("a", CONTENT[::-1])
    with pytest.raises(StoreError, match=r"has changed since it was indexed .*index it again.*/a'") as caught:
        read(ranges, (0, 10, 900), (1, 10, 20))
    assert caught.value.errno == errno.ESTALE
    assert read(ranges, (1, 10, 20)) == [CONTENT[::-1][10:20]]


def test_without_etags_another_size_is_refused(server):
    server.has_etags = False
    ranges = StoreRanges([find_object(server.put("a", CONTENT))])
    assert read(ranges, (0, 10, 900)) == [CONTENT[10:900]]
    server.change("a", CONTENT[:-1])
    with pytest.raises(StoreError, match="99999 bytes"):
        read(ranges, (0, 10, 900))


@pytest.mark.parametrize(("fault", "code"), [(404, errno.ENOENT), (403, errno.EACCES)])
def test_permanent_failures_are_not_tried_again(ranges, server, fault, code):
    server.faults.append(fault)
    with pytest.raises(StoreError) as caught:
        read(ranges, (0, 10, 900))
    assert caught.value.errno == code
    assert len(gets(server)) == 1


def test_a_server_that_is_down_is_named(ranges, server):
    ranges.objects = [StoredObject("http://127.0.0.1:9/x", 10, "v")]
    ranges.patience = 0.1
    with pytest.raises(StoreError, match=r"check the endpoint.*'http://127.0.0.1:9/x'"):
        read(ranges, (0, 1, 2))


@pytest.mark.parametrize(
    ("span", "message"),
    [
        ((2, 0, 1), "objects has 2; expected numbers from 0 to 1"),
        ((0, 5, 100_001), "expected a range of its 100000"),
        ((0, 5, 4), "range"),
    ],
)
def test_impossible_ranges_are_refused(ranges, span, message):
    with pytest.raises(ValueError, match=message):
        read(ranges, span)


def test_arguments_are_checked():
    for option in ({"gap": -1}, {"concurrency": 0}, {"timeout": 0}, {"patience": float("nan")}):
        with pytest.raises(ValueError, match=rf"{next(iter(option))} = .*expected"):
            StoreRanges([], **option)


def test_a_process_forked_after_a_read_says_so_instead_of_waiting(ranges):
    read(ranges, (0, 1, 2))
    receive, send = os.pipe()
    if (child := os.fork()) == 0:
        try:
            read(ranges, (0, 1, 2))
        except RuntimeError as error:
            os.write(send, str(error).encode())
        os._exit(0)
    os.waitpid(child, 0)
    assert b"multiprocessing_context='spawn'" in os.read(receive, 1000)


def test_ranges_can_be_pickled(ranges):
    assert read(pickle.loads(pickle.dumps(ranges)), (0, 10, 900)) == [CONTENT[10:900]]
