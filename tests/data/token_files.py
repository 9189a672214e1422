"""Files of tokens of every kind for tests, written byte by byte as their formats define."""

import dataclasses
import json
import struct

import numpy as np

from pycooldown.data import token_sources
from pycooldown.data.token_shard_writer import write_token_shard
from pycooldown.data.token_shards import FORMAT

EOS = 3


def make_documents(lengths, seed=0):
    """Return documents that end with EOS and whose ids fit into every dtype."""
    rng = np.random.default_rng([seed, len(lengths)])
    return [np.append(rng.integers(4, 128, length - 1), EOS) for length in lengths]


def write_folder(folder, domains, vocabulary_size=128, block_tokens=50):
    """Write a folder as `pycooldown tokenize` does, from {domain: {split: [documents of the first shard, ...]}}."""
    manifest = {
        "format": FORMAT,
        "tokenizer": {"file": "tokenizer.json", "vocabulary_size": vocabulary_size, "eos_id": 3, "bos_id": None},
        "domains": {},
    }
    for domain, splits in domains.items():
        (folder / domain).mkdir()
        manifest["domains"][domain] = {}
        for split, shards in splits.items():
            entry = {"documents": 0, "tokens": 0, "characters": 0, "bytes": 0, "shards": {}}
            for number, documents in enumerate(shards):
                name = f"{domain}/{split}-{number:06d}.tar"
                record = dataclasses.asdict(
                    write_token_shard(folder / name, documents, vocabulary_size, block_tokens=block_tokens)
                )
                del record["empty_documents"]
                entry["shards"][name] = record
                entry["documents"] += record["documents"]
                entry["tokens"] += record["tokens"]
            manifest["domains"][domain][split] = entry
    (folder / "tokenizer.json").write_text("{}")
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def write_prepared(folder, documents, dtype):
    """Write two shards of small blocks."""
    half, vocabulary = len(documents) // 2, 1 << (8 * np.dtype(dtype).itemsize)
    paths = [folder / "0.tar", folder / "1.tar"]
    for path, part in zip(paths, (documents[:half], documents[half:])):
        write_token_shard(path, part, vocabulary, block_tokens=7)
    return paths


def write_megatron(folder, documents, dtype):
    """Write documents of one or two sequences, with the codes of dtypes of Megatron-LM's `indexed_dataset.py`."""
    pieces = [piece for document in documents for piece in (document[:2], document[2:])]
    lengths = [len(piece) for piece in pieces]
    pointers = np.cumsum([0, *lengths[:-1]]) * np.dtype(dtype).itemsize
    (folder / "m.bin").write_bytes(np.concatenate([*documents, []]).astype(dtype).tobytes())
    code = {"uint8": 1, "int8": 2, "int16": 3, "int32": 4, "int64": 5, "uint16": 8}[np.dtype(dtype).name]
    (folder / "m.idx").write_bytes(
        b"MMIDIDX\0\0"
        + struct.pack("<QBQQ", 1, code, len(pieces), len(documents) + 1)
        + np.array(lengths, "<i4").tobytes()
        + pointers[: len(pieces)].astype("<i8").tobytes()
        + np.arange(0, 2 * len(documents) + 1, 2, dtype="<i8").tobytes()
    )
    return token_sources.megatron(folder / "m")


def write_datatrove(folder, documents, dtype):
    tokens = np.concatenate([*documents, []]).astype(dtype)
    (folder / "d.ds").write_bytes(tokens.tobytes())
    (folder / "d.ds.index").write_bytes(np.cumsum([len(d) for d in documents]).astype("<u8").tobytes())
    (folder / "d.ds.metadata").write_text(f"gpt2|{tokens.itemsize}\n{len(tokens)}\n0 T")
    return token_sources.datatrove(folder / "d.ds")


def write_flat(folder, documents, dtype):
    np.concatenate([*documents, []]).astype(dtype).tofile(folder / "f.bin")
    return token_sources.flat(folder / "f.bin", dtype, eos_id=EOS)


def write_npy(folder, documents, dtype):
    np.save(folder / "f.npy", np.concatenate([*documents, []]).astype(dtype))
    return token_sources.flat(folder / "f.npy", dtype, eos_id=EOS)


def write_llm_c(folder, documents, dtype):
    tokens = np.concatenate([*documents, []]).astype(dtype)
    header = np.zeros(256, "<i4")
    header[:3] = {2: 20240520, 4: 20240801}[tokens.itemsize], 1, len(tokens)
    (folder / "l.bin").write_bytes(header.tobytes() + tokens.tobytes())
    return token_sources.llm_c(folder / "l.bin", eos_id=EOS)


def write_litdata(folder, documents, dtype):
    """Write chunks of at most three items."""
    code = {"uint8": 11, "int8": 12, "int16": 13, "int32": 15, "int64": 17, "uint16": 20}[np.dtype(dtype).name]
    chunks = []
    for number, part in enumerate(documents[i : i + 3] for i in range(0, len(documents), 3)):
        items = [np.asarray(document, dtype).tobytes() for document in part]
        offsets = 4 * (len(items) + 2) + np.cumsum([0, *map(len, items)])
        content = struct.pack(f"<I{len(offsets)}I", len(items), *offsets) + b"".join(items)
        (folder / f"chunk-0-{number}.bin").write_bytes(content)
        chunks.append({"filename": f"chunk-0-{number}.bin", "chunk_size": len(items), "dim": sum(map(len, part))})
    config = {"data_format": [f"no_header_tensor:{code}"], "compression": None}
    (folder / "index.json").write_text(json.dumps({"chunks": chunks, "config": config}))
    return token_sources.litdata(folder)


KINDS = {
    "prepared-u16": (write_prepared, "uint16"),
    "prepared-u32": (write_prepared, "uint32"),
    "megatron-u8": (write_megatron, "uint8"),
    "megatron-u16": (write_megatron, "uint16"),
    "megatron-i16": (write_megatron, "int16"),
    "megatron-i32": (write_megatron, "int32"),
    "megatron-i64": (write_megatron, "int64"),
    "datatrove-u16": (write_datatrove, "uint16"),
    "datatrove-u32": (write_datatrove, "uint32"),
    "flat-u32": (write_flat, "uint32"),
    "npy-u16": (write_npy, "uint16"),
    "llm.c-u16": (write_llm_c, "uint16"),
    "llm.c-u32": (write_llm_c, "uint32"),
    "litdata-u16": (write_litdata, "uint16"),
    "litdata-i8": (write_litdata, "int8"),
    "litdata-i64": (write_litdata, "int64"),
}
