"""Folders that stages exchange: complete or absent, and identified by a hash of their content.

Every artifact holds `manifest.json`: its kind, its content hash, and the hashes of its inputs. The hash covers the
names and contents of the listed files, so it is the same on every machine and under every runner.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import zipfile
from collections.abc import Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from hepar.errors import ArtifactError
from hepar.runtime.chunked import SUFFIX, sha256_chunked

MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Manifest:
    """An artifact's identity. `parents` maps an input's name (`cohort`, `pool`) to its hash, `files` each file's
    path in the folder to the hash of its content."""

    kind: str
    hash: str
    parents: Mapping[str, str]
    files: Mapping[str, str]


def sha256_file(path: Path) -> str:
    """Hexadecimal SHA-256 of a file."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def sha256_content(path: Path) -> str:
    """SHA-256 of a file's bytes, or of the decoded values of an array (`.npz`, `.b2nd`) or a PNG.

    Two builds of a codec may compress the same values to different bytes.
    """
    if path.suffix == SUFFIX:
        return sha256_chunked(path)
    if path.suffix == ".png":
        return _sha256_picture(path)
    if path.suffix == ".npz" and zipfile.is_zipfile(path):
        return _sha256_npz(path)
    return sha256_file(path)


def _sha256_picture(path: Path) -> str:
    from PIL import Image

    with Image.open(path) as picture:
        return hashlib.sha256(f"{picture.mode} {picture.size}".encode() + picture.tobytes()).hexdigest()


def _sha256_npz(path: Path) -> str:
    digest = hashlib.sha256()
    with zipfile.ZipFile(path) as archive:
        for name in sorted(archive.namelist()):
            digest.update(f"{name}\0{archive.getinfo(name).file_size}\0".encode())
            with archive.open(name) as stream:
                while block := stream.read(2**20):
                    digest.update(block)
    return digest.hexdigest()


def sha256_json(value: object) -> str:
    """Hexadecimal SHA-256 of a JSON value, independent of the order of keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


def dvc_version(folder: Path) -> str:
    """DVC's hash of a folder: the MD5 of the JSON list of its files and their MD5, followed by `.dir`."""
    files = [
        {"md5": _md5(path), "relpath": path.relative_to(folder).as_posix()}
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    ]
    listed = json.dumps(sorted(files, key=lambda file: file["relpath"]), sort_keys=True)
    return f"{hashlib.md5(listed.encode(), usedforsecurity=False).hexdigest()}.dir"


def _md5(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


@contextmanager
def write_artifact(
    folder: Path, kind: str, parents: Mapping[str, str], known_hashes: MutableMapping[str, str] | None = None
) -> Iterator[Path]:
    """Write an artifact: yields a temporary folder beside `folder`, which gets its manifest and is renamed at the end.

    On an error, or if the process dies, `folder` stays as it was; the next attempt removes what is left behind.
    `known_hashes` maps a file's path in the folder to the hash of its content, which is then not computed; the caller
    may fill it while linking files of an earlier artifact. Raises ArtifactError if another process is writing `folder`.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = folder.parent / f".{folder.name}.partial"
    with _locked(partial, folder):
        try:
            yield partial
            _write_manifest(partial, kind, parents, known_hashes or {})
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        _replace(folder, partial)


@contextmanager
def _locked(partial: Path, folder: Path) -> Iterator[None]:
    """Lock and empty the folder `partial`. The kernel releases the lock when the process ends."""
    partial.mkdir(exist_ok=True)
    descriptor = os.open(partial, os.O_RDONLY)
    try:
        if not _try_lock(descriptor):
            raise ArtifactError(f"another process is writing {folder}")
        for leftover in partial.iterdir():
            shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
        yield
    finally:
        os.close(descriptor)


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        pass
    return True


def _write_manifest(folder: Path, kind: str, parents: Mapping[str, str], known_hashes: Mapping[str, str]) -> None:
    paths = {str(path.relative_to(folder)): path for path in sorted(folder.rglob("*")) if path.is_file()}
    paths.pop(MANIFEST, None)
    files = {name: known_hashes.get(name) or sha256_content(path) for name, path in paths.items()}
    own = sha256_json({"kind": kind, "files": files})
    write_json(folder / MANIFEST, {"kind": kind, "hash": own, "parents": dict(parents), "files": files})


def _replace(folder: Path, by: Path) -> None:
    """Rename `by` to `folder`. The older folder is moved aside first, so one complete version always exists."""
    old = folder.parent / f".{folder.name}.old"
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    by.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def link_or_copy(source: Path, target: Path) -> None:
    """Hard-link a file, or copy it where the file system cannot; creates the target's folder."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def read_manifest(folder: Path, kind: str) -> Manifest:
    """Read the manifest of an artifact. Raises ArtifactError if it is missing, damaged or of another kind."""
    path = folder / MANIFEST
    if not path.is_file():
        raise ArtifactError(f"{folder} is not a complete {kind}: {MANIFEST} is missing")
    try:
        found = Manifest(**json.loads(path.read_text()))
    except (ValueError, TypeError):
        raise ArtifactError(f"{path} is damaged: it is not a manifest") from None
    if found.kind != kind:
        raise ArtifactError(f"{folder} is of kind {found.kind}, must be {kind}")
    return found


def write_json(path: Path, value: object) -> None:
    """Write JSON with sorted keys, to a temporary file first. Raises ValueError if a number is not finite."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(json.dumps(value, indent=2, sort_keys=True, allow_nan=False) + "\n")
    temporary.replace(path)
