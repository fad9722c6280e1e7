"""Files of artifacts by reference, fetched from the store through the cache of remote files for as long as needed."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from pathlib import Path

from hepar.errors import ArtifactError, DataError, StorageError
from hepar.runtime.artifacts import MANIFEST, link_or_copy, read_any_manifest
from hepar.runtime.object_store import Store
from hepar.runtime.remote_cache import Cache, in_parallel
from hepar.runtime.scratch import scratch_folder
from hepar.runtime.stored_files import REFERENCE, StoredFile, is_stored, read_stored


@contextmanager
def fetched(*paths: Path | None) -> Iterator[Mapping[Path, Path]]:
    """Where each of these files of artifacts lies on this disk; None is left out.

    A file in its folder is where it is. One that is in the store is fetched, and removed when the context ends; those
    of one folder keep their places in it. A file that is in neither stays missing, and whoever reads it says so.
    Raises StorageError if the store fails, DataError if no store is given.
    """
    here = {path: path for path in paths if path is not None}
    owners = {path: owner for path in here if not path.exists() and (owner := _owner(path)) is not None}
    if not owners:
        yield here
        return
    with scratch_folder("fetched") as scratch:
        for number, owner in enumerate(sorted(set(owners.values()))):
            names = {path: path.relative_to(owner) for path in here if path.is_relative_to(owner)}
            fetch_into(scratch / str(number), owner, map(str, names.values()))
            here.update({path: scratch / str(number) / name for path, name in names.items()})
        yield here


def fetch_into(target: Path, folder: Path, names: Iterable[str]) -> None:
    """Put files of an artifact at the same paths below `target`: linked or copied from `folder`, or from the store.

    Raises StorageError if the store fails, a file is not the one that was stored, or the disk has no room for all,
    DataError if no store is given.
    """
    names = list(names)
    absent = {name: read_stored(folder).files[name] for name in names if is_stored(folder, name)}
    for name in names:
        if name not in absent and folder != target:
            link_or_copy(folder / name, target / name)
    if not absent:
        return
    store, cache = Store.needed_for(f"{folder / next(iter(absent))}"), Cache.of_user()
    target.mkdir(parents=True, exist_ok=True)
    if (needed := sum(file.size for file in absent.values())) > (free := shutil.disk_usage(target).free):
        raise StorageError(f"{needed:,} bytes of {folder} do not fit in {free:,} free bytes of {target}")
    found = {name: store.object(file.md5) for name, file in absent.items()}

    def place(name: str) -> None:
        try:
            cache.place(found[name], target / name)
        except DataError as error:
            raise StorageError(f"{folder / name} is in no store that is given: {error}") from None

    in_parallel(place, list(absent))
    digests = dict(zip(found, cache.digests(list(found.values())), strict=True))
    damaged = [name for name in absent if digests[name] != absent[name].sha256]
    for name in damaged:
        (target / name).unlink()
    if damaged:
        what, url = folder / damaged[0], found[damaged[0]].url
        raise StorageError(f"{what} is damaged: {url} has another SHA-256 than its manifest says")
    cache.trim()


@contextmanager
def whole(folder: Path) -> Iterator[Path]:
    """Where an artifact lies with all of its files: in its folder, or, if that is by reference, in one that is removed
    when the context ends. Raises as `fetch_into`."""
    if not (folder / REFERENCE).is_file():
        yield folder
        return
    with scratch_folder("whole") as scratch:
        fetch_into(scratch / folder.name, folder, [MANIFEST, *read_any_manifest(folder).files])
        yield scratch / folder.name


def complete(folder: Path) -> int:
    """Fetch all that an artifact has in the store, so that it is by reference no more; returns the number of files.

    Files are copies, so that nothing outside the folder shares them. Raises as `fetch_into`.
    """
    absent = [name for name in read_stored(folder).files if is_stored(folder, name)]
    if absent:
        with scratch_folder("complete", folder.parent.resolve()) as scratch:
            fetch_into(scratch, folder, absent)
            for name in absent:
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(scratch / name, scratch / "copy")
                (scratch / "copy").replace(folder / name)
                (scratch / name).unlink()
    (folder / REFERENCE).unlink(missing_ok=True)
    return len(absent)


def carry(earlier: Path, name: str, folder: Path, place: str, carried: MutableMapping[str, StoredFile]) -> None:
    """Take over a file of an earlier artifact at a place in the new one: linked, or noted in `carried` if it is in the
    store alone. Raises ArtifactError if it is in neither."""
    if is_stored(earlier, name):
        carried[place] = read_stored(earlier).files[name]
    elif (earlier / name).is_file():
        link_or_copy(earlier / name, folder / place)
    else:
        raise ArtifactError(f"{earlier / name} does not exist")


def stored_version(folder: Path) -> str:
    """The version under which the store holds an artifact by reference; empty if it is in folders alone."""
    return read_stored(folder).version


def describe_files(folder: Path, md5: Mapping[str, str]) -> dict[str, StoredFile]:
    """Files of an artifact as `store.json` lists them, from their MD5 by path and the manifest in `folder`."""
    manifest = read_any_manifest(folder)
    sha256 = {**manifest.files, **manifest.stored}
    return {name: StoredFile(value, manifest.sizes[name], sha256[name]) for name, value in md5.items()}


def _owner(path: Path) -> Path | None:
    """The artifact by reference that a missing file belongs to; None if it belongs to none."""
    for folder in path.parents:
        if (folder / REFERENCE).is_file():
            return folder if str(path.relative_to(folder)) in read_stored(folder).files else None
    return None
