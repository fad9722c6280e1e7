"""Folders that stages exchange: complete or absent, and identified by a hash of their content.

Every artifact holds `manifest.json`: its kind, its content hash, the hashes of its inputs, and a hash of all that. The
content hash covers the names and contents of the listed files, so it is the same on every machine and under every
runner.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from hepar.errors import ArtifactError, StorageError
from hepar.runtime.chunked import SUFFIX, sha256_chunked
from hepar.runtime.journal import Journal, finish_replacing
from hepar.runtime.locks import is_at, try_lock
from hepar.runtime.seals import seal, touch
from hepar.runtime.stored_files import REFERENCE, read_stored
from hepar.runtime.whole_files import FULL, unwritable, whole_file, write_text

MANIFEST = "manifest.json"
SELF_HASH = "manifest_sha256"  # over all other keys
CODED = (SUFFIX, ".npz", ".png")  # of files whose content is what a codec makes of their bytes


@dataclass(frozen=True)
class Manifest:
    """An artifact's identity. `parents` maps an input's name (`cohort`, `pool`) to its hash, `files` each file's
    path in the folder to the hash of its content.

    `sizes` and `stored` describe the file itself: its bytes, and their hash if a codec made them of the content.
    """

    kind: str
    hash: str
    parents: Mapping[str, str]
    files: Mapping[str, str]
    sizes: Mapping[str, int]
    stored: Mapping[str, str]


def sha256_file(path: Path) -> str:
    """Hexadecimal SHA-256 of a file."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def sha256_content(path: Path) -> str:
    """SHA-256 of a file's bytes, or of the decoded values of an array (`.npz`, `.b2nd`) or a PNG.

    Two builds of a codec may compress the same values to different bytes.
    """
    if path.suffix not in CODED:
        return sha256_file(path)
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
    """DVC's hash of a folder: the MD5 of the list of its files, followed by `.dir`; of one by reference that of all."""
    stored = read_stored(folder)
    if stored.version:
        return stored.version
    md5 = {name: file.md5 for name, file in stored.files.items()}
    for path in folder.rglob("*"):
        if path.is_file() and path != folder / REFERENCE:
            md5[path.relative_to(folder).as_posix()] = md5_file(path)
    return f"{md5_bytes(dvc_listing(md5))}.dir"


def dvc_listing(md5: Mapping[str, str]) -> bytes:
    """The list of a folder's files, from their MD5 by path, as DVC writes it."""
    files = [{"md5": value, "relpath": name} for name, value in sorted(md5.items())]
    return json.dumps(files, sort_keys=True).encode()


def md5_bytes(content: bytes) -> str:
    """Hexadecimal MD5, by which DVC knows a content."""
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def md5_file(path: Path) -> str:
    """Hexadecimal MD5 of a file, by which DVC knows it."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


@contextmanager
def write_artifact(
    folder: Path,
    kind: str,
    parents: Mapping[str, str],
    known_hashes: Mapping[str, str] | None = None,
    known_stored: Mapping[str, str] | None = None,
) -> Iterator[Path]:
    """Write an artifact: yields a temporary folder beside `folder`, which gets its manifest and is renamed at the end.

    On an error, or if the process dies, `folder` stays as it was; the next attempt removes what is left behind. A
    process that dies while it renames leaves a journal: whoever reads or writes `folder` next finishes it.
    `known_hashes` maps a file's path in the folder to the hash of its content, which is then not computed, and
    `known_stored` to that of its bytes; the caller may fill both while linking files of an earlier artifact.

    Raises ArtifactError if another process is writing `folder` or a file with a known hash is missing, StorageError if
    the disk is full or a file is in the way.
    """
    partial = folder.parent / f".{folder.name}.partial"
    _check_free(folder)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        finish_replacing(folder)
        with _locked(partial, folder):
            try:
                yield partial
                _write_manifest(partial, kind, parents, known_hashes or {}, known_stored or {})
            except BaseException:
                shutil.rmtree(partial, ignore_errors=True)
                raise
            Journal.of_artifact(folder).replace({partial: folder}, scratch=partial)
            seal(folder / MANIFEST, touch(folder / MANIFEST))
    except OSError as error:
        if error.errno not in FULL:
            raise
        raise unwritable(folder, error) from None


def _check_free(folder: Path) -> None:
    """Raise StorageError if a file lies where the folder goes, or one that it would lie in."""
    for place in (folder, *folder.parents):
        if place.is_dir():
            return
        if place.exists():
            raise StorageError(f"{folder} cannot be written: {place} is a file")


@contextmanager
def _locked(partial: Path, folder: Path) -> Iterator[None]:
    """Lock and empty the folder `partial`. The kernel releases the lock when the process ends."""
    while True:
        partial.mkdir(exist_ok=True)
        try:
            descriptor = os.open(partial, os.O_RDONLY)
        except FileNotFoundError:  # another writer has just renamed it
            continue
        try:
            if not try_lock(descriptor):
                raise ArtifactError(f"another process is writing {folder}")
            if is_at(descriptor, partial):
                for leftover in partial.iterdir():
                    shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
                yield
                return
        finally:
            os.close(descriptor)


def _write_manifest(
    folder: Path,
    kind: str,
    parents: Mapping[str, str],
    known_hashes: Mapping[str, str],
    known_stored: Mapping[str, str],
) -> None:
    paths = {str(path.relative_to(folder)): path for path in sorted(folder.rglob("*")) if path.is_file()}
    for name in (MANIFEST, REFERENCE):
        paths.pop(name, None)
    carried = read_stored(folder).files
    if missing := sorted(set(known_hashes) - set(paths) - set(carried)):
        raise ArtifactError(f"{missing[0]} was not written, so the {kind} is incomplete")
    files = {name: known_hashes.get(name) or sha256_content(path) for name, path in paths.items()}
    files |= {name: known_hashes.get(name) or file.sha256 for name, file in carried.items()}
    sizes = {name: path.stat().st_size for name, path in paths.items()}
    sizes |= {name: file.size for name, file in carried.items()}
    coded = {name: path for name, path in paths.items() if path.suffix in CODED}
    stored = {name: known_stored.get(name) or sha256_file(path) for name, path in coded.items()}
    stored |= {name: file.sha256 for name, file in carried.items() if name.endswith(CODED)}
    manifest = asdict(Manifest(kind, hash_contents(kind, files), dict(parents), files, sizes, stored))
    write_json(folder / MANIFEST, manifest | {SELF_HASH: sha256_json(manifest)})


def hash_contents(kind: str, files: Mapping[str, str]) -> str:
    """The hash of an artifact: over its kind and the names and content hashes of its files."""
    return sha256_json({"kind": kind, "files": dict(files)})


def link_or_copy(source: Path, target: Path) -> None:
    """Hard-link a file, or copy it where the file system cannot; creates the target's folder."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except OSError:
        with whole_file(target) as partial:
            shutil.copyfile(source, partial)


def read_manifest(folder: Path, kind: str) -> Manifest:
    """Read the manifest of an artifact. Raises ArtifactError if it is missing, damaged or of another kind.

    The files themselves are not looked at; `verification.verify_artifact` does.
    """
    found = _read_manifest(folder, f"artifact of kind {kind}")
    if found.kind != kind:
        raise ArtifactError(f"{folder} is of kind {found.kind} but must be {kind}")
    return found


def read_any_manifest(folder: Path) -> Manifest:
    """Read the manifest of an artifact of any kind. Raises ArtifactError if it is missing or damaged."""
    return _read_manifest(folder, "artifact")


def _read_manifest(folder: Path, expected: str) -> Manifest:
    finish_replacing(folder)
    path = folder / MANIFEST
    if not folder.exists():
        raise ArtifactError(f"{folder} does not exist")
    if not path.is_file():
        raise ArtifactError(f"{folder} is not a complete {expected}: {MANIFEST} is missing")
    try:
        found = json.loads(path.read_text())
        is_whole = found.pop(SELF_HASH, "") == sha256_json(found)
        manifest = Manifest(**found)
        if is_whole and manifest.hash == hash_contents(manifest.kind, manifest.files):
            return manifest
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, TypeError, AttributeError, RecursionError):
        raise ArtifactError(f"{path} is damaged, or of another version of hepar: it is not a manifest") from None
    raise ArtifactError(f"{path} is damaged, or of another version of hepar: it does not have the hash that it gives")


def check_made_from(child: Path, made: Manifest, parent: Path, found: Manifest, stage: str) -> None:
    """Raises ArtifactError unless `stage` made the artifact `child` from `parent`; both come with their manifests."""
    if problem := describe_mismatch(child, made, parent, found):
        raise ArtifactError(f"{problem}: run {stage} again")


def describe_mismatch(child: Path, made: Manifest, parent: Path, found: Manifest) -> str:
    """Which artifact `child` was made from, if it is not `parent`; empty if it is."""
    made_from = made.parents.get(found.kind)
    if made_from == found.hash:
        return ""
    known = f"{found.kind} {made_from[:12]}" if made_from else f"no known {found.kind}"
    return f"{child} was made from {known}, but {parent} is {found.kind} {found.hash[:12]}"


def parents_of_parent(kind: str, parents: Mapping[str, str]) -> dict[str, str]:
    """The parents of an input of this kind, as `as_parents_of_parent` has put them among the parents of an artifact."""
    prefix = _possessive(kind)
    return {name.removeprefix(prefix): value for name, value in parents.items() if name.startswith(prefix)}


def as_parents_of_parent(kind: str, parents: Mapping[str, str]) -> dict[str, str]:
    """The parents of an input of this kind as further parents: the pool of a model becomes `model's pool`."""
    return {f"{_possessive(kind)}{name}": value for name, value in parents.items()}


def _possessive(kind: str) -> str:
    return f"{kind}' " if kind.endswith("s") else f"{kind}'s "


def write_json(path: Path, value: object) -> None:
    """Write JSON with sorted keys. Raises ValueError if a number is not finite, StorageError as `write_text` does."""
    write_text(path, json.dumps(value, indent=2, sort_keys=True, allow_nan=False) + "\n")
