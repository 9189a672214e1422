"""Expand lists of shards by domain, given as paths, URLs or patterns of both."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from glob import escape as glob_escape
from glob import glob
from typing import Any

from pycooldown._extras import require
from pycooldown.data.store_lists import glob_objects, list_objects
from pycooldown.data.stores import SCHEMES, StoredObject, find_object, is_url

__all__ = ["ShardPaths", "find_shards", "group_by_domain", "has_urls", "list_shards", "parse_shards"]

ShardPaths = Mapping[str, "str | os.PathLike[str] | Iterable[str | os.PathLike[str]]"]

_WILDCARDS = re.compile(r"[*?[]")


def list_shards(shards: ShardPaths) -> dict[str, list[str]]:
    """Return the shards of each domain, with patterns of paths and braces of URLs expanded. No store is asked.

    Args:
        shards: By domain, one or several paths, URLs or patterns.

    Raises:
        TypeError: If a shard is no path.
        ValueError: If there is no domain, a domain has no shards, or something is no path or URL that can be read.
        FileNotFoundError: If no file matches a pattern.
    """
    if not isinstance(shards, Mapping):
        raise TypeError(f"shards is a {type(shards).__name__}; expected a mapping from domains to paths")
    if not shards:
        raise ValueError("shards is empty; expected at least one domain")
    return {domain: _paths(domain, paths) for domain, paths in shards.items()}


def parse_shards(arguments: Sequence[str]) -> dict[str, list[str]]:
    """Return the shards of each domain in command-line arguments.

    Args:
        arguments: Either texts `domain=pattern`, where a domain may be repeated, or one folder, which may be in a
            store. Each of its subfolders is a domain with the tar files in and below it. A tar file in the folder
            itself belongs to the domain named by the part before the first hyphen or dot.

    Raises:
        ValueError: If the arguments are of neither form, or a folder has no tar files.
    """
    if len(arguments) == 1 and (is_url(arguments[0]) or os.path.isdir(arguments[0])):
        return _from_folder(arguments[0].rstrip("/") or "/")
    return group_by_domain(arguments, "shards", "a folder, or domain=pattern, as in en='data/en/*.tar'")


def group_by_domain(arguments: Iterable[str], name: str, expected: str) -> dict[str, list[str]]:
    """Return the patterns of each domain; a domain may be repeated.

    Args:
        arguments: Texts `domain=pattern`.
        name: What the arguments are, for errors.
        expected: The expected form, for errors.

    Raises:
        ValueError: If one has another form.
    """
    patterns: dict[str, list[str]] = {}
    for argument in arguments:
        domain, separator, pattern = argument.partition("=")
        if not separator or not domain or not pattern:
            raise ValueError(f"{name} {argument!r}; expected {expected}")
        patterns.setdefault(domain, []).append(pattern)
    return patterns


def _from_folder(folder: str) -> dict[str, list[str]]:
    if _is_object(folder):
        paths = [item.url for item in list_objects(folder) if item.url.endswith(".tar")]
    else:
        paths = sorted(glob(os.path.join(glob_escape(folder), "**", "*.tar"), recursive=True))
    domains: dict[str, list[str]] = {}
    for path in paths:
        name, _, below = path[len(folder.rstrip("/")) + 1 :].partition("/")
        domains.setdefault(name if below else re.split("[-.]", name)[0], []).append(path)
    if not domains:
        raise ValueError(f"{folder} has no tar files; expected subfolders with tar files, or domain=pattern")
    return dict(sorted(domains.items()))


def has_urls(lists: Mapping[str, list[str]]) -> bool:
    """Return whether any of the shards is in a store."""
    return any(_is_object(path) for paths in lists.values() for path in paths)


def find_shards(lists: Mapping[str, list[str]], *, workers: int = 8) -> dict[str, list[StoredObject]]:
    """Look up the size and the version of each shard, and expand wildcards of URLs.

    Args:
        lists: The result of `list_shards`.
        workers: Parallel requests to a store.

    Returns:
        The shards by domain. The version of a file is its modification time in nanoseconds.

    Raises:
        OSError: If a shard is missing, or a store does not answer.
        ValueError: If an http(s) URL has wildcards.
    """
    with ThreadPoolExecutor(workers) as pool:
        return {
            domain: [shard for found in pool.map(_find, paths) for shard in found] for domain, paths in lists.items()
        }


def _find(path: str) -> list[StoredObject]:
    if not _is_object(path):
        status = os.stat(path)
        return [StoredObject(path, status.st_size, str(status.st_mtime_ns))]
    if (found := find_object(path)) is not None:  # also if its name has the characters of a pattern
        return [found]
    if not _WILDCARDS.search(path) or path.startswith("http"):
        raise FileNotFoundError(f"there is no object {path!r}; check the spelling of the bucket and the key")
    if not (matches := [shard for shard in glob_objects(path)[0] if not shard.url.endswith(".idx")]):
        raise FileNotFoundError(f"no object matches the pattern {path!r}")
    return matches


def _is_object(path: str) -> bool:
    return is_url(path) and not os.path.lexists(path)


def _paths(domain: str, given: Any) -> list[str]:
    """Return the shards of a domain, patterns expanded."""
    if not isinstance(domain, str):
        raise TypeError(f"shards has the domain {domain!r}, a {type(domain).__name__}; expected a name")
    if isinstance(given, str | bytes | os.PathLike):
        given = [given]
    elif not isinstance(given, Iterable) or isinstance(given, Mapping):
        raise TypeError(f"domain {domain!r} has shards {given!r}; expected a path or a sequence of paths")
    paths: list[str] = []
    for path in given:
        if not isinstance(path, str | bytes | os.PathLike):
            raise TypeError(f"domain {domain!r} has the shard {path!r}, a {type(path).__name__}; expected a path")
        paths += _expand(domain, os.fsdecode(path))
    if not paths:
        raise ValueError(f"domain {domain!r} has no shards; pass some, or leave the domain out")
    return paths


def _expand(domain: str, path: str) -> list[str]:
    """Return the files of a path or pattern. An existing file with a pattern's name is returned itself."""
    if not path:
        raise ValueError(f"domain {domain!r} has an empty path; expected a tar file")
    if os.path.lexists(path):
        return [path]
    if path.startswith("file://"):
        raise ValueError(f"domain {domain!r} has the shard {path!r}; expected a path, without 'file://'")
    scheme = re.match(r"pipe:|[a-zA-Z][a-zA-Z0-9+.-]+://", path)
    if scheme and scheme.group().partition(":")[0] not in SCHEMES:
        known = ", ".join(f"{name}://" for name in SCHEMES)
        raise ValueError(
            f"domain {domain!r} has the shard {path!r}: files and {known} allow random access, "
            f"{scheme.group()!r} does not; stream it with pycooldown.data.mix, or download it first"
        )
    if "{" in path:
        require("data", "braceexpand")
        from braceexpand import braceexpand

        if (expanded := list(braceexpand(path))) != [path]:
            return [file for one in expanded for file in _expand(domain, one)]
    if scheme:
        if path.startswith("http") and _WILDCARDS.search(path):
            raise ValueError(
                f"domain {domain!r} has the shard {path!r}: http has no listings, and queries are not read; name every "
                "file, with braces if they are numbered ({000..099}), and download objects that need signed URLs"
            )
        return [path]
    if _WILDCARDS.search(path):
        if not (matches := set(glob(path))):
            raise FileNotFoundError(f"domain {domain!r}: no file matches the pattern {path!r}")
        return sorted(match for match in matches if match.removesuffix(".idx") not in matches - {match})
    return [path]  # opening it will raise the error
