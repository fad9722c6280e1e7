"""Files that appear whole or not at all: written in a temporary folder beside their place, checked, then renamed."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from hepar.errors import DiskFull, StorageError, one_line

PROBE_BYTES = 2**20  # a disk that has no room for these is full
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # disk, quota or size limit of the process


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yields a path of the same name in a temporary folder; what the block writes there is then renamed to `path`.

    Files that the block writes beside it come along, such as the voxels of an `.mhd`. On an error nothing is left and
    an older file stays. Raises DiskFull, or StorageError if the place is not writable, with path and reason, in
    whatever words a library reports it; an error with another cause passes.
    """
    place = Path(os.path.realpath(path))  # a link is followed
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=".hepar-", dir=place.parent))
    except OSError as error:
        raise unwritable(path, error) from None
    try:
        yield scratch / place.name
        for written in sorted(scratch.iterdir(), key=lambda written: written.name == place.name):
            written.replace(place.with_name(written.name))  # the named one last, so that it never refers to nothing
    except Exception as error:
        cause = cause_on_disk(error, [*scratch.iterdir()] or [scratch / place.name])
        if cause is None and not isinstance(error, OSError):
            raise
        raise unwritable(path, cause or error) from None
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file; raises StorageError as `whole_file` does."""
    with whole_file(path) as partial:
        partial.write_bytes(content)
        if (written := partial.stat().st_size) != len(content):
            raise StorageError(f"{path} cannot be written: {written} of {len(content)} bytes arrived")


def write_text(path: Path, text: str) -> None:
    """Write a text file in UTF-8, its line ends as they are; raises StorageError as `whole_file` does."""
    write_bytes(path, text.encode())


def check_archive(path: Path, partial: Path) -> None:
    """Raise StorageError if the zip archive that was written for `path`, such as that of torch, does not read back."""
    try:
        with zipfile.ZipFile(partial) as archive:
            damaged = archive.testzip()
    except zipfile.BadZipFile:
        damaged = "its directory"
    if damaged:
        raise StorageError(f"{path} cannot be written: {damaged} is damaged")


def unwritable(path: Path, error: Exception) -> StorageError:
    """The error that says why `path` cannot be written: `DiskFull` if there is no room."""
    code = error.errno if isinstance(error, OSError) else None
    kind = DiskFull if code in FULL else StorageError
    return kind(f"{path} cannot be written: {os.strerror(code) if code else one_line(error)}")


def cause_on_disk(error: Exception, written: Iterable[Path]) -> OSError | None:
    """The error of the disk behind an error that came while files were written; None if the disk takes more bytes.

    These are appended to the files: many libraries report a full disk in words that do not say so.
    """
    if isinstance(error, OSError) and error.errno:
        return error
    try:
        for path in written:
            with path.open("ab") as stream:
                stream.write(bytes(PROBE_BYTES))
    except OSError as refused:
        return refused
    return None
