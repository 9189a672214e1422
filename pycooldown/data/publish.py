"""Write a folder so that a second run trusts all of it or none of it."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

STAGING = ".partial"  # exists only while a run is writing, or after one was killed

Progress = Callable[[str, int, int], None]  # (what is being done, done, total)


def sha256(path: Path) -> str:
    """SHA-256 of a file, as 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


@contextmanager
def staging(folder: Path) -> Iterator[Path]:
    """Lock ``folder`` against other processes and yield an empty folder inside it, which is removed at the end.

    Raises:
        OSError: if ``folder`` cannot be made or written to; the message names the path.
    """
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / STAGING
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        if partial.exists():
            shutil.rmtree(partial)
        partial.mkdir()
        try:
            yield partial
        except OSError as error:
            if error.filename is None and error.errno is not None:  # a failed write does not know its file
                reason = f"{error.strerror}; what {folder} held before is unchanged"
                raise OSError(error.errno, reason, str(partial)) from error
            raise
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    finally:
        os.close(handle)


def publish(
    folder: Path, name: str, recipe: Mapping[str, object], write: Callable[[Path], Mapping[str, object]]
) -> dict[str, Any]:
    """Make ``folder`` hold what ``write`` writes, unless its manifest says that it already does.

    ``write`` fills an empty staging folder. Only when it has returned are its files moved into place, one rename each:
    first the old manifest goes, last the new one arrives. So a folder with a manifest is complete, whenever a run is
    interrupted. Files of the previous manifest that are no longer made are removed; other files are left alone.

    Args:
        folder: where to publish; made if missing.
        name: file name of the manifest.
        recipe: everything that the files depend on (options, hashes of the inputs, versions), as JSON-able values.
        write: called with the staging folder; returns JSON-able entries for the manifest.

    Returns:
        The manifest: ``recipe``, its ``fingerprint``, what ``write`` returned and ``files``,
        ``{path: {"bytes": int, "sha256": str}}``.

    Raises:
        OSError: if a file cannot be written (full disk, missing permission); ``folder`` is then as before.
    """
    fingerprint = hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()
    with staging(folder) as partial:
        old = _read(folder / name)
        recorded = _files(folder, old)
        intact = (path.is_file() and sha256(path) == digest for path, digest in recorded.items())
        if recorded and old.get("fingerprint") == fingerprint and all(intact):
            return old
        content = write(partial)
        files = {
            str(path.relative_to(partial)): {"bytes": path.stat().st_size, "sha256": sha256(path)}
            for path in sorted(partial.rglob("*"))
            if path.is_file()
        }
        manifest = {"fingerprint": fingerprint, "recipe": recipe, **content, "files": files}
        (partial / name).write_text(json.dumps(manifest, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")

        for path in recorded.keys() - {folder / file for file in files}:
            path.unlink(missing_ok=True)
        (folder / name).unlink(missing_ok=True)
        for file in files:
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            os.replace(partial / file, folder / file)
        os.replace(partial / name, folder / name)
        return manifest


def _read(path: Path) -> dict[str, Any]:
    """The manifest at ``path``, or {} if there is none that can be read: then nothing there is trusted."""
    try:
        value = json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _files(folder: Path, manifest: Mapping[str, Any]) -> dict[Path, str]:
    """Path and hash of each file that the manifest lists inside ``folder``; {} if its list is malformed."""
    try:
        paths = {folder / name: str(entry["sha256"]) for name, entry in manifest.get("files", {}).items()}
    except (AttributeError, KeyError, TypeError):
        return {}
    return {path: digest for path, digest in paths.items() if path.resolve().is_relative_to(folder.resolve())}
