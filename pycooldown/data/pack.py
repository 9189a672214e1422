"""Turn JSONL pairs into webdataset tar shards of token ids, with a SentencePiece model trained on them."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from pycooldown._extras import require
from pycooldown._files import sha256
from pycooldown.data.jsonl import Row, count_rows, read_rows
from pycooldown.data.manifest import FILENAME, FORMAT, Manifest, load_manifest
from pycooldown.data.prepare.sentencepiece_training import BOS, EOS, PAD, train_sentencepiece
from pycooldown.data.publish import STAGING, Progress, publish
from pycooldown.mixture import temperature

require("data", "sentencepiece", "webdataset")

import sentencepiece  # noqa: E402
from webdataset.writer import TarWriter  # noqa: E402

SPLITS = ("train", "validation")


def pack(
    corpus: Path,
    out: Path,
    *,
    domains: Collection[str] | None = None,
    vocabulary_size: int = 4000,
    tau: float = 3.0,
    tokenizer_samples: int = 50_000,
    character_coverage: float = 0.9995,
    domain_tags: bool = True,
    samples_per_shard: int = 4096,
    progress: Progress | None = None,
) -> Manifest:
    """Train a tokenizer on `corpus/<domain>/train.jsonl` and write `out/<domain>/<split>-000000.tar` and so on.

    A sample has two members, `<key>.src.npy` and `<key>.tgt.npy`: vectors of token ids, uint16 (int32 if the vocabulary
    needs it). `src` is BOS, the domain's tag, the pieces, EOS; `tgt` is BOS, the pieces, EOS. So an encoder reads `src`
    and a decoder turns `tgt[:-1]` into `tgt[1:]`, or a language model reads `src` followed by `tgt[1:]`. The tag
    `<2domain>` says which language to translate to (Johnson et al., TACL 2017).

    The tokenizer is a byte-pair model with byte fallback over unnormalised text, so every string can be decoded again.
    Its training sample holds both sides of `tokenizer_samples` pairs, divided over the domains by
    `pycooldown.temperature`; domains that have fewer are repeated.

    The same input gives the same bytes. A second run with the same inputs and options only checks hashes; an
    interrupted or failing one leaves what `out` held before.

    Args:
        corpus: Folder with `<domain>/train.jsonl` and `<domain>/validation.jsonl`, whose lines are objects with the
            strings `key` (letters, digits, `_` and `-`; unique in its file), `src` and `tgt`.
        out: Folder for the result; created if missing.
        domains: The folders of `corpus` to pack; `None` for all.
        vocabulary_size: Number of token ids, including 4 special ones, 256 bytes and the tags.
        tau: Temperature of the tokenizer's training sample; 1 is proportional to the domains, larger is flatter.
        tokenizer_samples: Pairs in that sample.
        character_coverage: Share of its characters with their own piece; the rest are spelt in bytes.
        domain_tags: Whether to put the tag into `src`.
        samples_per_shard: Samples in a tar file, except the last of a split.
        progress: Called as `progress(phase, done, total)` with the phases "read", "tokenizer" and "pack"; the last
            counts samples.

    Returns:
        The manifest of `out`.

    Raises:
        ValueError: If an option is out of range, a domain is unknown or empty, a line is malformed (the message has
            file and line), or the tokenizer cannot be trained.
        OSError: If a file cannot be read or written. Then `out` is unchanged.
    """
    for option, value in {"tokenizer_samples": tokenizer_samples, "samples_per_shard": samples_per_shard}.items():
        if value < 1:
            raise ValueError(f"{option} = {value}; expected at least 1")
    inputs = _inputs(corpus, domains)
    recipe = {
        "format": FORMAT,
        "options": {
            "vocabulary_size": vocabulary_size,
            "tau": tau,
            "tokenizer_samples": tokenizer_samples,
            "character_coverage": character_coverage,
            "domain_tags": domain_tags,
            "samples_per_shard": samples_per_shard,
        },
        "inputs": {domain: {split: sha256(path) for split, path in files.items()} for domain, files in inputs.items()},
        "sentencepiece": sentencepiece.__version__,
    }
    report = progress or (lambda phase, done, total: None)

    def write(folder: Path) -> dict[str, Any]:
        sizes: dict[str, dict[str, int]] = {}
        for domain, files in inputs.items():
            report("read", len(sizes), len(inputs))
            sizes[domain] = {split: count_rows(path) for split, path in files.items()}
        report("read", len(inputs), len(inputs))

        report("tokenizer", 0, 1)
        shares = temperature([size["train"] for size in sizes.values()], tau)
        quotas = {domain: max(1, round(tokenizer_samples * share)) for domain, share in zip(inputs, shares)}
        texts = (text for domain in inputs for text in _sample(inputs[domain]["train"], quotas[domain]))
        tags = {domain: f"<2{domain}>" for domain in inputs} if domain_tags else {}
        model = train_sentencepiece(
            texts, vocabulary_size, character_coverage=character_coverage, control_symbols=list(tags.values())
        )
        (folder / "tokenizer.model").write_bytes(model)
        tokenizer = sentencepiece.SentencePieceProcessor(model_proto=model)
        tag_ids = {domain: tokenizer.piece_to_id(tag) for domain, tag in tags.items()}
        report("tokenizer", 1, 1)

        done, total = 0, sum(sum(size.values()) for size in sizes.values())
        entries: dict[str, dict[str, dict[str, Any]]] = {domain: {} for domain in inputs}
        for domain, files in inputs.items():
            prefix = [BOS, tag_ids[domain]] if domain_tags else [BOS]
            for split, path in files.items():
                entry: dict[str, Any] = {"samples": 0, "src_tokens": 0, "tgt_tokens": 0, "shards": {}}
                rows = read_rows(path)
                while chunk := list(islice(rows, samples_per_shard)):
                    report("pack", done, total)
                    name = f"{domain}/{split}-{len(entry['shards']):06d}.tar"
                    src_tokens, tgt_tokens = _write_shard(folder / name, chunk, tokenizer, prefix)
                    entry["shards"][name] = len(chunk)
                    entry["samples"] += len(chunk)
                    entry["src_tokens"] += src_tokens
                    entry["tgt_tokens"] += tgt_tokens
                    done += len(chunk)
                entries[domain][split] = entry
        report("pack", done, total)
        special = {"pad_id": PAD, "bos_id": BOS, "eos_id": EOS, "tag_ids": tag_ids}
        description = {"file": "tokenizer.model", "vocabulary_size": tokenizer.get_piece_size(), **special}
        return {"tokenizer": description, "domains": entries}

    publish(out, FILENAME, recipe, write)
    return load_manifest(out)


def _inputs(corpus: Path, domains: Collection[str] | None) -> dict[str, dict[str, Path]]:
    """Return the JSONL files of each domain to pack."""
    if (corpus / STAGING).exists():
        raise ValueError(
            f"{corpus / STAGING} exists, so a run that writes {corpus} is active or was interrupted; finish it first"
        )
    found = sorted(path.parent.name for path in corpus.glob("*/train.jsonl"))
    if not found:
        raise ValueError(
            f"{corpus} has no <domain>/train.jsonl; expected a folder with train.jsonl and validation.jsonl per domain"
        )
    for domain in domains if domains is not None else ():
        if domain not in found:
            raise ValueError(f"domains has {domain!r}; expected some of {', '.join(found)}")
    chosen = found if domains is None else sorted(set(domains))
    if not chosen:
        raise ValueError("domains is empty; expected names of folders, or None for all")
    return {domain: {split: corpus / domain / f"{split}.jsonl" for split in SPLITS} for domain in chosen}


def _sample(path: Path, quota: int) -> Iterator[str]:
    """Yield both sides of `quota` rows from the top of the file, starting again if there are fewer."""
    while quota > 0:
        for row in islice(read_rows(path), quota):
            quota -= 1
            yield row["src"]
            yield row["tgt"]


def _write_shard(path: Path, rows: list[Row], tokenizer: Any, prefix: list[int]) -> tuple[int, int]:
    """Write one tar and return the numbers of its `src` and `tgt` tokens."""
    dtype = np.uint16 if tokenizer.get_piece_size() <= 1 << 16 else np.int32
    src_ids, tgt_ids = (tokenizer.encode([row[side] for row in rows]) for side in ("src", "tgt"))
    path.parent.mkdir(exist_ok=True)
    src_tokens = tgt_tokens = 0
    # With fixed times and owners, the same rows give the same bytes.
    with path.open("wb") as file, TarWriter(file, mtime=0, user="", group="") as tar:
        for row, src, tgt in zip(rows, src_ids, tgt_ids):
            arrays = {
                "src.npy": np.array([*prefix, *src, EOS], dtype),
                "tgt.npy": np.array([BOS, *tgt, EOS], dtype),
            }
            tar.write({"__key__": row["key"], **arrays})
            src_tokens += arrays["src.npy"].size
            tgt_tokens += arrays["tgt.npy"].size
    return src_tokens, tgt_tokens
