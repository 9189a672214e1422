"""The token datasets for a recipe's section ``data``, for training and validation."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NamedTuple

from pycooldown._files import open_regular
from pycooldown.data import token_sources
from pycooldown.data.token_file import TokenFile
from pycooldown.data.token_manifest import load_token_manifest
from pycooldown.data.tokens import TokenDataset
from pycooldown.recipes.schema import Data

KINDS = ("megatron", "datatrove", "flat", "llm_c", "litdata")  # functions of `pycooldown.data.token_sources`
_EDGE = 1 << 16


class Found(NamedTuple):
    """Training sequences, validation sequences by domain, and (size of the vocabulary, pad, BOS and EOS ids)."""

    train: TokenDataset
    validation: dict[str, TokenDataset]
    token_ids: tuple[int, int | None, int | None, int | None]


def open_tokens(data: Data, choose: Callable[[Mapping[str, Any]], list[str]], options: dict[str, Any]) -> Found:
    """Open training and validation data.

    Args:
        data: The section, with `path` or `sources`.
        choose: Return the recipe's domains among all, or raise ValueError.
        options: Options of `TokenDataset`.

    Raises:
        OSError: If a file cannot be read.
        ValueError: If a file is damaged, or a source is not described correctly.
    """
    if data.path is not None:
        if data.vocabulary_size is not None:
            raise ValueError(f"data.vocabulary_size is for sources; the tokenizer in {data.path} has its own")
        manifest = load_token_manifest(Path(data.path))
        domains = choose(manifest.domains)
        train = TokenDataset(data.path, domains=domains, **options)
        held = [name for name in domains if manifest.domains[name].get("validation", None)]
        held = [name for name in held if manifest.domains[name]["validation"].documents]
        validation = {name: TokenDataset(data.path, split="validation", domains=[name], **options) for name in held}
        tokenizer = manifest.tokenizer
        ids = (tokenizer["vocabulary_size"], None, tokenizer.get("bos_id"), tokenizer.get("eos_id"))
        return Found(train, validation, ids)
    assert data.sources is not None
    assert data.vocabulary_size is not None  # the schema checks both
    options = {**options, "vocabulary_size": data.vocabulary_size}
    domains = choose(data.sources)
    train = TokenDataset({name: _files(name, data.sources[name]) for name in domains}, **options)
    validation_sources = data.validation_sources or {}
    if unknown := sorted(set(validation_sources) - set(data.sources)):
        raise ValueError(f"data.validation_sources has {unknown[0]!r}, which data.sources lacks")
    validation = {
        name: TokenDataset({name: _files(name, validation_sources[name])}, **options)
        for name in domains
        if name in validation_sources
    }
    return Found(train, validation, (data.vocabulary_size, None, None, None))


def fingerprint(data: Data, files: Mapping[str, list[TokenFile]], validation: Mapping[str, TokenDataset]) -> str:
    """Return a hash of the data.

    For a folder it covers the hashes in its manifest. For other sources it covers the names of domains and, of each
    file, dtype, size, and the first and last 64 KiB.
    """
    digest = hashlib.sha256()
    if data.path is not None:
        manifest = load_token_manifest(Path(data.path))
        for domain, splits in sorted(manifest.domains.items()):
            for split, part in sorted(splits.items()):
                digest.update(repr((domain, split, [(s.sha256, s.ends_sha256) for s in part.shards])).encode())
        tokenizer = {name: value for name, value in manifest.tokenizer.items() if name != "file"}
        digest.update(repr(sorted(tokenizer.items())).encode())
        return digest.hexdigest()
    for of_split in (files, *(dataset.files for dataset in validation.values())):
        for domain, some in of_split.items():
            for file in some:
                digest.update(repr((domain, file.dtype.name, file.size)).encode())
                digest.update(edges(Path(file.path)))
    return digest.hexdigest()


def edges(path: Path) -> bytes:
    """Return the first and last 64 KiB of a file."""
    with open_regular(path) as file:
        first = file.read(_EDGE)
        file.seek(max(0, path.stat().st_size - _EDGE))
        return first + file.read(_EDGE)


def _files(domain: str, given: Any) -> list[str | TokenFile]:
    """Return the files of one domain: paths of shards, and other files opened by `token_sources`."""
    files: list[str | TokenFile] = []
    for one in given if isinstance(given, list) else [given]:
        where = f"data.sources.{domain}"
        if isinstance(one, str):
            files.append(one)
            continue
        kinds = [kind for kind in KINDS if isinstance(one, dict) and kind in one]
        if len(kinds) != 1:
            raise ValueError(
                f"{where} is {one!r}; expected the path of a .tar, or one of {', '.join(KINDS)} with a path, as in "
                "{megatron: data/en_text_document}"
            )
        opener: Any = getattr(token_sources, kinds[0])
        options = {name: value for name, value in one.items() if name != kinds[0]}
        known = list(inspect.signature(opener).parameters)[1:]
        for name in options:
            if name not in known:
                near = get_close_matches(str(name), known, n=2)
                raise ValueError(
                    f"{where}.{name} is unknown; {kinds[0]} takes {', '.join(known) or 'no options'}"
                    + (f"; did you mean {' or '.join(near)}?" if near else "")
                )
        opened = opener(one[kinds[0]], **options)
        files += opened if isinstance(opened, list) else [opened]
    return files
