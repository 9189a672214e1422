"""List the objects that a store has below a URL, or that match a pattern."""

from __future__ import annotations

import re
from fnmatch import fnmatchcase

from pycooldown.data.stores import StoredObject, is_url, open_store, store_errors, stored_object

__all__ = ["glob_objects", "list_objects"]


def list_objects(url: str) -> list[StoredObject]:
    """Return the objects below a URL, which is read as a folder, ordered by URL.

    The errors are those of `pycooldown.data.stores.find_object`; http(s) has no listings.
    """
    client, base, key = open_store(url)
    if base.startswith("http"):
        raise ValueError(
            f"{url} cannot be listed: http has no folders or patterns; name every file, as in en=https://host/x.jsonl"
        )
    with store_errors(url):
        found = [item for batch in client.list(key.rstrip("/") or None) for item in batch]
    # Web consoles make a folder as an empty object whose name ends with a slash.
    objects = (stored_object(f"{base}/{item['path']}", item) for item in found if not item["path"].endswith("/"))
    return sorted(objects, key=lambda item: item.url)


def glob_objects(url: str) -> tuple[list[StoredObject], dict[str, list[StoredObject]]]:
    """Return the objects that match a pattern, and the matching folders with all objects below each.

    As for files, `*`, `?` and `[...]` stay within a name, `**` means any depth, and names that begin with a dot need a
    dot in the pattern. The errors are those of `list_objects`.
    """
    folders: dict[str, list[StoredObject]] = {}
    if (match := re.search(r"[*?[]", url)) is None:
        if found := list_objects(url):
            folders[url.rstrip("/")] = found
        return [], folders
    root = url[: url.rindex("/", 0, match.start())]
    if not is_url(root):
        raise ValueError(f"{url} has a pattern as its bucket or host; expected a name")
    pattern = url[len(root) + 1 :].rstrip("/").split("/")
    files = []
    for item in list_objects(root):
        names = item.url[len(root) + 1 :].split("/")
        if _matches(names, pattern):
            files.append(item)
        for depth in range(1, len(names)):
            if _matches(names[:depth], pattern):
                folders.setdefault("/".join((root, *names[:depth])), []).append(item)
    return files, folders


def _matches(names: list[str], pattern: list[str]) -> bool:
    if not pattern:
        return not names
    if pattern[0] == "**" and _matches(names, pattern[1:]):
        return True
    if not names or (names[0].startswith(".") and not pattern[0].startswith(".")):
        return False
    if pattern[0] == "**":
        return _matches(names[1:], pattern)
    return fnmatchcase(names[0], pattern[0]) and _matches(names[1:], pattern[1:])
