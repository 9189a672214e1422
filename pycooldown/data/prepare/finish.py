"""Write the manifest of a finished run, and remove everything that it does not list."""

from __future__ import annotations

import errno
import json
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import PurePosixPath
from typing import Any

from pycooldown.data.prepare.plan import MEANWHILE, PLAN, TOKENIZER, Plan, read_json
from pycooldown.data.prepare.records import SPLITS, WORK, Record, record_name, shard_name
from pycooldown.data.prepare.result_folder import ResultFolder
from pycooldown.data.publish import seal
from pycooldown.data.token_shards import ENDS_SUFFIX, FORMAT

MANIFEST = "manifest.json"
_SHARD = re.compile(rf"({'|'.join(SPLITS)})-\d{{6}}\.tar")


def finish(
    output: ResultFolder, plan: Plan, records: Mapping[tuple[str, int], Record], fingerprint: str
) -> dict[str, Any]:
    """Write the manifest, after everything that it names.

    Raises:
        ValueError: If a domain has no documents for training.
        BlockingIOError: If another run has written to the same folder of a store in the meantime.
    """
    domains: dict[str, dict[str, Any]] = {}
    skipped: dict[str, Counter[str]] = {}
    preview: dict[str, list[dict[str, str]]] = {}
    for part in plan.parts:
        record = records[part.domain, part.index]
        splits = domains.setdefault(part.domain, {split: _empty_split() for split in SPLITS})
        for split, entry in splits.items():
            found = record["splits"][split]
            for name in ("documents", "characters", "bytes"):
                entry[name] += found[name]
            entry["tokens"] += found["shard"]["tokens"]
            if found["shard"]["documents"]:
                entry["shards"][shard_name(part, split)] = found["shard"]
        skipped.setdefault(part.domain, Counter()).update(record["skipped"])
        skipped[part.domain]["empty"] += record["empty"]
        preview.setdefault(part.domain, []).extend(record["preview"])
    for domain, splits in domains.items():
        if not splits["train"]["documents"]:
            raise ValueError(
                f"domain {domain!r} has no documents for training ({splits['validation']['documents']} for validation, "
                f"left out: {_shown(skipped[domain])}); leave the domain out, or check its files"
            )
    _check_alone(output, plan, records)
    spec = plan.setup.tokenizer
    tokenizer_files = {name.removeprefix(f"{WORK}/"): name for name in output.names(f"{WORK}/{TOKENIZER}")}
    for name, source in tokenizer_files.items():
        output.write(name, output.read(source))
    manifest: dict[str, Any] = {
        "format": FORMAT,
        "fingerprint": fingerprint,
        "tokenizer": {**asdict(spec), "file": f"{TOKENIZER}/{PurePosixPath(spec.path).name}"},
        "options": asdict(plan.setup.options),
        "domains": domains,
        "left_out": {domain: dict(sorted(counts.items())) for domain, counts in skipped.items()},
        "ignored_files": sorted({PurePosixPath(path).name for path in plan.ignored}),
        "preview": preview,
    }
    del manifest["tokenizer"]["path"]
    manifest = seal(manifest)
    _remove_others(output, plan, manifest, set(tokenizer_files))
    content = (json.dumps(manifest, indent=1, ensure_ascii=False) + "\n").encode()
    if _content(output, MANIFEST) != content:
        output.write(MANIFEST, content)
    return manifest


def _content(output: ResultFolder, name: str) -> bytes | None:
    try:
        return output.read(name)
    except FileNotFoundError:
        return None


def _check_alone(output: ResultFolder, plan: Plan, records: Mapping[tuple[str, int], Record]) -> None:
    """Refuse to publish files that another run has altered, because stores have no locks."""
    stored = {name: version for record in records.values() for name, version in record.get("stored", {}).items()}
    found = output.versions()
    altered = [name for name, version in stored.items() if found.get(name) != version]
    if altered or (read_json(output, PLAN) or {}).get("request") != plan.request:
        reason = (
            f"another run has written {altered[0] if altered else PLAN} meanwhile: two runs cannot share {MEANWHILE}"
        )
        raise BlockingIOError(errno.EWOULDBLOCK, reason, output.location)


def _empty_split() -> dict[str, Any]:
    return {"documents": 0, "tokens": 0, "characters": 0, "bytes": 0, "shards": {}}


def _remove_others(output: ResultFolder, plan: Plan, manifest: dict[str, Any], tokenizer_files: set[str]) -> None:
    """Remove shards and records of earlier plans, and files left by killed processes."""
    shards = {name for splits in manifest["domains"].values() for split in splits.values() for name in split["shards"]}
    records = {record_name(part) for part in plan.parts}
    keep = shards | {name + ENDS_SUFFIX for name in shards} | tokenizer_files | records
    recorded = output.names(f"{WORK}/records")
    domains = sorted({PurePosixPath(name).parent.name for name in recorded})
    below = {name: name.removeprefix(f"{domain}/") for domain in domains for name in output.names(domain)}
    made = [name for name, file in below.items() if _SHARD.match(file)]
    for name in [*recorded, *made, *output.names(TOKENIZER)]:
        if name not in keep:
            output.remove(name)
    for domain in domains:
        output.prune(domain)
        output.prune(f"{WORK}/records/{domain}")


def _shown(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in sorted(counts.items()) if count) or "none"
