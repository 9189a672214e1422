"""Write shards of tokens; `pycooldown.data.token_shards` describes their format."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import tarfile
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from pycooldown._files import open_atomically, write_atomically
from pycooldown.data.token_shards import ENDS_SUFFIX, make_sidecar

__all__ = ["BLOCK_TOKENS", "TokenShardRecord", "write_token_shard"]

BLOCK_TOKENS = 1 << 18
_MAX_BLOCK = (1 << 32) - 1  # ends within a block are uint32


@dataclass(frozen=True)
class TokenShardRecord:
    """The numbers and hashes of a written shard; the manifest needs all except `empty_documents`.

    Attributes:
        documents: Number of documents.
        tokens: Number of tokens.
        bytes: Size of the tar.
        sha256: SHA-256 of the tar, hexadecimal.
        ends_bytes: Size of the sidecar.
        ends_sha256: SHA-256 of the sidecar, hexadecimal.
        empty_documents: Number of documents without tokens, which were left out.
    """

    documents: int
    tokens: int
    bytes: int
    sha256: str
    ends_bytes: int
    ends_sha256: str
    empty_documents: int


def write_token_shard(
    path: str | os.PathLike[str],
    documents: Iterable[Sequence[int] | npt.NDArray[Any]],
    vocabulary_size: int,
    *,
    block_tokens: int = BLOCK_TOKENS,
) -> TokenShardRecord:
    """Write documents as one shard and its sidecar.

    The same documents give the same bytes. At most one block, and 8 bytes per document, are held in memory. Both files
    are written under temporary names and then renamed, so a shard is complete or does not exist. Documents without
    tokens are left out and counted. A shard without documents is valid.

    Args:
        path: Where to write the tar; its folder must exist. The sidecar is `path` with ".ends" behind it.
        documents: Token ids, one document each, BOS and EOS included.
        vocabulary_size: Number of token ids, which decides between uint16 and uint32.
        block_tokens: A block is closed when it has at least as many tokens.

    Raises:
        ValueError: If an id is not in [0, vocabulary_size), a document is not a list of integers or has 2^32 tokens or
            more, or an option is out of range. The message has the number of the document.
        OSError: If a file cannot be written. Then an earlier shard is unchanged.
    """
    if not 1 <= vocabulary_size <= 1 << 32:
        raise ValueError(f"vocabulary_size = {vocabulary_size}; expected 1 to 2^32 token ids")
    if not 1 <= block_tokens <= _MAX_BLOCK:
        raise ValueError(f"block_tokens = {block_tokens}; expected 1 to {_MAX_BLOCK}")
    path = os.fspath(path)
    path, sidecar = os.fspath(path), os.fspath(path) + ENDS_SUFFIX
    dtype = np.dtype("<u2" if vocabulary_size <= 1 << 16 else "<u4")
    with open_atomically(path) as tar_file:
        blocks = _Blocks(tar_file, dtype, vocabulary_size)
        waiting: list[npt.NDArray[Any]] = []
        size = first = empty = 0
        for number, document in enumerate(documents):
            waiting.append(_checked(document, number))
            empty += not len(waiting[-1])
            size += len(waiting[-1])
            if size >= block_tokens:
                blocks.add(waiting, first)
                waiting, size, first = [], 0, number + 1
        if size:
            blocks.add(waiting, first)
        blocks.close()
        content = make_sidecar(dtype, blocks.table, blocks.ends, blocks.file.size)
        # Remove it first, so that the new tar is never beside an old sidecar. A missing sidecar is made again.
        with contextlib.suppress(FileNotFoundError):
            os.unlink(sidecar)
    write_atomically(sidecar, content)
    return TokenShardRecord(
        documents=len(blocks.ends),
        tokens=blocks.ends[-1] if blocks.ends else 0,
        bytes=blocks.file.size,
        sha256=blocks.file.digest.hexdigest(),
        ends_bytes=len(content),
        ends_sha256=hashlib.sha256(content).hexdigest(),
        empty_documents=empty,
    )


class _Blocks:
    """A writer of the tar's members that collects the sidecar's data."""

    def __init__(self, file: IO[bytes], dtype: np.dtype[Any], vocabulary_size: int) -> None:
        self.file = _Hashed(file)
        self.dtype = dtype
        self.vocabulary_size = vocabulary_size
        self.table, self.ends = array("Q"), array("Q")
        self._tar = tarfile.open(fileobj=self.file, mode="w", format=tarfile.USTAR_FORMAT)  # type: ignore[call-overload]  # noqa: SIM115
        self.close = self._tar.close

    def add(self, documents: list[npt.NDArray[Any]], first: int) -> None:
        """Write a block; `first` is the number of its first document."""
        tokens = np.concatenate(documents)
        lengths = np.array([len(document) for document in documents])
        if len(tokens) > _MAX_BLOCK:
            raise ValueError(
                f"document {first + int(lengths.argmax())} makes a block of {len(tokens)} tokens; "
                f"expected at most {_MAX_BLOCK}: split it"
            )
        if tokens.min() < 0 or tokens.max() >= self.vocabulary_size:
            at = int(((tokens < 0) | (tokens >= self.vocabulary_size)).argmax())
            number = first + int(np.searchsorted(np.cumsum(lengths), at, "right"))
            raise ValueError(
                f"document {number} has token id {tokens[at]}; expected ids in [0, {self.vocabulary_size})"
            )
        within = np.cumsum(lengths[lengths > 0], dtype=np.uint64)
        start, number = self.ends[-1] if self.ends else 0, len(self.table) // 2
        self.ends.frombytes((within + np.uint64(start)).tobytes())
        self.table.extend((self._tar.offset + tarfile.BLOCKSIZE, self.ends[-1]))
        self._member(f"{number:08d}.tokens.u{8 * self.dtype.itemsize}", tokens.astype(self.dtype))
        self._member(f"{number:08d}.ends.u32", within.astype("<u4"))

    def _member(self, name: str, content: npt.NDArray[Any]) -> None:
        info = tarfile.TarInfo(name)  # owner and time are 0 and empty
        info.size = content.nbytes
        self._tar.addfile(info, io.BytesIO(content.data))


class _Hashed:
    """A file that tarfile writes sequentially, with its size and hash so far."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file
        self.size = 0
        self.digest = hashlib.sha256()

    def write(self, content: bytes) -> int:
        self.digest.update(content)
        self.size += len(content)
        return self.file.write(content)

    def tell(self) -> int:
        return self.size


def _checked(document: Sequence[int] | npt.NDArray[Any], number: int) -> npt.NDArray[Any]:
    ids = np.asarray(document)
    if ids.ndim != 1 or (ids.dtype.kind not in "iu" and len(ids)):
        raise ValueError(
            f"document {number} is {ids.ndim}-dimensional with dtype {ids.dtype}; expected a vector of integers"
        )
    return ids.astype(np.int64) if ids.dtype.kind not in "iu" or ids.dtype == np.uint64 else ids
