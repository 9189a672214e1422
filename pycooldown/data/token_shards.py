"""Shards of tokens: their format on disk, and how to open them.

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
from array import array
from dataclasses import replace
from typing import Any

import numpy as np

from pycooldown._files import regular_size, write_atomically
from pycooldown.data.stores import StoredObject, open_binary
from pycooldown.data.token_file import MappedEnds, Numbers, TokenFile

__all__ = ["ENDS_SUFFIX", "FORMAT", "make_sidecar", "open_stored_shard", "open_token_shard", "scan_token_shard"]

FORMAT = "pycooldown.tokens/1"
ENDS_SUFFIX = ".ends"

_MAGIC = int.from_bytes(b"pycdends", "little")
_VERSION = 1
_HEADER = 8  # numbers
_U64 = np.dtype("<u8")


def open_token_shard(path: str | os.PathLike[str]) -> TokenFile:
    """Open a shard after checking the head of its sidecar against the tar.

    A missing sidecar is made again. Only the last document's end is read; `TokenFile.check` reads all.

    Raises:
        OSError: If the shard cannot be read.
        ValueError: If the tar is no shard of tokens or was cut off, or the sidecar is damaged or belongs to another
            tar.
    """
    path, sidecar = os.fspath(path), os.fspath(path) + ENDS_SUFFIX
    size = regular_size(path)
    try:
        content: MappedEnds | bytes = MappedEnds(sidecar, regular_size(sidecar))
    except FileNotFoundError:
        content = _make_again(path, sidecar)
    try:
        return _parse(path, size, content)
    except ValueError as error:
        raise ValueError(f"{sidecar}: {error}; if the tar is whole, delete this file, and it is made again") from None


def open_stored_shard(shard: StoredObject, sidecar: str) -> TokenFile:
    """Open a shard in a store with a local copy of its sidecar.

    Raises:
        OSError: If the copy cannot be read.
        ValueError: If it is damaged, or belongs to another tar.
    """
    size = os.path.getsize(sidecar)
    try:
        file = _parse(shard.url, shard.size, MappedEnds(sidecar, size))
    except ValueError as error:
        raise ValueError(
            f"{sidecar}, of {shard.url}: {error}; delete this file, and it will be fetched again"
        ) from None
    return replace(file, version=shard.version)


def _make_again(path: str, sidecar: str) -> bytes:
    content = scan_token_shard(path)
    # If the folder is read-only or the disk is full, the sidecar in memory is enough.
    with contextlib.suppress(OSError):
        write_atomically(sidecar, content, durable=False)
    return content


def make_sidecar(dtype: np.dtype[Any], table: array[int], ends: array[int], size: int) -> bytes:
    """Return the content of a sidecar.

    Args:
        dtype: Type of the tokens.
        table: Offset in bytes and exclusive end in tokens, block by block.
        ends: Exclusive ends of the documents.
        size: Bytes of the tar.
    """
    itemsize = dtype.itemsize if ends else 2  # a tar without blocks has no type of tokens
    header = [_MAGIC, _VERSION, itemsize, len(table) // 2, len(ends), ends[-1] if ends else 0, size, 0]
    return b"".join(np.asarray(numbers, _U64).tobytes() for numbers in (header, table, ends))


def _parse(path: str, size: int, content: MappedEnds | bytes) -> TokenFile:
    """Read a sidecar, either a file, of which only the head and the last number are read, or its bytes."""
    total = content.size if isinstance(content, MappedEnds) else len(content)
    if total < 8 * _HEADER or total % 8:
        raise ValueError(f"has {total} bytes; expected a header of {8 * _HEADER} and 8 for each number")

    def numbers(begin: int, end: int) -> Numbers:
        if isinstance(content, MappedEnds):
            return content.read(begin, end)
        return np.frombuffer(content, _U64)[begin:end]

    magic, version, itemsize, blocks, documents, tokens, shard_size, _ = numbers(0, _HEADER).tolist()
    if magic != _MAGIC or version != _VERSION:
        raise ValueError(f"is not a sidecar of version {_VERSION}")
    if itemsize not in (2, 4) or total != 8 * (_HEADER + 2 * blocks + documents):
        raise ValueError(f"is damaged: {total // 8} numbers for {blocks} blocks and {documents} documents")
    if shard_size != size:
        raise ValueError(f"belongs to a tar of {shard_size} bytes, but {path} has {size}: it was cut off or replaced")
    ends_at = _HEADER + 2 * blocks
    table = numbers(_HEADER, ends_at).reshape(-1, 2)
    last = numbers(total // 8 - 1, total // 8).tolist()[0] if documents else 0
    if (int(table[-1, 1]) if blocks else 0) != tokens or last != tokens:
        raise ValueError(f"is damaged: its blocks or its documents do not end at {tokens} tokens")
    return TokenFile(
        path=path,
        size=size,
        dtype=np.dtype(f"<u{itemsize}"),
        tokens=tokens,
        block_offsets=np.array(table[:, 0]),
        block_ends=np.array(table[:, 1]),
        ends=replace(content, offset=8 * ends_at) if isinstance(content, MappedEnds) else numbers(ends_at, total // 8),
    )


def scan_token_shard(path: str) -> bytes:
    """Return the sidecar of a tar, which may be in a store.

    Raises:
        OSError: If the shard cannot be read.
        ValueError: If it is no complete shard of tokens.
    """
    table, ends = array("Q"), array("Q")
    dtypes: set[str] = set()
    end = 0  # end of the last member, with its padding

    def refuse(reason: str) -> ValueError:
        return ValueError(f"{path} is no complete shard of tokens: {reason} at byte {end}; write it again")

    try:
        with open_binary(path) as stream, tarfile.open(fileobj=stream, mode="r:") as tar:
            members = iter(tar)
            for number, tokens in enumerate(members):
                last = next(members, None)
                dtype = {f"{number:08d}.tokens.u{8 * size}": f"<u{size}" for size in (2, 4)}.get(tokens.name)
                names = last is not None and last.name == f"{number:08d}.ends.u32"
                if dtype is None or last is None or not names or tokens.sparse or last.sparse:
                    raise refuse(f"block {number} is missing")
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
        with open_binary(path) as raw:
            raw.seek(end)
            rest = raw.read()
    except tarfile.TarError as error:
        raise refuse(str(error)) from None
    if len(rest) < 2 * tarfile.BLOCKSIZE or any(rest):
        raise refuse("the end of the tar is missing")
    if len(dtypes) > 1:
        raise refuse("some blocks have tokens of 16 bits and others of 32 bits")
    return make_sidecar(np.dtype(dtypes.pop() if dtypes else "<u2"), table, ends, end + len(rest))
