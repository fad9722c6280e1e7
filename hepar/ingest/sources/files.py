"""Files found by name, as in the layouts of public data sets."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

VOLUME_ENDINGS = (".nii.gz", ".nii", ".nrrd", ".mha", ".mhd")


def by_key(folder: Path, pattern: str) -> dict[str, Path]:
    """Files whose whole name matches `pattern`, keyed by its first group; hidden files are left out."""
    if not folder.is_dir():
        return {}
    names = {path.name: path for path in folder.iterdir() if path.is_file() and not path.name.startswith(".")}
    found = ((re.fullmatch(pattern, name), path) for name, path in sorted(names.items()))
    return {match.group(1): path for match, path in found if match}


def folders(root: Path) -> Iterator[Path]:
    """The folder and all folders below it, ordered by name, each once whatever links lead to it; no hidden ones."""
    return _folders(root, set())


def _folders(root: Path, seen: set[tuple[int, int]]) -> Iterator[Path]:
    state = root.stat()
    if (state.st_dev, state.st_ino) in seen:
        return
    seen.add((state.st_dev, state.st_ino))
    yield root
    for path in sorted(root.iterdir()):
        if path.is_dir() and not path.name.startswith("."):
            yield from _folders(path, seen)


def is_zip(source: str | Path) -> bool:
    """Whether the name of a file, or of an object in S3, ends in `.zip`, in upper or lower case."""
    return str(source).lower().endswith(".zip")


def safe_id(text: str) -> str:
    """A name as a case id: characters other than letters, digits, dots, dashes and underscores become dashes."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-._") or "case"
