"""The folder that a run writes to, on this machine or in an object store. A file in it is complete or does not exist.

On this machine a file is renamed into place, and locks keep other runs out. In a store an object appears under its name
when it is uploaded completely. Stores have no locks, so a run compares the objects with its records before it
publishes. Names of files are relative to the folder, with slashes.
"""

from __future__ import annotations

import errno
import hashlib
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

from pycooldown._files import lock_file, sha256, write_atomically
from pycooldown.data.store_lists import list_objects
from pycooldown.data.stores import (
    StoreError,
    find_object,
    is_url,
    open_binary,
    open_store,
    store_errors,
)


class Folder:
    """A folder on this machine."""

    def __init__(self, location: str) -> None:
        self.location = location

    def path(self, name: str) -> str:
        """Return the path of a file."""
        return os.path.join(self.location, name)

    def read(self, name: str) -> bytes:
        """Return the content of a file.

        Raises:
            FileNotFoundError: If there is none.
        """
        return Path(self.location, name).read_bytes()

    def write(self, name: str, content: str | bytes) -> None:
        """Write a file. Readers find all of the old content or all of the new."""
        path = Path(self.location, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        with name_errors(str(path)):
            write_atomically(path, content)

    def remove(self, name: str) -> None:
        """Remove a file, if it is there."""
        Path(self.location, name).unlink(missing_ok=True)

    def prune(self, folder: str) -> None:
        """Remove a folder, if it is there and empty."""
        path = Path(self.location, folder)
        if path.is_dir() and not any(path.iterdir()):
            path.rmdir()

    def names(self, folder: str) -> list[str]:
        """Return the names of all files below a folder, in order."""
        root = Path(self.location)
        return sorted(path.relative_to(root).as_posix() for path in (root / folder).rglob("*") if path.is_file())

    def workspace(self) -> AbstractContextManager[str]:
        """Return a context that provides a folder on this machine for writing shards."""
        return nullcontext(self.location)

    def take(self, workspace: str, names: Sequence[str]) -> dict[str, str]:
        """Move a shard and its sidecar here from a workspace, and return the versions of files in a store."""
        return {}

    def verify(self, name: str, size: int, digest: str, version: str = "") -> str | None:
        """Return the version of a file if its bytes are as recorded, and nothing if they are not.

        Args:
            name: The file.
            size: The recorded size in bytes.
            digest: The recorded SHA-256.
            version: The recorded version, if any. In a store, the same version means the same bytes.
        """
        try:
            return "" if sha256(Path(self.location, name)) == digest else None
        except FileNotFoundError:
            return None

    def versions(self) -> dict[str, str]:
        """Return the versions of all files, by name; on this machine there are none."""
        return {}

    @contextmanager
    def lock(self, name: str, *, shared: bool = False, wait: bool = True) -> Iterator[None]:
        """Hold a lock on a file against other runs.

        Raises:
            BlockingIOError: If another process holds it and `wait` is false.
        """
        path = Path(self.location, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        with lock_file(path, shared=shared, wait=wait):
            yield


class StoredFolder:
    """A folder in an object store; its methods correspond to those of `Folder`."""

    def __init__(self, url: str) -> None:
        if url.startswith("http"):
            raise ValueError(
                f"out = {url!r}; a web server accepts no files: expected a local folder or one in s3://, gs:// or az://"
            )
        self.location = url.rstrip("/")
        self._client, _, key = open_store(self.location)
        self._prefix = f"{key}/" if key else ""

    def path(self, name: str) -> str:
        """Return the URL of an object."""
        return f"{self.location}/{name}"

    def read(self, name: str) -> bytes:
        """Return the content of an object."""
        try:
            with store_errors(self.path(name)):
                return bytes(self._client.get(self._prefix + name).bytes())
        except StoreError as error:
            if error.errno != errno.ENOENT:
                raise
            raise FileNotFoundError(errno.ENOENT, error.strerror, error.filename) from error

    def write(self, name: str, content: str | bytes) -> None:
        """Write an object."""
        with store_errors(self.path(name)):
            self._client.put(self._prefix + name, content.encode("utf-8") if isinstance(content, str) else content)

    def remove(self, name: str) -> None:
        """Remove an object, if it is there."""
        try:
            with store_errors(self.path(name)):
                self._client.delete(self._prefix + name)
        except StoreError as error:
            if error.errno != errno.ENOENT:
                raise

    def prune(self, folder: str) -> None:
        """Do nothing, because a folder without objects does not exist."""

    def names(self, folder: str) -> list[str]:
        """Return the names of all objects below a folder, in order."""
        return [item.url[len(self.location) + 1 :] for item in list_objects(self.path(folder))]

    def workspace(self) -> AbstractContextManager[str]:
        """Return a context that provides a temporary folder, placed according to `TMPDIR`."""
        return tempfile.TemporaryDirectory(prefix="pycooldown-")

    def take(self, workspace: str, names: Sequence[str]) -> dict[str, str]:
        """Upload a shard and its sidecar from a workspace. Each appears when it is complete."""
        versions = {}
        for name in names[1:]:  # so that a tar is never beside another tar's sidecar
            self.remove(name)
        for name in names:
            with store_errors(self.path(name)):
                result = self._client.put(self._prefix + name, Path(workspace, name))
            versions[name] = (result["e_tag"] or "").strip('"')
        return versions

    def verify(self, name: str, size: int, digest: str, version: str = "") -> str | None:
        """Return the version of an object if its bytes are as recorded; they are read unless the version is known."""
        found = find_object(self.path(name))
        if found is None or found.size != size:
            return None
        if found.version != version:
            actual = hashlib.sha256()
            with open_binary(found.url, found.version, buffered=False) as stream:
                while block := stream.read(1 << 20):
                    actual.update(block)
            if actual.hexdigest() != digest:
                return None
        return found.version

    def versions(self) -> dict[str, str]:
        """Return the versions of all objects, by name."""
        return {item.url[len(self.location) + 1 :]: item.version for item in list_objects(self.location)}

    def lock(self, name: str, *, shared: bool = False, wait: bool = True) -> AbstractContextManager[None]:
        """Return a context without effect."""
        return nullcontext()


ResultFolder = Folder | StoredFolder


def open_output(location: str | os.PathLike[str]) -> ResultFolder:
    """Return the folder of a path or URL; it need not exist yet.

    Raises:
        ValueError: If nothing can be written to such a URL.
    """
    location = os.fspath(location)
    return StoredFolder(location) if is_url(location) else Folder(location)


@contextmanager
def name_errors(path: str) -> Iterator[None]:
    """Add a path to errors of failed writes, such as those on a full disk, which do not name their file."""
    try:
        yield
    except OSError as error:
        if error.filename is not None or error.errno is None:
            raise
        reason = f"{error.strerror}; finished shards are kept; run the same command again to continue"
        raise OSError(error.errno, reason, path) from error
