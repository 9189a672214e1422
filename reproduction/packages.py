"""Monolingual documents of very different sizes, for R8: Debian's package descriptions and Chromium's interface texts.

English and Italian are package descriptions, which `apt-get update` fetches for each language. Chinese and Swahili are
Chromium's interface texts, from the package chromium-l10n. Both are read as data: nothing is installed, and the
system's own lists are left alone. They are as old as the mirror of the system's apt, so the manifest records their
hashes.
"""

from __future__ import annotations

import json
import re
import struct
import subprocess
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import IO, Any

from pycooldown.data.publish import publish, sha256
from reproduction.corpora import default_cache

FORMAT = "pycooldown.packages/1"
MANIFEST = "_packages.json"  # `pycooldown tokenize` ignores names with an underscore
DESCRIBED = ("en", "it")
INTERFACE = {"zh": "zh-CN", "sw": "sw"}  # language -> Chromium's locale
PACKAGE = "chromium-l10n"
STRINGS = 25  # texts of an interface that make one document
MIN_CHARACTERS = 20

_STANZA = re.compile(r"^Description-(?!md5)[\w-]+: (.*(?:\n .*)*)", re.MULTILINE)
_TAG = re.compile(r"</?[a-zA-Z][^<>]{0,300}>")
_LETTERS = re.compile(r"[^\W\d_]")


def read_descriptions(path: Path) -> Iterator[str]:
    """Read the descriptions of packages from a file of apt: a title, then paragraphs.

    A paragraph that occurred in an earlier description is left out: most descriptions of related packages repeat some.
    Descriptions that are not translated yet, which have the mark ``<trans>``, are left out too.
    """
    seen: set[str] = set()
    for found in _STANZA.finditer(path.read_text(encoding="utf-8", errors="replace")):
        title, *lines = found[1].split("\n")
        paragraphs = [title, *"\n".join("" if line == " ." else line[1:] for line in lines).split("\n\n")]
        fresh = [p for p in (" ".join(p.split()) for p in paragraphs) if p and p not in seen]
        seen.update(fresh)
        if "<trans>" not in found[1] and sum(map(len, fresh)) >= MIN_CHARACTERS:
            yield "\n".join(fresh)


def read_interface(archive: IO[bytes], locale: str) -> Iterator[str]:
    """Read the texts of one locale from the files of the package, a tar stream, as documents of `STRINGS` lines.

    Raises:
        ValueError: If the package has no such locale.
    """
    with tarfile.open(fileobj=archive, mode="r|") as tar:
        for member in tar:
            if member.name.endswith(f"/locales/{locale}.pak") and (file := tar.extractfile(member)) is not None:
                break
        else:
            raise ValueError(f"{PACKAGE} has no texts in {locale!r}; use another version of the package")
        texts = [" ".join(_TAG.sub(" ", text).split()) for text in _resources(file.read())]
    fresh = [text for text in dict.fromkeys(texts) if len(_LETTERS.findall(text)) >= 2]
    for start in range(0, len(fresh), STRINGS):
        yield "\n".join(fresh[start : start + STRINGS])


def _resources(content: bytes) -> Iterator[str]:
    """Read the texts of a Chromium pack of version 5: a header, (id, offset) pairs, then the bytes of each resource."""
    if content[:4] != struct.pack("<I", 5):
        raise ValueError(f"expected a pack of version 5 from {PACKAGE}, found bytes {content[:4]!r}")
    (count,) = struct.unpack_from("<H", content, 8)
    offsets = [struct.unpack_from("<I", content, 12 + 6 * i + 2)[0] for i in range(count + 1)]
    for start, end in pairwise(offsets):
        yield content[start:end].decode("utf-8", errors="replace")


def fetch(cache: Path) -> tuple[dict[str, Path], Path]:
    """Fetch descriptions by language and the package, from the sources of the system's apt.

    Raises:
        RuntimeError: If apt is missing or fails, or has no descriptions in a language.
    """
    lists, downloads = cache / "apt-lists", cache / "apt-packages"
    (lists / "partial").mkdir(parents=True, exist_ok=True)
    downloads.mkdir(parents=True, exist_ok=True)
    options = {
        "Dir::State::lists": str(lists.resolve()),
        "Acquire::GzipIndexes": "false",
        "Acquire::Languages": ",".join(DESCRIBED),
        "Debug::NoLocking": "true",
    }
    flags = [f"-o{name}={value}" for name, value in options.items()]
    for command in (["update"], ["download", PACKAGE]):
        try:
            subprocess.run(["apt-get", "-q", *flags, *command], cwd=downloads, check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError) as error:
            said = getattr(error, "stderr", None) or b""
            raise RuntimeError(
                f"apt-get {command[0]} failed ({error}): {said.decode(errors='replace')[-300:]}; this corpus needs a "
                "Debian system with network access; `python -m reproduction blocks` accepts any other corpus"
            ) from error
    described = {}
    for language in DESCRIBED:
        found = sorted(lists.glob(f"*_main_i18n_Translation-{language}"), key=lambda path: path.stat().st_size)
        if not found:
            raise RuntimeError(f"apt has no descriptions of packages in {language!r}; check its sources")
        described[language] = found[-1]  # the release itself: updates are smaller
    return described, max(downloads.glob(f"{PACKAGE}_*.deb"), key=lambda path: path.stat().st_mtime)


def build_packages(out: Path, *, cache: Path | None = None) -> Mapping[str, Mapping[str, int]]:
    """Fetch the documents and write ``out/<language>.jsonl``, which `pycooldown tokenize` reads as one domain each.

    Returns:
        ``{language: {"documents": n, "characters": n}}``.

    Raises:
        RuntimeError: If apt is missing or fails.
        ValueError: If the package lacks the expected texts; ``out`` is then as before.
        OSError: If dpkg-deb is missing, or ``out`` cannot be written; ``out`` is then as before.
    """
    described, package = fetch(cache or default_cache())
    inputs = {path.name: sha256(path) for path in (*described.values(), package)}

    def write(folder: Path) -> dict[str, Any]:
        counts = {language: _write(folder, language, read_descriptions(path)) for language, path in described.items()}
        for language, locale in INTERFACE.items():
            with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", str(package)], stdout=subprocess.PIPE) as process:
                assert process.stdout is not None
                counts[language] = _write(folder, language, read_interface(process.stdout, locale))
        return {"languages": counts}

    counts: Mapping[str, Mapping[str, int]] = publish(out, MANIFEST, {"format": FORMAT, "inputs": inputs}, write)[
        "languages"
    ]
    return counts


def _write(folder: Path, language: str, documents: Iterable[str]) -> dict[str, int]:
    count = characters = 0
    with open(folder / f"{language}.jsonl", "w", encoding="utf-8") as file:
        for text in documents:
            file.write(json.dumps({"text": text}, ensure_ascii=False) + "\n")
            count, characters = count + 1, characters + len(text)
    return {"documents": count, "characters": characters}
