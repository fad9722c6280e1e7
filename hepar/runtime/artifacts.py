"""Folders that stages hand on: whole or not there, and known by the hash of their content.

Every artifact holds `manifest.json`: its kind, its content hash, and the hashes of what it was made from. The hash
covers names and bytes of the files listed there, so it is the same on every machine and under every runner.
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

from PIL import Image

from hepar.errors import ArtifactError
from hepar.runtime.chunked import SUFFIX, sha256_chunked

MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Manifest:
    """What an artifact says of itself. `parents` maps a name (`cohort`, `pool`) to that artifact's hash, `files` the
    place of each file to the hash of its content."""

    kind: str
    hash: str
    parents: Mapping[str, str]
    files: Mapping[str, str]


def sha256_file(path: Path) -> str:
    """Hexadecimal SHA-256 of a file."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def sha256_content(path: Path) -> str:
    """SHA-256 of a file; of arrays (`.npz`, `.b2nd`) and pictures that of their values: builds of a codec differ."""
    if path.suffix == SUFFIX:
        return sha256_chunked(path)
    if path.suffix == ".png":
        with Image.open(path) as picture:
            return hashlib.sha256(f"{picture.mode} {picture.size}".encode() + picture.tobytes()).hexdigest()
    if path.suffix != ".npz" or not zipfile.is_zipfile(path):
        return sha256_file(path)
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
    """The hash by which DVC knows a folder: MD5 of the JSON list of its files and their MD5, with `.dir` behind it."""
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
def writing(
    folder: Path, kind: str, parents: Mapping[str, str], known: MutableMapping[str, str] | None = None
) -> Iterator[Path]:
    """Write an artifact: yields a temporary folder beside `folder`, sealed and renamed to it at the end.

    On an error, or if the process dies, `folder` is as it was; what an earlier attempt left is removed first. `known`
    maps places of files to the hashes of their content, which then are not computed: the caller may fill it while it
    links files of an earlier artifact. Raises ArtifactError where another process writes there.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = folder.parent / f".{folder.name}.partial"
    with _alone(partial, folder):
        try:
            yield partial
            _seal(partial, kind, parents, known or {})
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        _swap(partial, folder)


@contextmanager
def _alone(partial: Path, folder: Path) -> Iterator[None]:
    """Hold a lock on the emptied folder `partial`, which ends with the process at the latest."""
    partial.mkdir(exist_ok=True)
    lock = os.open(partial, os.O_RDONLY)
    try:
        if not _locks(lock):
            raise ArtifactError(f"another process writes to {folder}")
        for left in partial.iterdir():
            shutil.rmtree(left) if left.is_dir() else left.unlink()
        yield
    finally:
        os.close(lock)


def _locks(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        pass
    return True


def _seal(folder: Path, kind: str, parents: Mapping[str, str], known: Mapping[str, str]) -> None:
    places = {str(path.relative_to(folder)): path for path in sorted(folder.rglob("*")) if path.is_file()}
    places.pop(MANIFEST, None)
    files = {place: known.get(place) or sha256_content(path) for place, path in places.items()}
    own = sha256_json({"kind": kind, "files": files})
    write_json(folder / MANIFEST, {"kind": kind, "hash": own, "parents": dict(parents), "files": files})


def _swap(partial: Path, folder: Path) -> None:
    """Put a finished folder in the place of an older one, so that at every moment one of the two is whole."""
    old = folder.parent / f".{folder.name}.old"
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    partial.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def link(source: Path, place: Path) -> None:
    """Put a file at a second place without copying it, where the file system can; folders are made."""
    place.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, place)
    except OSError:
        shutil.copyfile(source, place)


def read_manifest(folder: Path, kind: str) -> Manifest:
    """Read what an artifact says of itself. Raises ArtifactError where it is missing or of another kind."""
    path = folder / MANIFEST
    if not path.is_file():
        raise ArtifactError(f"{folder} holds no finished {kind}: {MANIFEST} is missing")
    try:
        found = Manifest(**json.loads(path.read_text()))
    except (ValueError, TypeError):
        raise ArtifactError(f"{path} is damaged: it is not a manifest") from None
    if found.kind != kind:
        raise ArtifactError(f"{folder} is of kind {found.kind}, must be {kind}")
    return found


def write_json(path: Path, value: object) -> None:
    """Write JSON with sorted keys, by way of a temporary file."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(json.dumps(value, indent=2, sort_keys=True, allow_nan=False) + "\n")
    temporary.replace(path)
