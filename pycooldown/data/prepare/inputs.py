"""Find the files of each domain."""

from __future__ import annotations

import glob
import json
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pycooldown.data.shard_lists import group_by_domain
from pycooldown.data.store_lists import glob_objects, list_objects
from pycooldown.data.stores import StoredObject, find_object, is_url, open_binary

InputPaths = Mapping[str, "str | os.PathLike[str] | Iterable[str | os.PathLike[str]]"]

FORMATS = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".txt": "text",
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".tar": "tar",
}
COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}
COLUMNAR = ("parquet", "arrow")
RESERVED = ("tokenizer", "manifest.json")
PATTERN = "domain=pattern, as in en='data/en/*.jsonl'"
EXPECTED = ".jsonl, .json, .txt and .tar (also with .gz or .zst behind), .parquet and .arrow"


@dataclass(frozen=True)
class InputFile:
    """A file of documents.

    Attributes:
        path: A path or a URL.
        format: `"jsonl"`, `"json"`, `"text"`, `"parquet"`, `"arrow"` or `"tar"`.
        compression: `"gzip"`, `"zstd"` or `""`.
        size: The size in bytes.
        version: A text that changes with the content: the time of the last change in ns, or an object's version.
    """

    path: str
    format: str
    compression: str
    size: int
    version: str


def parse_inputs(arguments: Iterable[str]) -> dict[str, list[str]]:
    """Return the patterns of each domain in command-line arguments.

    Args:
        arguments: Either texts `domain=pattern`, where a domain may be repeated, or one folder or YAML file. The folder
            may be in an object store and has a subfolder or a file for each domain. A YAML file maps domains to
            patterns, relative to its own folder.

    Raises:
        ValueError: If the arguments are of neither form.
    """
    arguments = list(arguments)
    if len(arguments) == 1 and is_url(arguments[0]):
        return _from_store(arguments[0].rstrip("/"))
    if len(arguments) == 1 and ("=" not in arguments[0] or os.path.exists(arguments[0])):
        path = Path(arguments[0])
        if path.suffix in (".yaml", ".yml"):
            return _from_yaml(path)
        if path.is_dir():
            return _from_folder(path)
        raise ValueError(f"input {arguments[0]!r} is no folder and no YAML file; expected {PATTERN}")
    return group_by_domain(arguments, "input", PATTERN)


def find_files(inputs: InputPaths) -> tuple[dict[str, list[InputFile]], list[str]]:
    """Return the files of each domain, ordered by path, and the files of folders that were ignored.

    A pattern is a file, a glob (`**` for any depth), or a folder. A folder stands for all files of known formats under
    it, except hidden ones and those that start with an underscore; a Hugging Face dataset folder (`save_to_disk`)
    stands for its Arrow files. Each may be in an object store (see :mod:`pycooldown.data.stores`); http(s) has only
    files.

    Raises:
        ValueError: If there is no domain, a domain cannot be a folder's name, a pattern matches nothing or a file has
            an unknown format.
        OSError: If an object store does not answer, or denies access.
    """
    if not inputs:
        raise ValueError("inputs is empty; expected patterns of files by domain")
    found: dict[str, list[InputFile]] = {}
    ignored: list[str] = []
    for domain, patterns in inputs.items():
        if not re.fullmatch(r"\w[\w.+-]*", domain) or domain in RESERVED:
            raise ValueError(
                f"domain {domain!r} cannot be the name of a folder here; expected letters, digits, '_', '-', '+' and "
                f"'.', and none of {', '.join(RESERVED)}"
            )
        if isinstance(patterns, (str, os.PathLike)):
            patterns = [patterns]
        paths: dict[str, InputFile] = {}
        for pattern in patterns:
            for file in _matches(domain, os.fspath(pattern), ignored):
                paths[file.path] = file
        found[domain] = [paths[path] for path in sorted(paths)]
    return found, ignored


def _matches(domain: str, pattern: str, ignored: list[str]) -> list[InputFile]:
    if is_url(pattern):
        files, matched = _objects(pattern, ignored)
    else:
        matches = [pattern] if os.path.exists(pattern) else sorted(glob.glob(pattern, recursive=True))
        paths = [path for match in matches for path in (_folder(match, ignored) if os.path.isdir(match) else [match])]
        files, matched = [_input_file(path) for path in paths], bool(matches)
    if not matched:
        raise ValueError(f"input {pattern!r} of domain {domain!r} matches no file")
    if not files:
        raise ValueError(f"input {pattern!r} of domain {domain!r} has no files of known formats ({EXPECTED})")
    return files


def _objects(pattern: str, ignored: list[str]) -> tuple[list[InputFile], bool]:
    """Return the files that match a pattern in a store, and whether it matched anything."""
    if (found := find_object(pattern)) is not None:
        return [_input_object(found)], True
    files, folders = glob_objects(pattern)
    for folder, objects in folders.items():
        files += _stored_folder(folder, {item.url[len(folder) + 1 :]: item for item in objects}, ignored)
    return [_input_object(item) for item in files], bool(files or folders)


def _stored_folder(folder: str, objects: dict[str, StoredObject], ignored: list[str]) -> list[StoredObject]:
    """Return the same as `_folder`, for objects by their names in the folder."""
    if "dataset_dict.json" in objects:
        raise _several_splits(folder, _read_json(f"{folder}/dataset_dict.json"))
    if "state.json" in objects and "dataset_info.json" in objects:
        names = [entry["filename"] for entry in _read_json(f"{folder}/state.json")["_data_files"]]
        if missing := set(names) - set(objects):
            raise ValueError(f"{folder} lacks {min(missing)}, which its state.json names; copy the dataset again")
        return [objects[name] for name in names]
    visible = [item for name, item in objects.items() if not any(n.startswith((".", "_")) for n in name.split("/"))]
    ignored += [item.url for item in visible if not _format(item.url)]
    return [item for item in visible if _format(item.url)]


def _read_json(path: str) -> Any:
    with open_binary(path) as stream:
        return json.loads(stream.read())


def _several_splits(folder: str, content: dict[str, Any]) -> ValueError:
    splits = ", ".join(content.get("splits", []))
    return ValueError(f"{folder} is a Hugging Face dataset with several splits; use the path of one of them: {splits}")


def _folder(folder: str, ignored: list[str]) -> list[str]:
    """Return the files of known formats under a folder."""
    if os.path.exists(several := os.path.join(folder, "dataset_dict.json")):
        raise _several_splits(folder, _read_json(several))
    if os.path.exists(state := os.path.join(folder, "state.json")) and os.path.exists(
        os.path.join(folder, "dataset_info.json")
    ):
        return [os.path.join(folder, entry["filename"]) for entry in _read_json(state)["_data_files"]]
    files: list[str] = []
    for parent, folders, names in os.walk(folder):
        hidden = {name for name in folders + names if name.startswith((".", "_"))}
        folders[:] = sorted(set(folders) - hidden)
        for name in sorted(set(names) - hidden):
            path = os.path.join(parent, name)
            (files if _format(path) else ignored).append(path)
    return files


def _format(path: str) -> tuple[str, str] | None:
    base, suffix = os.path.splitext(path)
    compression = COMPRESSIONS.get(suffix, "")
    if compression:
        suffix = os.path.splitext(base)[1]
    kind = FORMATS.get(suffix)
    return (kind, compression) if kind and not (compression and kind in COLUMNAR) else None


def _known_format(path: str) -> tuple[str, str]:
    if (found := _format(path)) is None:
        raise ValueError(f"{path} is of no known format; expected {EXPECTED}")
    return found


def _input_file(path: str) -> InputFile:
    kind, compression = _known_format(path)
    if not os.path.isfile(path):
        raise ValueError(f"{path} is not a regular file; expected one, because it may be read twice")
    status = os.stat(path)
    return InputFile(path, kind, compression, status.st_size, str(status.st_mtime_ns))


def _input_object(item: StoredObject) -> InputFile:
    return InputFile(item.url, *_known_format(item.url), item.size, item.version)


def _from_folder(folder: Path) -> dict[str, list[str]]:
    """Return a domain for every visible subfolder and every file of a known format."""
    patterns: dict[str, list[str]] = {}
    for path in sorted(folder.iterdir()):
        if not path.name.startswith((".", "_")) and (path.is_dir() or _format(str(path))):
            patterns.setdefault(path.name if path.is_dir() else path.name.split(".")[0], []).append(str(path))
    if not patterns:
        raise ValueError(f"{folder} has no domains; expected a subfolder or a file for each, or domain=pattern")
    return patterns


def _from_store(url: str) -> dict[str, list[str]]:
    """Return the same as `_from_folder`, for a folder in an object store."""
    patterns: dict[str, list[str]] = {}
    for item in list_objects(url):
        name, _, below = item.url[len(url) + 1 :].partition("/")
        if not name.startswith((".", "_")) and (below or _format(name)):
            found = patterns.setdefault(name if below else name.split(".")[0], [])
            if (path := f"{url}/{name}") not in found:
                found.append(path)
    if not patterns:
        raise ValueError(f"{url} has no domains; expected a subfolder or a file for each, or domain=pattern")
    return patterns


def _from_yaml(path: Path) -> dict[str, list[str]]:
    from pycooldown._extras import require

    require("cli", "yaml")
    from pycooldown._yaml import read_yaml

    try:
        content = read_yaml(path)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    if not isinstance(content, dict) or not content:
        raise ValueError(f"{path} holds no mapping; expected domains with patterns of their files")
    patterns = {}
    for domain, value in content.items():
        values = value if isinstance(value, list) else [value]
        if not isinstance(domain, str) or not values or not all(isinstance(item, str) for item in values):
            raise ValueError(
                f"{path} has {domain!r}: {value!r}; expected a domain's name with a pattern or a list of them"
            )
        patterns[domain] = [item if is_url(item) else str(path.parent / item) for item in values]
    return patterns
