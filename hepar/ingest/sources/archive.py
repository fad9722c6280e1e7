"""Zip archives as folders: a zip, or a folder of zips, reads like the tree inside."""

from __future__ import annotations

import shutil
import stat
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from hepar.errors import DataError
from hepar.ingest.sources.files import folders

MAX_EXPANSION = 200  # times the archive's size; scans compress about threefold, empty masks a hundredfold
MIN_LIMIT_BYTES = 2**30


@contextmanager
def unpacked(source: Path) -> Iterator[Path]:
    """The folder `source`, or a temporary one with every zip unpacked and links to all else.

    Raises DataError if a member would leave the folder or is a link, or the archive expands too far.
    """
    if source.is_dir() and not any(_zips(source)):
        yield source
        return
    with tempfile.TemporaryDirectory(prefix="hepar-unpacked-") as name:
        root = Path(name) / (source.name if source.is_dir() else source.stem)
        root.mkdir()
        if source.is_dir():
            _mirror(source, root)
        else:
            _unpack(source, root)
        yield root


def _zips(folder: Path) -> Iterator[Path]:
    for part in folders(folder):
        yield from (path for path in sorted(part.glob("*.zip")) if path.is_file())


def _mirror(source: Path, root: Path) -> None:
    for part in folders(source):
        there = root / part.relative_to(source)
        there.mkdir(exist_ok=True)
        for path in sorted(part.iterdir()):
            if path.is_file() and path.suffix == ".zip":
                _unpack(path, there / path.stem)
            elif path.is_file() and not path.name.startswith("."):
                (there / path.name).symlink_to(path.resolve())


def _unpack(archive: Path, folder: Path) -> None:
    """Unpack into a folder; an archive of one folder with its own name does not add another level."""
    try:
        with zipfile.ZipFile(archive) as opened:
            _check(archive, opened.infolist())
            folder.mkdir(exist_ok=True)
            for member in opened.infolist():
                if not member.is_dir():
                    path = folder / PurePosixPath(member.filename)
                    path.parent.mkdir(parents=True, exist_ok=True)
                    with opened.open(member) as stream, path.open("wb") as out:
                        shutil.copyfileobj(stream, out, 2**20)
    except (zipfile.BadZipFile, RuntimeError, OSError) as error:
        raise DataError(f"{archive} cannot be unpacked: {error}") from None
    only = list(folder.iterdir())
    if len(only) == 1 and only[0].is_dir() and only[0].name == folder.name:
        inner = folder.with_name(f"{folder.name}.inner")
        only[0].rename(inner)
        folder.rmdir()
        inner.rename(folder)


def _check(archive: Path, members: list[zipfile.ZipInfo]) -> None:
    limit = max(MAX_EXPANSION * archive.stat().st_size, MIN_LIMIT_BYTES)
    if (total := sum(member.file_size for member in members)) > limit:
        raise DataError(f"{archive}: unpacks to {total} bytes, more than {limit}")
    for member in members:
        path = PurePosixPath(member.filename.replace("\\", "/"))
        if path.is_absolute() or ".." in path.parts:
            raise DataError(f"{archive}: member {member.filename!r} leaves the folder")
        if stat.S_ISLNK(member.external_attr >> 16):
            raise DataError(f"{archive}: member {member.filename!r} is a link")
