"""Open local files and objects in stores in the same way: `s3://`, `gs://`, `az://`, `http(s)://`.

`obstore` reads objects by ranges of bytes. It finds credentials and endpoints in the environment (`AWS_ACCESS_KEY_ID`,
`AWS_ENDPOINT_URL`, `GOOGLE_APPLICATION_CREDENTIALS`, `AZURE_STORAGE_ACCOUNT_NAME`, ...) and in the roles of cloud
machines, and it retries temporary failures.
"""

from __future__ import annotations

import errno
import io
import os
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import lru_cache
from typing import IO, Any
from urllib.parse import unquote

from pycooldown._extras import require
from pycooldown._files import open_regular

SCHEMES = ("s3", "gs", "az", "http", "https")
RANGE_BYTES = 8 << 20  # per request; the wait for the first byte is short compared with the transfer
BUFFER_BYTES = 64 << 10
RETRIES, RETRY_TIMEOUT = 5, timedelta(minutes=3)
_URL = re.compile(r"([a-zA-Z][a-zA-Z0-9+.-]*)://([^/]*)/?(.*)", re.DOTALL)
# The last places where clients look for credentials, on cloud machines; or an error of Azure without them.
_NO_CREDENTIALS = re.compile(r"latest/api/token|latest/meta-data|computeMetadata|metadata/identity|Account must be")
_WAY_OUT = {
    errno.ENOENT: "check the spelling of the bucket and the key",
    errno.EACCES: "check the credentials in the environment (AWS_..., GOOGLE_..., AZURE_...) and their permissions",
    errno.ENOTSUP: "use a server that answers requests for ranges of bytes, or work with a local copy",
    errno.EIO: "check the endpoint, the region and the network, or work with a local copy",
}


class StoreError(OSError):
    """An error of a store that reads or writes an object, with `errno`, `strerror` and, as `filename`, the URL."""


@dataclass(frozen=True)
class StoredObject:
    """An object in a store.

    Attributes:
        url: The object's URL.
        size: Size in bytes.
        version: A text that changes with the content: the ETag, or the time of the change if the store has no ETags.
    """

    url: str
    size: int
    version: str


def is_url(path: str | os.PathLike[str]) -> bool:
    """Return whether a path is a URL, with any scheme."""
    return _URL.match(os.fspath(path)) is not None


def find_object(url: str) -> StoredObject | None:
    """Return the object with exactly this URL, or None.

    Raises:
        ValueError: If the URL is not one that can be read.
        StoreError: If the store does not answer, or denies access.
    """
    client, _, key = open_store(url)
    if not key:
        return None
    try:
        with store_errors(url):
            return stored_object(url, client.head(key))
    except StoreError as error:
        if error.errno == errno.ENOENT:
            return None
        raise


def open_binary(path: str, version: str = "", *, stop: int | None = None, buffered: bool = True) -> IO[bytes]:
    """Open a file or an object for reading, with random access.

    Args:
        path: A path or a URL.
        version: The expected version of an object; others are refused. An empty text accepts the current one.
        stop: For an object, reading ends before this byte, so that nothing after it is fetched. `None` for its end.
        buffered: Whether to read ahead, so that lines and small reads are cheap.
    """
    if not is_url(path):
        return open_regular(path, buffering=-1 if buffered else 0)
    raw = ObjectReader(path, version, stop)
    return io.BufferedReader(raw, BUFFER_BYTES) if buffered else raw  # type: ignore[return-value]


class ObjectReader(io.RawIOBase):
    """An object as a file, read by ranges.

    The first read at a position fetches exactly the requested bytes. Reads that continue from there fetch more and more
    ahead, up to `RANGE_BYTES`.

    Raises:
        ValueError: On opening or reading, if the object has another version than before.
        StoreError: On opening or reading, if it is missing or the store does not answer.
    """

    def __init__(self, url: str, version: str = "", stop: int | None = None) -> None:
        self._url, self._version = url, version
        self._get: Callable[..., Any] = open_store(url)[0].get
        found = find_object(url)
        if found is None:
            raise StoreError(errno.ENOENT, f"no such object; {_WAY_OUT[errno.ENOENT]}", url)
        self._size = found.size
        self._version = version or found.version
        self._check(found.version)
        self._stop = found.size if stop is None else min(stop, found.size)
        self._position = self._start = 0
        self._block = memoryview(b"")

    def readable(self) -> bool:
        """Return true."""
        return True

    def seekable(self) -> bool:
        """Return true."""
        return True

    def tell(self) -> int:
        """Return the position of the next byte to read."""
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move to a byte, counted from the start, the current position or the end."""
        position = offset + (0, self._position, self._size)[whence]
        if position < 0:
            raise ValueError(f"offset = {offset}; expected a place that is not before the start of {self._url}")
        self._position = position
        return position

    def readinto(self, buffer: Any) -> int:
        """Read at most as many bytes as the buffer holds, and at least one unless the end is reached."""
        view = memoryview(buffer).cast("B")
        at = self._position - self._start
        if not 0 <= at < len(self._block):
            count = max(len(view), 2 * len(self._block) if at == len(self._block) else 0)
            self._fetch(min(count, RANGE_BYTES))
            at = 0
        found = self._block[at : at + len(view)]
        view[: len(found)] = found
        self._position += len(found)
        return len(found)

    def _fetch(self, count: int) -> None:
        start, stop = self._position, min(self._position + count, self._stop)
        self._start, self._block = start, memoryview(b"")
        if start >= stop:
            return
        with store_errors(self._url):
            result = self._get(_split(self._url)[2], options={"range": (start, stop)})
            self._check(version_of(result.meta))
            block = memoryview(result.bytes())
        if len(block) != stop - start:
            reason = f"the store sent {len(block)} of {stop - start} bytes; run again"
            raise StoreError(errno.EIO, reason, self._url)
        self._block = block

    def _check(self, version: str) -> None:
        if version != self._version:
            raise ValueError(f"{self._url} has changed since it was planned ({self._version} to {version}); run again")


def version_of(item: Any) -> str:
    """Return a text from an object's metadata that changes with its content."""
    # Some of Azure's answers have quotes around the ETag, others do not.
    return item["e_tag"].strip('"') if item["e_tag"] else str(item["last_modified"].isoformat())


def stored_object(url: str, item: Any) -> StoredObject:
    """Return an object as the store describes it."""
    return StoredObject(url, item["size"], version_of(item))


def _split(url: str) -> tuple[str, str, str]:
    """Return the scheme, the bucket or host, and the key of a URL."""
    match = _URL.match(url)
    if match is None or match[1] not in SCHEMES or not match[2]:
        expected = ", ".join(f"{scheme}://" for scheme in SCHEMES)
        raise ValueError(f"{url} cannot be read; expected a local path, or a bucket or host behind {expected}")
    web = match[1].startswith("http")
    if web and re.search(r"[?#]", match[3]):
        raise ValueError(f"{url} has a query or fragment; expected a plain URL: download objects that need signed URLs")
    if re.search("(^|/)/", match[3]):
        raise ValueError(f"{url} has an empty name between two slashes; expected names of folders")
    return match[1], match[2], unquote(match[3]) if web else match[3]


def open_store(url: str) -> tuple[Any, str, str]:
    """Return the client of a URL's store, the URL of the store, and the key.

    Raises:
        ValueError: If the URL is not one that can be read.
        RuntimeError: If this process was forked from one that had read before.
    """
    scheme, place, key = _split(url)
    base = f"{scheme}://{place}"
    _require_unforked()
    _import_client()
    with store_errors(url):
        return _client(base, os.getpid()), base, key


_importing = threading.Lock()


def _import_client() -> None:
    """Import all of obstore at once: two threads that start with two of its modules could find them half loaded."""
    require("remote", "obstore")
    with _importing:
        import obstore.exceptions
        import obstore.store  # noqa: F401


_runtime_process: int | None = None  # the process in which obstore has its threads


def _require_unforked() -> None:
    """Raise an error instead of waiting forever: a forked process has no copy of obstore's threads."""
    global _runtime_process
    if _runtime_process not in (None, os.getpid()):
        raise RuntimeError(
            "this process was forked from one that had read from an object store, whose client does not survive a "
            "fork; spawn workers instead, as with DataLoader(..., multiprocessing_context='spawn')"
        )
    _runtime_process = os.getpid()


@lru_cache(maxsize=64)
def _client(base: str, process: int) -> Any:
    """Return one client per store and process, because its threads do not survive a fork."""
    from obstore.store import HTTPStore, from_url

    retry: dict[str, Any] = {"max_retries": RETRIES, "retry_timeout": RETRY_TIMEOUT}
    if base.startswith("http"):
        client = {"allow_http": base.startswith("http://")}
        return HTTPStore.from_url(base, client_options=client, retry_config=retry)
    # Other client options (AWS_ALLOW_HTTP, ...) come from the environment. Passing options here would hide them.
    return from_url(base, retry_config=retry)


@contextmanager
def store_errors(url: str) -> Iterator[None]:
    """Turn errors of obstore into a `StoreError` of one line with the URL and a remedy."""
    _import_client()
    from obstore.exceptions import BaseError, NotSupportedError, PermissionDeniedError, UnauthenticatedError

    try:
        yield
    except StoreError:
        raise
    except (BaseError, OSError) as error:
        code = errno.EIO
        text = str(error).partition("\n\nDebug source")[0]
        if isinstance(error, FileNotFoundError) or "NoSuchBucket" in text:
            code = errno.ENOENT
        elif isinstance(error, (PermissionDeniedError, UnauthenticatedError, PermissionError)):
            code = errno.EACCES
        elif isinstance(error, NotSupportedError):
            code = errno.ENOTSUP
        elif _NO_CREDENTIALS.search(text):
            code, text = errno.EACCES, f"no credentials were found ({text})"
        message = re.search(r"<Message>(.*?)</Message>", text, re.DOTALL)
        reason = " ".join((message[1] if message else re.sub(r"<[^>]*>", " ", text)).split()).rstrip(".")
        raise StoreError(code, f"{reason}; {_WAY_OUT[code]}", url) from error
