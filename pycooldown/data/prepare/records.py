"""Records: what a shard was made from and what it is, by hashes. Nothing else is trusted."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pycooldown._files import sha256
from pycooldown.data.prepare.options import Options
from pycooldown.data.prepare.parts import Part
from pycooldown.data.prepare.readers import hash_piece
from pycooldown.data.prepare.tokenizer import TokenizerSpec
from pycooldown.data.stores import is_url
from pycooldown.data.token_shards import ENDS_SUFFIX, FORMAT

Record = dict[str, Any]
SPLITS = ("train", "validation")
WORK = ".prepare"  # folder of an output for records, plan and locks


@dataclass(frozen=True)
class Setup:
    """What all parts have in common.

    Attributes:
        out: Folder of the result.
        options: What a document is.
        tokenizer: What it is encoded with.
        chosen: SHA-256 of the file of digests that are for validation; empty if a share decides.
    """

    out: str
    options: Options
    tokenizer: TokenizerSpec
    chosen: str = ""


def shard_name(part: Part, split: str) -> str:
    """Return the name of a part's shard, relative to the output."""
    return f"{part.domain}/{split}-{part.index:06d}.tar"


def record_path(out: str, part: Part) -> Path:
    """Return where the record of a part is."""
    return Path(out, WORK, "records", part.domain, f"{part.index:06d}.json")


def part_key(setup: Setup, part: Part) -> str:
    """Return the hash of all that decides how a part's bytes are read and encoded."""
    tokenizer = asdict(setup.tokenizer)
    del tokenizer["path"]
    options = asdict(setup.options)
    # What these two change is the pieces, or the records that were skipped.
    del options["on_error"], options["shard_bytes"]
    pieces = []
    for piece in part.pieces:
        described = asdict(piece) | {"path": "", "start": 0, "stop": piece.stop - piece.start}
        del described["version"]  # like the path: a copy of the same bytes is the same input
        pieces.append(described)
    content = {
        "format": FORMAT,
        "options": options,
        "tokenizer": tokenizer,
        "chosen": setup.chosen,
        "part": [part.domain, part.index, pieces],
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def trusted_record(out: str, part: Part, key: str) -> Record | None:
    """Return the record of a part if its key, its input and its shards are as recorded.

    The input is read for its hash, unless it is made of the very objects that were recorded.
    """
    try:
        record: Record = json.loads(record_path(out, part).read_bytes())
        if record["key"] != key:
            return None
        for split in SPLITS:
            shard, path = record["splits"][split]["shard"], Path(out, shard_name(part, split))
            if shard["documents"]:
                ends = path.with_name(path.name + ENDS_SUFFIX)
                if sha256(path) != shard["sha256"] or sha256(ends) != shard["ends_sha256"]:
                    return None
            elif path.exists():
                return None
        if (objects := objects_hash(part)) and record.get("objects") == objects:
            return record
        digests = [hashlib.sha256() for _ in part.pieces]
        for piece, digest in zip(part.pieces, digests):
            hash_piece(piece, digest)
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None
    return record if combined(digests) == record["input"] else None


def objects_hash(part: Part) -> str:
    """Return a hash of URLs, ranges and versions of a part's objects; nothing if there are others than such.

    A version stands for the bytes where stores promise that, which servers of http(s) do not.
    """
    objects = [(piece.path, piece.start, piece.stop, piece.version) for piece in part.pieces]
    if not all(is_url(path) and not path.startswith("http") for path, *_ in objects):
        return ""
    return hashlib.sha256(json.dumps(objects).encode()).hexdigest()


def combined(digests: Iterable[Any]) -> str:
    """Return one hash of several."""
    return hashlib.sha256(b"".join(digest.digest() for digest in digests)).hexdigest()
