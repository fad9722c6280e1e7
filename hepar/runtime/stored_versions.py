"""Versions of artifacts in the store: written once they are complete, and opened again by reference."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from hepar.errors import StorageError
from hepar.runtime.artifacts import MANIFEST, dvc_listing, md5_bytes, md5_file, read_manifest
from hepar.runtime.fetching import describe_files
from hepar.runtime.object_store import Store
from hepar.runtime.progress import current_stage
from hepar.runtime.remote_cache import in_parallel
from hepar.runtime.scratch import scratch_folder
from hepar.runtime.stored_files import REFERENCE, read_stored, write_stored


class Handover(Protocol):
    """What comes before and after the work of a stage whose artifact goes to the store."""

    def start(self, folder: Path) -> None:
        """Put an earlier version where the stage will write, for it to take over what has not changed."""

    def finish(self, folder: Path) -> None:
        """Hand over the finished artifact."""


def publish(folder: Path, bulk: tuple[str, ...], store: Store) -> str:
    """Write an artifact to the store and leave it by reference, without its files and subfolders `bulk`; returns the
    version.

    What the store has is not sent again. The list of files comes last, so a version that is there is complete. Several
    processes may publish at once. Raises StorageError if the store fails; the folder then stays as it was.
    """
    paths = {str(path.relative_to(folder)): path for path in folder.rglob("*") if path.is_file()}
    paths.pop(REFERENCE, None)
    names = sorted(paths)
    here = dict(zip(names, in_parallel(lambda name: md5_file(paths[name]), names), strict=True))
    md5 = {name: file.md5 for name, file in read_stored(folder).files.items()} | here
    listing = dvc_listing(md5)
    version = f"{md5_bytes(listing)}.dir"
    by_md5 = {value: paths[name] for name, value in here.items()}
    added = store.add(by_md5)
    with scratch_folder("listing") as scratch:
        (scratch / "list").write_bytes(listing)
        store.add({version: scratch / "list"})
    sent = sum(by_md5[value].stat().st_size for value in added)
    current_stage().log(f"version {version}: {len(added)} of {len(md5)} files sent, {sent:,} bytes")
    large = {name: value for name, value in md5.items() if _is_below(name, bulk)}
    write_stored(folder, version, describe_files(folder, large))
    for name in large.keys() & paths.keys():
        paths[name].unlink()
    for top in [folder / name for name in bulk if (folder / name).is_dir()]:
        for empty in sorted((path for path in (top, *top.rglob("*")) if path.is_dir()), reverse=True):
            empty.rmdir()
    return version


def _is_below(name: str, folders: tuple[str, ...]) -> bool:
    """Whether a path in an artifact is one of these, or lies in one of them."""
    return name in folders or name.startswith(tuple(f"{folder}/" for folder in folders))


def open_version(version: str, kind: str, bulk: tuple[str, ...], folder: Path, store: Store) -> None:
    """Put a version into the new folder `folder` by reference, completely or not at all: only what is outside its
    files and subfolders `bulk` is fetched.

    Raises DataError if the store lacks it, StorageError if the store fails or holds another kind of artifact there.
    """
    listing = store.listing(version)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with scratch_folder("open", folder.parent.resolve()) as scratch:
        opened = scratch / "opened"
        small = [name for name in listing if not _is_below(name, bulk)]
        for name in small:
            (opened / name).parent.mkdir(parents=True, exist_ok=True)
        in_parallel(lambda name: store.object(listing[name]).download(opened / name), small)
        manifest = read_manifest(opened, kind)
        if odd := sorted({MANIFEST, *manifest.files} ^ listing.keys()):
            raise StorageError(f"version {version} in {store.url}: {odd[0]!r} is listed or in {MANIFEST}, but not both")
        large = {name: value for name, value in listing.items() if _is_below(name, bulk)}
        write_stored(opened, version, describe_files(opened, large))
        opened.rename(folder)
