"""Write the manifest of a finished run, and remove what it does not name."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pycooldown._files import write_atomically
from pycooldown.data.prepare.plan import TOKENIZER, Plan
from pycooldown.data.prepare.records import SPLITS, WORK, Record, record_path, shard_name
from pycooldown.data.token_shards import ENDS_SUFFIX, FORMAT

MANIFEST = "manifest.json"


def publish(folder: Path, plan: Plan, records: Mapping[tuple[str, int], Record], fingerprint: str) -> dict[str, Any]:
    """Write the manifest, after everything that it names."""
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
                f"left out: {_shown(skipped[domain])}); leave it out, or look at its files"
            )
    spec = plan.setup.tokenizer
    target = folder / TOKENIZER
    target.mkdir(exist_ok=True)
    names = {path.name for path in Path(spec.path).parent.iterdir()}
    for name in sorted(names):
        write_atomically(target / name, (Path(spec.path).parent / name).read_bytes())
    manifest: dict[str, Any] = {
        "format": FORMAT,
        "fingerprint": fingerprint,
        "tokenizer": {**asdict(spec), "file": f"{TOKENIZER}/{Path(spec.path).name}"},
        "options": asdict(plan.setup.options),
        "domains": domains,
        "left_out": {domain: dict(sorted(counts.items())) for domain, counts in skipped.items()},
        "ignored_files": sorted({Path(path).name for path in plan.ignored}),
        "preview": preview,
    }
    del manifest["tokenizer"]["path"]
    _remove_others(folder, plan, manifest, names)
    text = json.dumps(manifest, indent=1, ensure_ascii=False) + "\n"
    path = folder / MANIFEST
    if not path.is_file() or path.read_text(encoding="utf-8") != text:
        write_atomically(path, text)
    return manifest


def _empty_split() -> dict[str, Any]:
    return {"documents": 0, "tokens": 0, "characters": 0, "bytes": 0, "shards": {}}


def _remove_others(folder: Path, plan: Plan, manifest: dict[str, Any], tokenizer_files: set[str]) -> None:
    """Remove shards and records of earlier plans, and what killed processes left."""
    shards = {name for splits in manifest["domains"].values() for split in splits.values() for name in split["shards"]}
    keep = shards | {name + ENDS_SUFFIX for name in shards} | {f"{TOKENIZER}/{name}" for name in tokenizer_files}
    records = {record_path(str(folder), part) for part in plan.parts}
    recorded = folder / WORK / "records"
    for domain in [path.name for path in recorded.iterdir()]:
        for path in list((folder / domain).glob("*")) if (folder / domain).is_dir() else []:
            ours = re.match(rf"({'|'.join(SPLITS)})-\d{{6}}\.tar", path.name)
            if ours and f"{domain}/{path.name}" not in keep:
                path.unlink()
        for path in list((recorded / domain).iterdir()):
            if path not in records:
                path.unlink()
        for emptied in (folder / domain, recorded / domain):
            if emptied.is_dir() and not any(emptied.iterdir()):
                emptied.rmdir()
    for path in list((folder / TOKENIZER).iterdir()):
        if f"{TOKENIZER}/{path.name}" not in keep:
            path.unlink()


def _shown(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in sorted(counts.items()) if count) or "none"
