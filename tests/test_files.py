"""Files are written whole or not at all, leftovers of killed writers are removed, and locks exclude others."""

import errno
import fcntl
import hashlib
import os
import stat
import subprocess
import sys
import threading

import pytest

from pycooldown import _files
from pycooldown._files import lock_file, lock_folder, open_atomically, read_bounded, sha256, write_atomically

KILLED_WRITER = """if True:
    import os, signal, sys
    os.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
    from pycooldown._files import write_atomically
    write_atomically(sys.argv[1], "new")
"""


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("durable", [True, False])
@pytest.mark.parametrize(("content", "written"), [("grün", "grün".encode()), (b"\xff\0", b"\xff\0"), ("", b"")])
def test_writes_and_replaces(tmp_path, content, written, durable):
    path = tmp_path / "file"
    for _ in range(2):
        write_atomically(path, content, durable=durable)
        assert path.read_bytes() == written
        assert names(tmp_path) == ["file"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~_umask()


def _umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_names_may_be_as_long_as_files_allow(tmp_path):
    path = tmp_path / ("ü" * 127)
    write_atomically(path, "content")
    assert path.read_text() == "content"
    assert names(tmp_path) == [path.name]


def test_a_failed_write_changes_nothing(tmp_path):
    path = tmp_path / "file"
    write_atomically(path, "old")
    (tmp_path / "folder").mkdir()
    with pytest.raises(IsADirectoryError):
        write_atomically(tmp_path / "folder", "new")
    with pytest.raises(UnicodeEncodeError):
        write_atomically(path, "\udc80")
    assert path.read_text() == "old"
    assert names(tmp_path) == ["file", "folder"]


def test_what_a_killed_writer_left_is_used_or_removed(tmp_path):
    path = tmp_path / "file"
    write_atomically(path, "old")
    child = subprocess.run([sys.executable, "-c", KILLED_WRITER, path])
    assert child.returncode == -9
    assert path.read_text() == "old"
    assert len(names(tmp_path)) == 2
    leftover = next(name for name in names(tmp_path) if name != "file")
    for number in (1, 2, 3):
        (tmp_path / leftover.replace(".0.", f".{number}.")).write_text("longer than what comes next")
    write_atomically(path, "next")
    assert path.read_text() == "next"
    assert names(tmp_path) == ["file"]


def test_the_temporary_file_of_a_living_writer_is_left_alone(tmp_path):
    code = KILLED_WRITER.replace("os.kill(os.getpid(), signal.SIGKILL)", "(print(flush=True), sys.stdin.read())")
    path = tmp_path / "file"
    writer = subprocess.Popen([sys.executable, "-c", code, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    writer.stdout.readline()  # it is about to rename
    (other,) = names(tmp_path)
    write_atomically(path, "ours")
    assert names(tmp_path) == sorted([other, "file"])
    writer.communicate()
    assert path.read_text() == "ours"


def test_a_writer_beside_living_and_killed_ones_removes_what_the_killed_left(tmp_path):
    path = tmp_path / "file"
    write_atomically(path, "old")
    assert subprocess.run([sys.executable, "-c", KILLED_WRITER, path]).returncode == -9
    (first,) = (tmp_path / name for name in names(tmp_path) if name != "file")
    second, third = (tmp_path / first.name.replace(".0.", f".{number}.") for number in (1, 2))
    second.touch()
    third.touch()
    with first.open("w") as living:
        fcntl.flock(living, fcntl.LOCK_EX)
        write_atomically(path, "new")
    assert path.read_text() == "new"
    assert names(tmp_path) == [first.name, "file"]


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_file_systems_without_locks_are_written_to(tmp_path, monkeypatch, code):
    def refuse(*_):
        raise OSError(code, "no locks")

    monkeypatch.setattr("fcntl.flock", refuse)
    other = tmp_path / ".file.1.partial"
    other.write_text("of a living writer, for all that is known")
    write_atomically(tmp_path / "file", "content")
    assert (tmp_path / "file").read_text() == "content"
    assert names(tmp_path) == [other.name, "file"]
    with pytest.raises(OSError, match="cannot be locked"), lock_folder(tmp_path):
        pass


def test_many_writers_at_once_leave_one_whole_file(tmp_path):
    path = tmp_path / "file"
    contents = [str(i) * 10_000 for i in range(8)]
    threads = [threading.Thread(target=write_atomically, args=(path, content)) for content in contents for _ in "abc"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert path.read_text() in contents
    assert names(tmp_path) == ["file"]


def test_sha256_is_that_of_the_content(tmp_path):
    content = bytes(range(256)) * 10_000
    (tmp_path / "file").write_bytes(content)
    assert sha256(tmp_path / "file") == hashlib.sha256(content).hexdigest()


def test_a_locked_folder_is_refused_to_others_until_the_holder_ends(tmp_path):
    code = "import sys, pycooldown._files as f; sys.argv[1:] and f.lock_folder(sys.argv[1], wait=False).__enter__()"
    with lock_folder(tmp_path):
        child = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True)
        assert "BlockingIOError" in child.stderr
        assert f"another process is using it: '{tmp_path}'" in child.stderr
    assert subprocess.run([sys.executable, "-c", code, tmp_path]).returncode == 0  # it ends without unlocking
    with lock_folder(tmp_path, wait=False):
        pass
    with pytest.raises(FileNotFoundError), lock_folder(tmp_path / "missing"):
        pass


def test_reads_regular_files_up_to_a_limit(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"12345")
    assert read_bounded(path, 5) == b"12345"
    with pytest.raises(OSError, match="has 5 bytes, expected at most 4") as caught:
        read_bounded(path, 4)
    assert caught.value.errno == errno.EFBIG
    os.mkfifo(tmp_path / "pipe")
    for other in (tmp_path / "pipe", "/dev/zero"):
        with pytest.raises(OSError, match="no regular file"):
            read_bounded(other, 5)
    with pytest.raises(IsADirectoryError, match="this is a folder; expected a file"):
        read_bounded(tmp_path, 5)


def test_there_is_one_atomic_writer():
    """No other module of the package renames files or makes temporary ones.

    The exceptions are `publish`, which moves whole folders, and the cache, whose blocks have checksums instead of a
    flush to disk.
    """
    package = os.path.dirname(_files.__file__)
    found = set()
    for folder, _, files in os.walk(package):
        for name in files:
            if name.endswith(".py"):
                with open(os.path.join(folder, name), encoding="utf-8") as file:
                    if any(call in file.read() for call in ("os.replace", "os.rename", "mkstemp", "NamedTemporary")):
                        found.add(os.path.relpath(os.path.join(folder, name), package))
    assert found == {"_files.py", "data/publish.py", "data/cache/block_files.py"}


def test_a_lock_may_be_shared(tmp_path):
    lock = tmp_path / "lock"
    with lock_file(lock, shared=True), lock_file(lock, shared=True, wait=False):
        with pytest.raises(BlockingIOError, match="another process is using it") as caught:
            lock_file(lock, wait=False).__enter__()
        assert caught.value.filename == str(lock)
    with lock_file(lock, wait=False), pytest.raises(BlockingIOError):
        lock_file(lock, shared=True, wait=False).__enter__()


def test_a_file_written_piece_by_piece_appears_whole_or_not_at_all(tmp_path):
    path = tmp_path / "file"

    def write(pieces):
        with open_atomically(path) as file:
            for piece in pieces:
                file.write(piece)
                file.flush()
                assert not path.exists()

    with pytest.raises(TypeError):
        write([b"one", None])
    assert names(tmp_path) == []
    write([b"one", b"two"])
    assert path.read_bytes() == b"onetwo"
    assert names(tmp_path) == ["file"]
