"""Whether an artifact still is what was sealed: every file there, of its size and with its content.

Sizes and times are compared first (see `seals`). Content is hashed where a file may have changed since the seal.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from hepar.errors import ArtifactError
from hepar.runtime.artifacts import CODED, MANIFEST, Manifest, read_manifest, sha256_file
from hepar.runtime.device import available_cores
from hepar.runtime.seals import seal, sealed_ns, touch
from hepar.runtime.stored_files import is_stored


def verify_artifact(folder: Path, kind: str, files: Iterable[str] | None = None, deep: bool = False) -> Manifest:
    """Check files of an artifact, by their paths in it, against its manifest, which is returned; None checks all.

    `deep` hashes every content. Raises ArtifactError naming the first file that is missing or not as sealed.
    """
    manifest = read_manifest(folder, kind)
    for damage in find_damage(folder, manifest, files, deep):
        raise ArtifactError(f"{folder} is damaged: {damage}")
    return manifest


def find_damage(
    folder: Path, manifest: Manifest, files: Iterable[str] | None = None, deep: bool = False
) -> Iterator[str]:
    """What is wrong with files of an artifact, one text for each that is missing or not as sealed; None checks all.

    Nothing is wrong with a file that is in the store alone: it is checked when it is fetched.
    If every content is right, the artifact is sealed again, so that the next check compares sizes and times alone.
    """
    since_ns, doubtful = 0 if deep else sealed_ns(folder / MANIFEST), []
    for name in manifest.files if files is None else files:
        if name in manifest.files and is_stored(folder, name):
            continue
        damage = _glance(folder, manifest, name)
        if damage:
            yield damage
        elif (folder / name).stat().st_ctime_ns >= since_ns:
            doubtful.append(name)
    if not doubtful:
        return
    now_ns = touch(folder / MANIFEST) if files is None else None
    with ThreadPoolExecutor(available_cores()) as executor:
        for damage in executor.map(lambda name: _compare_content(folder, manifest, name), doubtful):
            if damage:
                now_ns = None
                yield damage
    seal(folder / MANIFEST, now_ns)


def _glance(folder: Path, manifest: Manifest, name: str) -> str:
    """What is wrong with a file, without reading it; empty if nothing is."""
    path = folder / name
    if name not in manifest.files:
        return f"{name} is not listed in {MANIFEST}"
    if not path.is_file():
        return f"{name} is missing"
    has_bytes, had_bytes = path.stat().st_size, manifest.sizes[name]
    if has_bytes != had_bytes:
        return f"{name} has {has_bytes} bytes but had {had_bytes} when it was sealed"
    return ""


def _compare_content(folder: Path, manifest: Manifest, name: str) -> str:
    """How the content of a file differs; empty if it does not."""
    was = (manifest.stored if name.endswith(CODED) else manifest.files)[name]
    try:
        found = sha256_file(folder / name)  # damaged bytes never reach a decoder
    except OSError as error:
        return f"{name} cannot be read ({error.strerror})"
    return "" if found == was else f"{name} has changed since it was sealed (SHA-256 {found[:12]}…, was {was[:12]}…)"
