"""Open token files of other projects for `TokenDataset`, without copying or converting them.

All are little endian. Ends that must be computed (for Megatron-LM, litdata, or from EOS or BOS) take 8 bytes per
document in each process that does not inherit them by a fork; others are mapped.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pycooldown._files import read_bounded, regular_size
from pycooldown.data.publish import MAX_MANIFEST
from pycooldown.data.token_file import MappedEnds, Numbers, TokenFile, one_block, read_array

__all__ = ["datatrove", "flat", "litdata", "llm_c", "megatron"]

_MEGATRON = b"MMIDIDX\0\0"
_MEGATRON_DTYPES = {1: "u1", 2: "i1", 3: "<i2", 4: "<i4", 5: "<i8", 8: "<u2"}
_LLM_C_DTYPES = {20240520: "<u2", 20240801: "<u4"}
_LLM_C_HEADER = 1024  # bytes: 256 int32 numbers
_LITDATA_TENSORS = {11: "u1", 12: "i1", 13: "<i2", 14: "<i2", 15: "<i4", 16: "<i4", 17: "<i8", 18: "<i8", 20: "<u2"}
_LITDATA_ARRAYS = {0: "i1", 1: "<i2", 2: "<i4", 3: "<i8", 4: "u1", 5: "<u2", 6: "<u4"}


def megatron(prefix: str | os.PathLike[str]) -> TokenFile:
    """Open Megatron-LM's (and NeMo's) indexed dataset `prefix.bin` and `prefix.idx`.

    Documents are those of the index, whichever sequences they consist of.

    Raises:
        OSError: If a file cannot be read.
        ValueError: If the index is no index, contradicts itself or does not fit the `.bin`.
    """
    prefix = os.fspath(prefix)
    path = prefix + ".bin"
    size, index_size = regular_size(path), regular_size(prefix + ".idx")
    head = read_array(prefix + ".idx", np.uint8, min(index_size, 34))

    def refuse(reason: str) -> ValueError:
        return ValueError(f"{prefix}.idx is damaged, or not Megatron-LM's index of {path}: {reason}")

    if index_size < 34 or head[:9].tobytes() != _MEGATRON or int(head[9:17].view("<u8")[0]) != 1:
        raise refuse("it does not begin with its name and version 1")
    dtype_code, (sequences, bounds) = int(head[17]), head[18:34].view("<u8").tolist()
    if dtype_code not in _MEGATRON_DTYPES:
        raise refuse(f"dtype code {dtype_code}; expected integers, {sorted(_MEGATRON_DTYPES)}")
    if index_size not in (
        34 + 12 * sequences + 8 * bounds,
        34 + 13 * sequences + 8 * bounds,
    ):  # with modes
        raise refuse(f"it has {index_size} bytes for {sequences} sequences and {bounds} bounds of documents")
    parts = (("<i4", sequences, 34), ("<i8", sequences, 34 + 4 * sequences), ("<i8", bounds, 34 + 12 * sequences))
    lengths, pointers, documents = (
        read_array(prefix + ".idx", dtype, count, offset).astype(np.int64, copy=False) for dtype, count, offset in parts
    )
    dtype = np.dtype(_MEGATRON_DTYPES[dtype_code])
    if (lengths < 0).any() or (pointers < 0).any() or (pointers > size - lengths * dtype.itemsize).any():
        raise refuse("sequences extend beyond the file")
    if not bounds or documents[0] != 0 or documents[-1] != sequences or (np.diff(documents) < 0).any():
        raise refuse("documents do not partition the sequences")
    ends = np.concatenate([[0], np.cumsum(lengths)])
    some = np.flatnonzero(lengths)
    # Sequences mostly follow each other; a block ends where the next sequence lies elsewhere.
    last = np.append(pointers[some[1:]] != (pointers + lengths * dtype.itemsize)[some[:-1]], [True] * bool(len(some)))
    first = np.append([True] * bool(len(some)), last[:-1])
    return TokenFile(
        path=path,
        size=size,
        dtype=dtype,
        tokens=int(ends[-1]),
        block_offsets=pointers[some][first].astype(np.uint64),
        block_ends=ends[some + 1][last].astype(np.uint64),
        ends=ends[documents[1:]].astype(np.uint64),
    )


def datatrove(path: str | os.PathLike[str], dtype: npt.DTypeLike | None = None) -> TokenFile:
    """Open datatrove's tokens `path` (a `.ds`) with its `path.index`.

    Args:
        path: The tokens.
        dtype: Type of the tokens; by default the one in `path.metadata`.

    Raises:
        OSError: If the tokens or the index cannot be read.
        ValueError: If the files do not fit each other, or the dtype is neither given nor in the metadata.
    """
    path = os.fspath(path)
    size, index_size = regular_size(path), regular_size(path + ".index")
    count = None
    if os.path.exists(path + ".metadata"):
        lines = read_bounded(path + ".metadata", MAX_MANIFEST).decode("utf-8", "replace").split("\n")
        width = lines[0].rpartition("|")[2]
        if len(lines) < 2 or width not in ("2", "4") or not lines[1].isdecimal():
            raise ValueError(f"{path}.metadata is damaged; expected tokenizer|2 (or 4) and the number of tokens")
        dtype, count = dtype or f"<u{width}", int(lines[1])
    if dtype is None:
        raise ValueError(f"{path}.metadata is missing; pass dtype='uint16' or 'uint32'")
    if index_size % 8:
        raise ValueError(f"{path}.index has {index_size} bytes; expected 8 for each document: it was cut off")
    tokens = _tokens(path, size, kind := _dtype(dtype))
    if count not in (None, tokens):
        raise ValueError(f"{path} has {tokens} tokens of {kind}, but its metadata says {count}: it was cut off")
    file = TokenFile(**one_block(path, size, kind, 0, tokens), ends=MappedEnds(path + ".index", index_size))
    file.check_last_end()
    return file


def flat(
    path: str | os.PathLike[str],
    dtype: npt.DTypeLike,
    *,
    eos_id: int | None = None,
    bos_id: int | None = None,
    offset: int = 0,
) -> TokenFile:
    """Open tokens that follow each other, as written by dolma, OLMo and nanoGPT, mostly without a header.

    A NumPy header is recognised; its dtype must equal the given one.

    Args:
        path: The tokens, `.bin` or `.npy`.
        dtype: Type of the tokens.
        eos_id: The token that ends documents. The last document may lack it; it ends with the file.
        bos_id: The token that begins documents, instead of `eos_id`. Without either, the file is one document.
        offset: Where the tokens begin, in bytes.

    Raises:
        OSError: If the file cannot be read.
        ValueError: If it does not hold whole tokens of that dtype, or both `eos_id` and `bos_id` are given.
    """
    path = os.fspath(path)
    if eos_id is not None and bos_id is not None:
        raise ValueError("eos_id and bos_id are both given; expected only the one that separates documents")
    size, kind = regular_size(path), _dtype(dtype)
    header = _numpy_header(path)
    if header is not None:
        shape, stored, begin = header
        if offset:
            raise ValueError(f"{path} has a NumPy header; leave out offset")
        if len(shape) != 1 or stored != kind:
            raise ValueError(f"{path} holds {stored} of shape {shape}; expected {kind} in one dimension")
        if size != begin + shape[0] * kind.itemsize:
            raise ValueError(f"{path} has {size} bytes, which do not fit {shape[0]} tokens of {kind}: it was cut off")
        offset = begin
    tokens = _tokens(path, size - offset, kind)
    return _delimited(path, size, kind, offset, tokens, eos_id, bos_id)


def llm_c(path: str | os.PathLike[str], *, eos_id: int | None = None, bos_id: int | None = None) -> TokenFile:
    """Open the tokens of llm.c (and of modded-nanogpt): a header of 256 int32 numbers, then uint16 or uint32.

    Args:
        path: The tokens.
        eos_id: The token that ends documents; see `flat`.
        bos_id: The token that begins documents: 50256 in the GPT-2 files of its own scripts, 128000 in Llama 3's.

    Raises:
        OSError: If the file cannot be read.
        ValueError: If the header is not llm.c's or not of this file.
    """
    path = os.fspath(path)
    size = regular_size(path)
    header = np.fromfile(path, "<i4", 256)
    magic, version, tokens = header[:3].tolist() if len(header) == 256 else (0, 0, 0)
    if magic not in _LLM_C_DTYPES or version != 1:
        raise ValueError(f"{path} is no file of llm.c; expected it to begin with 20240520 or 20240801 and version 1")
    dtype = np.dtype(_LLM_C_DTYPES[magic])
    if tokens < 0 or size != _LLM_C_HEADER + tokens * dtype.itemsize:
        raise ValueError(f"{path} has {size} bytes, which do not fit {tokens} tokens of {dtype}: it was cut off")
    return flat(path, dtype, eos_id=eos_id, bos_id=bos_id, offset=_LLM_C_HEADER)


def litdata(folder: str | os.PathLike[str]) -> list[TokenFile]:
    """Open the chunks written by litdata's `optimize` for its `TokensLoader`. An item is a document.

    Raises:
        OSError: If a file cannot be read.
        ValueError: If the items are not vectors of tokens, are compressed, or a chunk is damaged.
    """
    folder = Path(folder)
    index_path = folder / "index.json"
    try:
        index = json.loads(read_bounded(index_path, MAX_MANIFEST))
        config, chunks = index["config"], [(str(c["filename"]), c["dim"], c["chunk_size"]) for c in index["chunks"]]
        serializer, _, code = config["data_format"][0].partition(":")
        leaves, compression = len(config["data_format"]), config.get("compression")
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError) as error:
        raise ValueError(f"{index_path} is not an index of litdata ({error!r})") from error
    names = {"no_header_tensor": _LITDATA_TENSORS, "no_header_numpy": _LITDATA_ARRAYS}.get(serializer, {})
    if (
        leaves != 1
        or not code.isdecimal()
        or int(code) not in names
        or any(type(dim) is not int for _, dim, _ in chunks)
    ):
        raise ValueError(
            f"{index_path} has items of {config['data_format']}; expected vectors of integers, written "
            "with item_loader=TokensLoader()"
        )
    if compression or config.get("encryption"):
        raise ValueError(
            f"{index_path} states that chunks are compressed or encrypted; write them without compression and "
            "encryption"
        )
    dtype = np.dtype(names[int(code)])
    return [_litdata_chunk(folder, name, dtype, dim, items) for name, dim, items in chunks]


def _litdata_chunk(folder: Path, name: str, dtype: np.dtype[Any], tokens: int, items: Any) -> TokenFile:
    if Path(name).name != name:
        raise ValueError(f"{folder / 'index.json'} names the chunk {name!r}; expected a file in its own folder")
    path = str(folder / name)
    size = regular_size(path)
    head = np.fromfile(path, "<u4", 1)
    fits = len(head) == 1 and int(head[0]) == items and size >= 4 * (items + 2)
    offsets = read_array(path, "<u4", items + 1, 4).astype(np.int64) if fits else head
    whole = fits and offsets[0] == 4 * (len(offsets) + 1) and offsets[-1] == size and (np.diff(offsets) >= 0).all()
    if (
        not whole
        or ((offsets - offsets[0]) % dtype.itemsize).any()
        or (size - int(offsets[0])) // dtype.itemsize != tokens
    ):
        raise ValueError(
            f"{path} is damaged: its header does not describe {items} items with {tokens} tokens of {dtype}"
        )
    ends = ((offsets[1:] - offsets[0]) // dtype.itemsize).astype(np.uint64)
    return TokenFile(**one_block(path, size, dtype, int(offsets[0]), tokens), ends=ends)


def _dtype(dtype: npt.DTypeLike) -> np.dtype[Any]:
    kind = np.dtype(dtype)
    if kind.kind not in "iu" or kind == np.uint64 or kind.byteorder == ">":
        raise ValueError(f"dtype = {dtype!r}; expected int8 to int64 or uint8 to uint32, little endian")
    return kind


def _tokens(path: str, size: int, dtype: np.dtype[Any]) -> int:
    if size < 0 or size % dtype.itemsize:
        raise ValueError(
            f"{path} has {size} bytes of tokens, no multiple of {dtype.itemsize} for {dtype}; it was cut "
            "off, or has another dtype"
        )
    return size // dtype.itemsize


def _numpy_header(path: str) -> tuple[tuple[int, ...], np.dtype[Any], int] | None:
    """Return shape, dtype and size of a NumPy header, if the file begins with one."""
    with open(path, "rb") as file:
        if file.read(6) != np.lib.format.MAGIC_PREFIX:
            return None
        file.seek(0)
        try:
            version = np.lib.format.read_magic(file)[0]
            read = {1: np.lib.format.read_array_header_1_0, 2: np.lib.format.read_array_header_2_0}[version]
            shape, _, dtype = read(file)
        except Exception as error:  # NumPy's parser fails in many ways
            raise ValueError(f"{path} has a damaged NumPy header, or not one of version 1 or 2: {error!r}") from None
        return shape, dtype, file.tell()


def _delimited(
    path: str, size: int, dtype: np.dtype[Any], offset: int, tokens: int, eos_id: int | None, bos_id: int | None
) -> TokenFile:
    """Return a file whose documents end with one token or begin with another."""
    ends: list[Numbers] = []
    separator = eos_id if eos_id is not None else bos_id
    if separator is not None and not 0 <= separator <= np.iinfo(dtype).max:
        raise ValueError(
            f"{'eos_id' if eos_id is not None else 'bos_id'} = {separator} does not fit dtype {dtype}; expected an id "
            "of the tokens in the file"
        )
    if separator is not None and tokens:
        for begin in range(0, tokens, chunk := 1 << 22):
            part = read_array(path, dtype, min(chunk, tokens - begin), offset + begin * dtype.itemsize)
            found = np.flatnonzero(part == separator).astype(np.uint64)
            ends.append(found + np.uint64(begin + (eos_id is not None)))
    ends.append(np.array([tokens], np.uint64))
    every = np.concatenate(ends)
    every = every[(every > 0) & np.append(every[1:] != every[:-1], True)]
    return TokenFile(**one_block(path, size, dtype, offset, tokens), ends=every)
