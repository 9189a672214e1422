"""Records of what a shard was made from and what it contains, as hashes. Nothing else is trusted."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from pycooldown.data.prepare.options import Options
from pycooldown.data.prepare.parts import Part
from pycooldown.data.prepare.readers import hash_range
from pycooldown.data.prepare.result_folder import open_output
from pycooldown.data.prepare.tokenizer_files import TokenizerSpec
from pycooldown.data.stores import is_url
from pycooldown.data.token_shards import ENDS_SUFFIX, FORMAT

Record = dict[str, Any]
SPLITS = ("train", "validation")
WORK = ".prepare"  # folder in an output for records, plan and locks


@dataclass(frozen=True)
class Setup:
    """Values common to all parts.

    Attributes:
        out: The folder of the result, a path or a URL.
        options: What a document is.
        tokenizer: The tokenizer that encodes it.
        chosen: The SHA-256 of the file of digests that are for validation; empty if a share decides.
    """

    out: str
    options: Options
    tokenizer: TokenizerSpec
    chosen: str = ""


def shard_name(part: Part, split: str) -> str:
    """Return the name of a part's shard, relative to the output."""
    return f"{part.domain}/{split}-{part.index:06d}.tar"


def record_name(part: Part) -> str:
    """Return the name of a part's record, relative to the output."""
    return f"{WORK}/records/{part.domain}/{part.index:06d}.json"


def dump_record(record: Record) -> str:
    """Return the content of a record's file."""
    return json.dumps(record, ensure_ascii=False, indent=1)


def part_key(setup: Setup, part: Part) -> str:
    """Return a hash of everything that decides how a part's bytes are read and encoded."""
    tokenizer = asdict(setup.tokenizer)
    del tokenizer["path"]
    options = asdict(setup.options)
    # These two change only the ranges, or the records that were skipped.
    del options["on_error"], options["shard_bytes"]
    ranges = []
    for file_range in part.ranges:
        described = asdict(file_range) | {"path": "", "start": 0, "stop": file_range.stop - file_range.start}
        del described["version"]  # dropped like the path, because a copy of the same bytes is the same input
        ranges.append(described)
    content = {
        "format": FORMAT,
        "options": options,
        "tokenizer": tokenizer,
        "chosen": setup.chosen,
        "part": [part.domain, part.index, ranges],
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def trusted_record(out: str, part: Part, key: str) -> Record | None:
    """Return the record of a part if its key, its input and its shards are unchanged.

    The input is read for its hash, unless it consists of exactly the recorded objects.
    """
    output = open_output(out)
    try:
        record: Record = json.loads(output.read(record_name(part)))
        if record["key"] != key:
            return None
        known, found = record.get("stored", {}), dict[str, str]()
        for split in SPLITS:
            shard, name = record["splits"][split]["shard"], shard_name(part, split)
            recorded = {name: ("bytes", "sha256"), name + ENDS_SUFFIX: ("ends_bytes", "ends_sha256")}
            for file, (size, sha) in recorded.items() if shard["documents"] else ():
                version = output.verify(file, shard[size], shard[sha], known.get(file, ""))
                if version is None:
                    return None
                found |= {file: version} if version else {}
        if found != known:  # the files were copied from elsewhere
            record = {name: value for name, value in record.items() if name != "stored"}
            record |= {"stored": found} if found else {}
            output.write(record_name(part), dump_record(record))
        if (objects := objects_hash(part)) and record.get("objects") == objects:
            return record
        digests = [hashlib.sha256() for _ in part.ranges]
        for file_range, digest in zip(part.ranges, digests):
            hash_range(file_range, digest)
    except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return record if combined(digests) == record["input"] else None


def objects_hash(part: Part) -> str:
    """Return a hash of URLs, ranges and versions of a part's objects; an empty text if it has other files.

    An object's version stands for its bytes: object stores guarantee that, http(s) servers do not.
    """
    objects = [(file_range.path, file_range.start, file_range.stop, file_range.version) for file_range in part.ranges]
    if not all(is_url(path) and not path.startswith("http") for path, *_ in objects):
        return ""
    return hashlib.sha256(json.dumps(objects).encode()).hexdigest()


def combined(digests: Iterable[Any]) -> str:
    """Return one hash of several hashes."""
    return hashlib.sha256(b"".join(digest.digest() for digest in digests)).hexdigest()
