"""Write a folder so that a second run trusts either all of it or none of it."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pycooldown._files import lock_folder, read_bounded, sha256, sync, write_atomically

__all__ = ["Progress", "check_sealed", "publish", "seal", "sha256", "staging", "write_atomically"]

STAGING = ".partial"  # exists only while a run is writing, or after a run was killed

MAX_MANIFEST = 1 << 28  # bytes; a million files take about half of this

Progress = Callable[[str, int, int], None]  # (what is being done, done, total)


def seal(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Return a manifest with a last entry `checksum`: the SHA-256 of all other entries, in their order."""
    return {**manifest, "checksum": _checksum(manifest)}


def check_sealed(path: Path, manifest: Mapping[str, Any], remedy: str) -> None:
    """Check that a manifest is unchanged. One without a checksum passes, because versions up to 0.2 write none.

    Args:
        path: The file of the manifest, for the error.
        manifest: Its content.
        remedy: How to make it again, for the error.

    Raises:
        ValueError: If an entry was changed, added, removed or moved.
    """
    if _is_altered(manifest):
        raise ValueError(
            f"{path} has changed since it was written: its checksum does not fit its entries; {remedy}; if it was "
            "edited on purpose, remove its entry 'checksum'"
        )


def _is_altered(manifest: Mapping[str, Any]) -> bool:
    return "checksum" in manifest and manifest["checksum"] != _checksum(manifest)


def _checksum(manifest: Mapping[str, Any]) -> str:
    # Keys are not sorted, because the order of the domains decides their indices.
    content = {name: entry for name, entry in manifest.items() if name != "checksum"}
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


@contextmanager
def staging(folder: Path) -> Iterator[Path]:
    """Lock `folder` against other processes and yield an empty folder inside it, which is removed at the end.

    Raises:
        OSError: If `folder` cannot be made, locked or written to; the message names the path.
    """
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / STAGING
    with lock_folder(folder):
        if partial.exists():
            shutil.rmtree(partial)
        partial.mkdir()
        try:
            yield partial
        except OSError as error:
            if error.filename is None and error.errno is not None:  # a failed write does not name its file
                reason = f"{error.strerror}; what {folder} held before is unchanged"
                raise OSError(error.errno, reason, str(partial)) from error
            raise
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def publish(
    folder: Path, name: str, recipe: Mapping[str, object], write: Callable[[Path], Mapping[str, object]]
) -> dict[str, Any]:
    """Make `folder` hold what `write` writes, unless its manifest says that it already does.

    `write` fills an empty staging folder. Its files are moved into place only after it has returned, one rename each:
    first the old manifest is removed, and the new one arrives last. So a folder with a manifest is complete, whenever a
    run is interrupted. Files of the previous manifest that are no longer made are removed; other files are left alone.

    Args:
        folder: Where to publish; made if missing.
        name: File name of the manifest.
        recipe: Everything that the files depend on (options, hashes of the inputs, versions), as JSON values.
        write: Called with the staging folder; returns JSON entries for the manifest.

    Returns:
        The manifest: `recipe`, its `fingerprint`, what `write` returned, `files`,
        `{path: {"bytes": int, "sha256": str}}`, and the `checksum` of all these.

    Raises:
        OSError: If a file cannot be written (full disk, missing permission); `folder` is then as before.
    """
    fingerprint = hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()
    with staging(folder) as partial:
        old = _read(folder / name)
        recorded = _files(folder, old)
        intact = (path.is_file() and sha256(path) == digest for path, digest in recorded.items())
        if recorded and old.get("fingerprint") == fingerprint and not _is_altered(old) and all(intact):
            return old
        content = write(partial)
        files = {
            str(path.relative_to(partial)): {"bytes": path.stat().st_size, "sha256": sha256(path)}
            for path in sorted(partial.rglob("*"))
            if path.is_file()
        }
        manifest = seal({"fingerprint": fingerprint, "recipe": recipe, **content, "files": files})

        for path in recorded.keys() - {folder / file for file in files}:
            path.unlink(missing_ok=True)
        (folder / name).unlink(missing_ok=True)
        for file in files:
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            os.replace(partial / file, folder / file)
        # After a power failure, there must be no manifest without the files that it lists.
        for written in sorted({path for file in files for path in ((folder / file), (folder / file).parent)}):
            sync(written)
        write_atomically(folder / name, json.dumps(manifest, indent=1, ensure_ascii=False) + "\n")
        return manifest


def _read(path: Path) -> dict[str, Any]:
    """Return the manifest at `path`, or {} if none can be read; then nothing there is trusted."""
    try:
        value = json.loads(read_bounded(path, MAX_MANIFEST))
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _files(folder: Path, manifest: Mapping[str, Any]) -> dict[Path, str]:
    """Return path and hash of each file that the manifest lists inside `folder`; {} if its list is malformed."""
    try:
        paths = {folder / name: str(entry["sha256"]) for name, entry in manifest.get("files", {}).items()}
    except (AttributeError, KeyError, TypeError):
        return {}
    return {path: digest for path, digest in paths.items() if path.resolve().is_relative_to(folder.resolve())}
