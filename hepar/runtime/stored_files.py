"""Artifacts by reference: tables and manifest are in the folder, the other files in the store.

`store.json` in the folder lists these files, by their paths in it, and names the version under which the store holds
the whole artifact. It is no part of the artifact: its hash, its manifest and its version are those of a full folder.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path

from hepar.errors import ArtifactError
from hepar.runtime.whole_files import write_text

REFERENCE = "store.json"
VERSION = re.compile(r"[0-9a-f]{32}\.dir")


@dataclass(frozen=True)
class StoredFile:
    """A file in the store: the MD5 that addresses it, its bytes, and their SHA-256."""

    md5: str
    size: int
    sha256: str


@dataclass(frozen=True)
class StoredFiles:
    """What `store.json` says. Without a version the artifact is still being written."""

    version: str
    files: Mapping[str, StoredFile]


NOTHING = StoredFiles("", {})


def read_stored(folder: Path) -> StoredFiles:
    """The files of an artifact that are in the store alone; none if the folder is not by reference.

    Raises ArtifactError if `store.json` is damaged.
    """
    path = folder / REFERENCE
    try:
        state = path.stat()
    except FileNotFoundError:
        return NOTHING
    return _read(path, state.st_mtime_ns, state.st_size)


@lru_cache(maxsize=8)
def _read(path: Path, mtime_ns: int, size: int) -> StoredFiles:
    try:
        found = json.loads(path.read_text())
        files = {name: StoredFile(**values) for name, values in found["files"].items()}
        return StoredFiles(found["version"], files)
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        raise ArtifactError(f"{path} is damaged, or of another version of hepar") from None


def write_stored(folder: Path, version: str, files: Mapping[str, StoredFile]) -> None:
    """Write `store.json`."""
    values = {"version": version, "files": {name: asdict(file) for name, file in files.items()}}
    write_text(folder / REFERENCE, json.dumps(values, sort_keys=True) + "\n")


def is_stored(folder: Path, name: str) -> bool:
    """Whether a file of an artifact is in the store alone."""
    return name in read_stored(folder).files and not (folder / name).exists()
