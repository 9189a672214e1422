"""Files that are complete or absent: atomic writes, hashes, locks and bounded reads."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

# The errors of file systems that have no locks, such as Lustre mounted without them.
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
_MAX_WRITERS = 1000  # simultaneous writers of one file


def write_atomically(path: str | Path, content: str | bytes, *, durable: bool = True) -> None:
    """Write a file so that a reader finds all of the old content or all of the new.

    The content goes to a temporary file in the same folder, which is then renamed. Temporary files left by killed
    writers of the same file are used again or removed.

    Args:
        path: The file to write; an existing file is replaced.
        content: Text, written as UTF-8, or bytes.
        durable: Whether to wait until the content is on the disk, so that this also holds after a power failure. Use
            `False` for content that can be made again.

    Raises:
        OSError: If the file cannot be written; what `path` held before is unchanged.
    """
    with open_atomically(path, durable=durable) as file:
        file.write(content.encode("utf-8") if isinstance(content, str) else content)


@contextmanager
def open_atomically(path: str | Path, *, durable: bool = True) -> Iterator[IO[bytes]]:
    """Open a file for writing piece by piece. It appears under its name when the block ends without an error.

    See `write_atomically`.

    Args:
        path: The file to write; an existing file is replaced.
        durable: Whether to wait until the content is on the disk.

    Raises:
        OSError: If the file cannot be written; what `path` held before is unchanged.
    """
    path = Path(path)
    descriptor, temporary = _open_temporary(path)
    try:
        with open(descriptor, "wb") as file:
            yield file
            file.flush()
            if durable:
                os.fsync(descriptor)
            os.replace(temporary, path)  # while the lock is held, so that no other writer treats it as a leftover
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _remove_leftovers(path)
    if durable:
        sync(path.parent)


def sync(path: str | Path) -> None:
    """Wait until a file's content, or a folder's list of names, is on the disk."""
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file as 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with open_regular(path) as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


@contextmanager
def lock_folder(folder: str | Path, *, wait: bool = True) -> Iterator[None]:
    """Hold a lock on a folder against other processes. It ends with this process at the latest.

    Args:
        folder: An existing folder. Nothing is written into it.
        wait: Whether to wait for a process that holds the lock; otherwise an error is raised.

    Raises:
        BlockingIOError: If another process holds the lock and `wait` is false.
        OSError: If the folder cannot be opened, or its file system has no locks.
    """
    with _lock(os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC), folder, shared=False, wait=wait):
        yield


@contextmanager
def lock_file(path: str | Path, *, shared: bool = False, wait: bool = True) -> Iterator[int]:
    """Hold a lock on a file, which is created if it is missing, and yield its descriptor. See `lock_folder`.

    Args:
        path: The file, in an existing folder. Its content is left to the caller.
        shared: Whether to share the lock with other processes that ask for a shared one.
        wait: Whether to wait for a process that holds the lock; otherwise an error is raised.

    Raises:
        BlockingIOError: If another process holds the lock and `wait` is false. Its `filename` is the path.
        OSError: If the file cannot be opened, or its file system has no locks.
    """
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    with _lock(handle, path, shared=shared, wait=wait):
        yield handle


@contextmanager
def _lock(handle: int, path: str | Path, *, shared: bool, wait: bool) -> Iterator[None]:
    _held.add(handle)
    try:
        try:
            fcntl.flock(handle, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError as error:
            raise BlockingIOError(error.errno, "another process is using it", str(path)) from None
        except OSError as error:
            raise OSError(error.errno, f"it cannot be locked ({error.strerror})", str(path)) from error
        yield
    finally:
        _held.discard(handle)
        os.close(handle)


_held: set[int] = set()


def _close_in_child() -> None:
    for handle in _held:
        os.close(handle)
    _held.clear()


# A lock lasts until every process that has the file open has ended. Workers that read data may outlive a killed parent
# for a while, so they must not keep its locks.
os.register_at_fork(after_in_child=_close_in_child)


def open_regular(path: str | Path, *, buffering: int = -1) -> IO[bytes]:
    """Open a regular file for reading.

    Pipes, devices and folders are refused at once, because reading them could wait or continue forever.

    Args:
        path: The file.
        buffering: As of `open`.

    Raises:
        OSError: If the file cannot be opened, is a folder (EISDIR) or otherwise no regular file (EINVAL).
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # opening a pipe would wait for its writer
    try:
        mode = os.fstat(descriptor).st_mode
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, "this is a folder; expected a file", str(path))
        if not stat.S_ISREG(mode):
            raise OSError(errno.EINVAL, "this is no regular file", str(path))
        return open(descriptor, "rb", buffering)
    except BaseException:
        os.close(descriptor)
        raise


def regular_size(path: str | Path) -> int:
    """Return the bytes of a regular file.

    Raises:
        OSError: If `open_regular` refuses the file.
    """
    with open_regular(path, buffering=0) as file:
        return os.fstat(file.fileno()).st_size


def read_bounded(path: str | Path, limit: int) -> bytes:
    """Read a regular file that is not larger than expected.

    Args:
        path: The file.
        limit: The maximum number of bytes that it may hold.

    Raises:
        OSError: If `open_regular` refuses the file, or it holds more bytes (EFBIG).
    """
    with open_regular(path) as file:
        if (size := os.fstat(file.fileno()).st_size) > limit:
            raise OSError(errno.EFBIG, f"the file has {size} bytes, expected at most {limit}", str(path))
        return file.read(size)


def _temporary(path: Path, label: int | str) -> Path:
    return path.with_name("." + os.fsdecode(os.fsencode(path.name)[:200]) + f".{label}.partial")  # 255 bytes at most


def _open_temporary(path: Path) -> tuple[int, Path]:
    """Open an empty file beside `path`, locked while its writer lives.

    Writers of one file number their temporary files from 0. A number whose file is not locked is free, so a writer uses
    the file that a killed one left behind, and nobody has to list the folder, which may hold 100,000 shards.
    """
    for number in range(_MAX_WRITERS):
        temporary = _temporary(path, number)
        try:
            while (descriptor := _open_locked(temporary, os.O_CREAT)) is not None:
                if _is_named(descriptor, temporary):
                    os.ftruncate(descriptor, 0)
                    return descriptor, temporary
                os.close(descriptor)  # its last writer has renamed or removed it since it was opened
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            temporary.unlink(missing_ok=True)  # empty: without locks, nobody writes to a numbered file
            temporary = _temporary(path, secrets.token_hex(8))
            return os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666), temporary
    raise BlockingIOError(errno.EWOULDBLOCK, f"{_MAX_WRITERS} other processes are writing this file", str(path))


def _remove_leftovers(path: Path) -> None:
    """Remove the temporary files of writers that are gone: no living process has locked them."""
    missing = 0  # one number may be missing in between: that of the file which was just renamed
    for number in range(_MAX_WRITERS):
        try:
            descriptor = _open_locked(_temporary(path, number))
        except OSError:
            missing += 1
            if missing == 2:
                return
            continue
        if descriptor is not None:
            with contextlib.suppress(OSError):
                _temporary(path, number).unlink()
            os.close(descriptor)


def _open_locked(path: Path, flags: int = 0) -> int | None:
    """Open a file for writing and lock it; `None` if another process holds the lock."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK | flags, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _is_named(descriptor: int, path: Path) -> bool:
    """Return whether the open file is the one that now has this name."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.lstat(path))
    except FileNotFoundError:
        return False
