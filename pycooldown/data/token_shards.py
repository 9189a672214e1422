"""Shards of tokens: what they look like on disk, how one is written and opened.

A prepared folder::

    OUT/manifest.json
    OUT/<domain>/<split>-000000.tar         the tokens
    OUT/<domain>/<split>-000000.tar.ends    where the documents end

**The tar** is an ordinary webdataset shard. A sample is a block of whole documents, 256 Ki tokens or a little
more; a long document makes a long block. Block 7 has two members, little endian:

    00000007.tokens.u16   token ids, uint16 if the vocabulary has at most 65,536 ids; else 00000007.tokens.u32, uint32
    00000007.ends.u32     exclusive ends of its documents, in tokens from the block's start: ascending, the last of
                          them the number of tokens

Documents have at least one token. Times and owners are fixed, so that the same documents give the same bytes.

**The sidecar** makes every document reachable without reading the tar. It is mapped into memory and shared by all
processes. All its numbers are uint64, little endian:

    magic (the bytes "pycdends"), version (1), bytes in a token (2 or 4), blocks, documents, tokens, bytes of the tar, 0
    for each block: offset of its tokens in the tar in bytes, exclusive end in tokens from the shard's start
    for each document: exclusive end in tokens from the shard's start

It follows from the tar alone, so one that is missing is made again.

**The manifest** is a JSON object::

    {"format": "pycooldown.tokens/1",
     "tokenizer": {"file": "tokenizer.json", "vocabulary_size": 50257, "eos_id": 50256, "bos_id": null, ...},
     "domains": {"en": {"train": {"documents": 3000, "tokens": 2000000, "characters": 9000000, "bytes": 9100000,
                                  "shards": {"en/train-000000.tar": {"documents": 3000, "tokens": 2000000,
                                                                     "bytes": 4016640, "sha256": "...",
                                                                     "ends_bytes": 24192, "ends_sha256": "..."}}},
                        "validation": {...}}},
     ...}

`characters` and `bytes` of a split are those of its text, `bytes` of a shard those of its tar. Shards follow each other
in the order of their names. Other keys may be there.
"""

from __future__ import annotations

import contextlib
import os
import tarfile
import tempfile
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, Any

import numpy as np
import numpy.typing as npt

__all__ = ["ENDS_SUFFIX", "FORMAT", "TokenShard", "make_sidecar", "open_token_shard", "temporary"]

FORMAT = "pycooldown.tokens/1"
ENDS_SUFFIX = ".ends"

_MAGIC = int.from_bytes(b"pycdends", "little")
_VERSION = 1
_HEADER = 8  # numbers
_U64 = np.dtype("<u8")


@dataclass(frozen=True)
class TokenShard:
    """A shard that was opened; its arrays are maps of the sidecar.

    Attributes:
        path: The tar.
        dtype: Of the tokens, uint16 or uint32, little endian.
        tokens: Number of tokens.
        size: Bytes of the tar.
        block_offsets: Where the tokens of each block begin in the tar, in bytes; uint64 of shape (blocks,).
        block_ends: Exclusive end of each block in tokens from the shard's start; uint64 of shape (blocks,).
        ends: Exclusive end of each document in tokens from the shard's start; uint64 of shape (documents,).
    """

    path: str
    dtype: np.dtype[Any]
    tokens: int
    size: int
    block_offsets: npt.NDArray[np.uint64]
    block_ends: npt.NDArray[np.uint64]
    ends: npt.NDArray[np.uint64]


def open_token_shard(path: str | os.PathLike[str]) -> TokenShard:
    """Open a shard: map its sidecar, which is made again where it is missing, and check it against the tar.

    The ends of the documents are only mapped, not read; whoever reads them must be ready for damage.

    Raises:
        OSError: If the shard cannot be read.
        ValueError: If the tar is no shard of tokens or was cut off, or the sidecar is damaged or another tar's.
    """
    path, sidecar = os.fspath(path), os.fspath(path) + ENDS_SUFFIX
    size = os.stat(path).st_size
    if os.path.exists(sidecar):
        content = np.memmap(sidecar, np.uint8, "r") if os.path.getsize(sidecar) else np.empty(0, np.uint8)
    else:
        scanned = _scan(path)
        # A read-only data folder is no reason to stop: the sidecar in memory serves as well.
        with contextlib.suppress(PermissionError), temporary(sidecar) as (file, name):
            file.write(scanned)
            file.flush()
            os.replace(name, sidecar)
        content = np.frombuffer(scanned, np.uint8)
    try:
        return _parse(path, size, content)
    except ValueError as error:
        raise ValueError(f"{sidecar}: {error}; if the tar is whole, delete this file, and it is made again") from None


@contextlib.contextmanager
def temporary(path: str) -> Iterator[tuple[IO[bytes], str]]:
    """A new file beside `path` and its name, which is removed at the end unless it was renamed."""
    descriptor, name = tempfile.mkstemp(dir=os.path.dirname(path) or ".", prefix=os.path.basename(path) + ".")
    try:
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(descriptor, 0o644)
            yield file, name
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)


def make_sidecar(dtype: np.dtype[Any], table: array[int], ends: array[int], size: int) -> bytes:
    """The content of a sidecar.

    Args:
        dtype: Of the tokens.
        table: Offset in bytes and exclusive end in tokens of one block after the other.
        ends: Exclusive ends of the documents.
        size: Bytes of the tar.
    """
    itemsize = dtype.itemsize if ends else 2  # a tar without blocks does not know
    header = [_MAGIC, _VERSION, itemsize, len(table) // 2, len(ends), ends[-1] if ends else 0, size, 0]
    return b"".join(np.asarray(numbers, _U64).tobytes() for numbers in (header, table, ends))


def _parse(path: str, size: int, content: npt.NDArray[np.uint8]) -> TokenShard:
    if content.size < 8 * _HEADER or content.size % 8:
        raise ValueError(f"has {content.size} bytes; expected a header of {8 * _HEADER} and 8 for each number")
    numbers = content.view(_U64)
    magic, version, itemsize, blocks, documents, tokens, shard_size, _ = numbers[:_HEADER].tolist()
    if magic != _MAGIC or version != _VERSION:
        raise ValueError(f"is not a sidecar of version {_VERSION}")
    if itemsize not in (2, 4) or numbers.size != _HEADER + 2 * blocks + documents:
        raise ValueError(f"is damaged: {numbers.size} numbers for {blocks} blocks and {documents} documents")
    if shard_size != size:
        raise ValueError(f"is of a tar of {shard_size} bytes, but {path} has {size}: it was cut off or replaced")
    table = numbers[_HEADER : _HEADER + 2 * blocks].reshape(-1, 2)
    offsets, block_ends, ends = table[:, 0], table[:, 1], numbers[_HEADER + 2 * blocks :]
    lengths = np.diff(block_ends, prepend=_U64.type(0))
    # Unsigned numbers wrap around, so each sum is checked only after its parts.
    whole = bool((block_ends <= tokens).all() and (block_ends[1:] > block_ends[:-1]).all() and (offsets <= size).all())
    whole = whole and tokens <= size and bool((offsets + lengths * _U64.type(itemsize) <= size).all())
    whole = whole and (int(block_ends[-1]) if blocks else 0) == (int(ends[-1]) if documents else 0) == tokens
    if not whole:
        raise ValueError("is damaged: its blocks do not lie in the tar, or their tokens are not those of its documents")
    return TokenShard(path, np.dtype(f"<u{itemsize}"), tokens, size, offsets, block_ends, ends)


def _scan(path: str) -> bytes:
    """The sidecar that the tar should have."""
    table, ends = array("Q"), array("Q")
    dtypes: set[str] = set()
    end = 0  # of the last member, with its padding

    def refuse(reason: str) -> ValueError:
        return ValueError(f"{path} is no whole shard of tokens: {reason} at byte {end}; write it again")

    try:
        with tarfile.open(path, "r:") as tar:
            members = iter(tar)
            for number, tokens in enumerate(members):
                last = next(members, None)
                dtype = {f"{number:08d}.tokens.u{8 * size}": f"<u{size}" for size in (2, 4)}.get(tokens.name)
                names = last is not None and last.name == f"{number:08d}.ends.u32"
                if dtype is None or last is None or not names or tokens.sparse or last.sparse:
                    raise refuse(f"there is not block {number}")
                file = tar.extractfile(last)
                within = np.frombuffer(file.read() if file else b"", "<u4").astype(np.uint64)
                ascends = len(within) and within[0] > 0 and bool((within[1:] > within[:-1]).all())
                if not ascends or int(within[-1]) * int(dtype[-1]) != tokens.size:
                    raise refuse(f"the documents of block {number} do not end where its tokens do")
                dtypes.add(dtype)
                start = ends[-1] if ends else 0
                ends.frombytes((within + np.uint64(start)).tobytes())
                table.extend((tokens.offset_data, ends[-1]))
                end = last.offset_data + -(-last.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
        with open(path, "rb") as raw:
            raw.seek(end)
            rest = raw.read()
    except tarfile.TarError as error:
        raise refuse(str(error)) from None
    if len(rest) < 2 * tarfile.BLOCKSIZE or any(rest):
        raise refuse("there is no end of a tar")
    if len(dtypes) > 1:
        raise refuse("blocks have tokens of 16 and of 32 bits")
    return make_sidecar(np.dtype(dtypes.pop() if dtypes else "<u2"), table, ends, end + len(rest))
