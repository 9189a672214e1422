"""Make the shards and the record of a part of a domain, with a pure function.

The output depends only on the part's bytes, the options and the tokenizer: not on the engine, the number of workers or
earlier runs. The record holds hashes of the input and of the shards. A second call that finds both unchanged does
nothing. Nothing else is trusted.
"""

from __future__ import annotations

import hashlib
import tempfile
from array import array
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pycooldown.data.prepare.encoders import Ids
from pycooldown.data.prepare.formats import Faults
from pycooldown.data.prepare.parts import Part
from pycooldown.data.prepare.readers import read_documents
from pycooldown.data.prepare.records import (
    SPLITS,
    Record,
    Setup,
    combined,
    dump_record,
    objects_hash,
    part_key,
    record_name,
    shard_name,
    trusted_record,
)
from pycooldown.data.prepare.result_folder import name_errors, open_output
from pycooldown.data.prepare.split import validation_test
from pycooldown.data.prepare.tokenizer_files import load_encoder
from pycooldown.data.token_shard_writer import write_token_shard
from pycooldown.data.token_shards import ENDS_SUFFIX

BATCH_BYTES = 1 << 20  # bytes of text per call of the tokenizer, whose memory is about ten times that
BATCH_DOCUMENTS = 1024
PREVIEW_DOCUMENTS, PREVIEW_TOKENS = 2, 64


@dataclass
class _Count:
    documents: int = 0
    characters: int = 0
    bytes: int = 0


class _Tally:
    """Counts, hashes and a preview, collected while a part is read."""

    def __init__(self, setup: Setup, part: Part) -> None:
        self.faults = Faults(setup.options.on_error)
        self.digests = [hashlib.sha256() for _ in part.ranges]
        self.counts = {split: _Count() for split in SPLITS}
        self.preview: list[dict[str, str]] = []
        self.empty = 0


def make_shards(setup: Setup, part: Part) -> Record:
    """Turn a part into its shards and their record, unless both exist as recorded.

    Returns:
        The record: `key`, `input` (SHA-256 of the input's bytes), `splits` with counts and the shard of each, `skipped`
        and `empty` documents and a `preview`. If the input is in object stores, it has `objects`, a hash of its
        versions. If the output is in one, it has `stored`, the versions of the shard's files.

    Raises:
        ValueError: If a record or file is invalid; the message names it.
        OSError: If a file cannot be read or written.
    """
    output = open_output(setup.out)
    key = part_key(setup, part)
    record = trusted_record(setup.out, part, key)
    if record and not (record["skipped"] and setup.options.on_error == "raise"):
        return record
    output.remove(record_name(part))
    tally = _Tally(setup, part)
    with output.workspace() as workspace, name_errors(workspace):
        Path(workspace, part.domain).mkdir(parents=True, exist_ok=True)
        stored: dict[str, str] = {}
        with _Spool(workspace) as validation:

            def train() -> Iterator[Ids]:
                """Yield the training documents, and put those for validation into a temporary file."""
                for split, ids in _tokenized(setup, part, tally):
                    if split == "train":
                        yield ids
                    else:
                        validation.add(ids)

            shards = {}
            for split, documents in (("train", train()), ("validation", validation)):
                shards[split], names = _write(setup, part, split, documents, workspace)
                stored |= output.take(workspace, names)
        record = {
            "key": key,
            "input": combined(tally.digests),
            "splits": {split: asdict(tally.counts[split]) | {"shard": shards[split]} for split in SPLITS},
            "skipped": dict(sorted(tally.faults.skipped.items())),
            "empty": tally.empty,
            "preview": tally.preview,
        }
        if objects := objects_hash(part):
            record["objects"] = objects
        if stored:
            record["stored"] = stored
        output.write(record_name(part), dump_record(record))
    return record


def _tokenized(setup: Setup, part: Part, tally: _Tally) -> Iterator[tuple[str, Ids]]:
    """Yield the split and the tokens of every document."""
    encoder = load_encoder(setup.tokenizer)
    is_validation = validation_test(setup.out, setup.options, setup.chosen)
    ends = (setup.tokenizer.bos_id, setup.tokenizer.eos_id)
    before, after = (np.array([] if id_ is None else [id_], np.uint32) for id_ in ends)
    documents = (
        document
        for file_range, digest in zip(part.ranges, tally.digests)
        for document in read_documents(file_range, setup.options, tally.faults, digest)
    )
    for batch in _batches(documents):
        for (text, data), ids in zip(batch, _encode(encoder.encode, batch, setup.options.max_document_bytes)):
            if not ids.size:
                tally.empty += 1
                continue
            split = SPLITS[is_validation(data)]
            count = tally.counts[split]
            count.documents += 1
            count.characters += len(text)
            count.bytes += len(data)
            if part.index == 0 and len(tally.preview) < PREVIEW_DOCUMENTS:
                shown = encoder.decode(ids[:PREVIEW_TOKENS].tolist())
                tally.preview.append({"text": text[: 4 * PREVIEW_TOKENS], "decoded": shown})
            yield split, np.concatenate((before, ids, after))


def _write(
    setup: Setup, part: Part, split: str, documents: Iterable[Ids], workspace: str
) -> tuple[dict[str, Any], list[str]]:
    """Write a shard, or nothing where there are no documents; return its entry of the record and its files."""
    name = shard_name(part, split)
    names = [name, name + ENDS_SUFFIX]
    path = Path(workspace, name)
    written = asdict(write_token_shard(path, documents, setup.tokenizer.vocabulary_size))
    del written["empty_documents"]
    if not written["documents"]:
        for file in names:
            Path(workspace, file).unlink()
        names = []
    return written, names


def _batches(documents: Iterator[tuple[str, bytes]]) -> Iterator[list[tuple[str, bytes]]]:
    """Yield lists of documents with a bounded number of bytes, so that memory does not grow with the input."""
    batch: list[tuple[str, bytes]] = []
    size = 0
    for document in documents:
        batch.append(document)
        size += len(document[1])
        if size >= BATCH_BYTES or len(batch) == BATCH_DOCUMENTS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _encode(encode: Callable[[list[str]], list[Ids]], batch: list[tuple[str, bytes]], limit: int) -> Iterable[Ids]:
    """Return the ids of every document; those above the limit are encoded in pieces."""
    if all(len(data) <= limit for _, data in batch):
        return encode([text for text, _ in batch])
    ids = []
    for text, data in batch:
        pieces = [text] if len(data) <= limit else cut(text, limit)
        encoded = [encode([piece])[0] for piece in pieces]
        ids.append(encoded[0] if len(encoded) == 1 else np.concatenate(encoded))
    return ids


def cut(text: str, limit: int) -> Iterator[str]:
    """Cut a text into pieces of at most `limit` bytes: before a newline, else before a space, else anywhere."""
    size = limit // 4  # characters, each of at most four bytes
    start = 0
    while len(text) - start > size:
        within = (start + 1, start + size + 1)
        end = text.rfind("\n", *within)
        end = text.rfind(" ", *within) if end < 0 else end
        end = start + size if end < 0 else end
        yield text[start:end]
        start = end
    yield text[start:]


class _Spool:
    """Documents in a temporary file, to be read again from the start."""

    def __init__(self, folder: str) -> None:
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115
        self._lengths = array("Q")

    def __enter__(self) -> _Spool:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def add(self, ids: Ids) -> None:
        self._lengths.append(ids.size)
        self._file.write(ids.tobytes())

    def __iter__(self) -> Iterator[Ids]:
        self._file.seek(0)
        for length in self._lengths:
            yield np.frombuffer(self._file.read(4 * length), np.uint32)
