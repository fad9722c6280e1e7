"""Temporary folders for scans, all in one place, from which the next run removes what a killed process left behind.

The place is `hepar-<user id>` in the system's folder for temporary files (TMPDIR), readable by its owner alone. A
process locks its folders, and the kernel releases the locks of a process that dies: a folder that can be locked is left
over.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from hepar.errors import StorageError
from hepar.runtime.locks import is_at

BESIDE = ".hepar-scratch"


@contextmanager
def scratch_folder(purpose: str, beside: Path | None = None) -> Iterator[Path]:
    """A temporary folder for as long as the context lasts; `purpose` begins its name.

    It lies in TMPDIR, or, to rename or hard-link files from it, in the folder `beside`. Left-over folders in the same
    place are removed. Raises StorageError if the place belongs to another user or cannot be written.
    """
    place = _default_place() if beside is None else beside / BESIDE
    descriptor, folder = _create(place, purpose)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(descriptor)
        with suppress(OSError, StorageError), _locked(place) as locked:
            if locked:
                place.rmdir()  # unless it holds another folder


def _default_place() -> Path:
    try:
        return Path(tempfile.gettempdir()) / f"hepar-{os.getuid()}"
    except FileNotFoundError as error:
        raise StorageError(f"no folder for temporary files can be written: {error.strerror}; set TMPDIR") from None


def _create(place: Path, purpose: str) -> tuple[int, Path]:
    """A new locked folder and the descriptor that holds its lock."""
    try:
        with _locked(place) as locked:  # so that nobody takes the new folder for a left-over one before it is locked
            if locked:
                _remove_left_over(place)
            folder = Path(tempfile.mkdtemp(prefix=f"{purpose}-", dir=place))
            descriptor = os.open(folder, os.O_RDONLY)
            with suppress(OSError):  # a file system without locks
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise StorageError(f"{place} cannot hold temporary files: {error.strerror}") from None
    return descriptor, folder


@contextmanager
def _locked(place: Path) -> Iterator[bool]:
    """Make and lock the place of all scratch folders; yields whether its file system knows locks.

    Before it is locked, another process that ends may remove it at any moment: then it is made again.
    """
    while True:
        with suppress(FileExistsError):
            place.mkdir(mode=0o700, parents=True)
        try:
            descriptor = _open(place)
        except FileNotFoundError:
            continue
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX)
                locked = True
            except OSError:
                locked = False
            if is_at(descriptor, place):
                yield locked
                return
        finally:
            os.close(descriptor)


def _open(place: Path) -> int:
    """Open the place of all scratch folders, for its owner alone. Raises StorageError if that is another user."""
    state = place.lstat()
    if not stat.S_ISDIR(state.st_mode) or state.st_uid != os.getuid():
        raise StorageError(f"{place} is not a folder of this user: set TMPDIR to another folder")
    place.chmod(0o700)
    return os.open(place, os.O_RDONLY)


def _remove_left_over(place: Path) -> None:
    for folder in place.iterdir():
        with suppress(OSError):  # such as one that its process has just removed
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(descriptor)
