"""Zip archives as folders: a zip, or a folder of zips, reads like the tree inside."""

from __future__ import annotations

import errno
import shutil
import stat
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain, count
from pathlib import Path, PurePosixPath

from hepar.errors import DataError, HeparError, Refusal, StorageError
from hepar.ingest.sources.files import folders, is_zip
from hepar.ingest.sources.source import SourceCase, refused_case
from hepar.runtime.scratch import scratch_folder

MAX_EXPANSION = 200  # times the archives' size; scans compress about threefold, empty masks a hundredfold
MIN_LIMIT_BYTES = 2**30
RULE = "every zip can be unpacked"


@dataclass(frozen=True)
class Unpacked:
    """A folder with every zip unpacked, and a refused case for each zip that cannot be."""

    folder: Path
    refused: tuple[SourceCase, ...] = ()


@dataclass
class _Archives:
    """The zips of a source, in order, and the bytes that all of them together may still unpack to."""

    paths: tuple[Path, ...]
    bytes_left: int = field(init=False)
    refused: list[SourceCase] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.bytes_left = _limit_bytes(sum(path.stat().st_size for path in self.paths))

    def unpack(self, archive: Path, parent: Path) -> None:
        """Unpack a zip into a new folder of its name; one that cannot be is noted among the refused, by its number."""
        folder = _free_place(archive.stem, parent, archive.parent)
        try:
            self.bytes_left -= _unpack(archive, folder, self.bytes_left)
        except Refusal as fault:
            shutil.rmtree(folder, ignore_errors=True)
            number = self.paths.index(archive) + 1  # its name may be a patient's
            where = f"zip {number} of {len(self.paths)}, ordered by path"
            self.refused.append(refused_case(f"zip-{number}", archive, Refusal(fault.rule, f"{where}: {fault.value}")))


@contextmanager
def unpacked(source: Path) -> Iterator[Unpacked]:
    """The folder `source`, or a temporary one with every zip unpacked and links to all else.

    In a folder or in `source` itself, a zip is refused alone if it is damaged, a member would leave the folder or is a
    link, or it expands too far; the same raises DataError if `source` is the zip. Zips deeper inside stay as they are,
    hidden ones are left out. Raises StorageError if the disk is too small.
    """
    zips = tuple(_zips(source)) if source.is_dir() else (source,)
    if not zips:
        yield Unpacked(source)
        return
    with scratch_folder("unpacked") as name:
        root = name / (source.name if source.is_dir() else source.stem)
        root.mkdir()
        if source.is_dir():
            archives = _Archives(zips)
            _mirror(source, root, archives)
            yield Unpacked(root, tuple(archives.refused))
            return
        limit_bytes = _limit_bytes(source.stat().st_size)
        try:
            used_bytes = _unpack(source, root, limit_bytes)
        except Refusal as fault:
            raise DataError(f"{source} cannot be unpacked: {fault.value}") from None
        yield Unpacked(root, _unpack_inside(root, limit_bytes - used_bytes))


def _unpack_inside(root: Path, bytes_left: int) -> tuple[SourceCase, ...]:
    """Replace the zips in an unpacked archive by what they hold; returns a refused case for each that cannot be."""
    archives = _Archives(tuple(_zips(root)))
    archives.bytes_left = min(archives.bytes_left, bytes_left)
    for path in archives.paths:
        archives.unpack(path, path.parent)
        path.unlink()
    return tuple(archives.refused)


def _limit_bytes(size_bytes: int) -> int:
    """What archives of a size together may unpack to."""
    return max(MAX_EXPANSION * size_bytes, MIN_LIMIT_BYTES)


def _zips(folder: Path) -> Iterator[Path]:
    for part in folders(folder):
        for path in sorted(part.iterdir()):
            if is_zip(path) and path.is_file() and not path.name.startswith("."):
                yield path


def _free_place(name: str, parent: Path, beside: Path) -> Path:
    """A path in `parent` with this name, or the name and a number, that exists neither there nor in `beside`."""
    names = chain([name], (f"{name}-{number}" for number in count(2)))
    return parent / next(name for name in names if not any((place / name).exists() for place in (parent, beside)))


def _mirror(source: Path, root: Path, archives: _Archives) -> None:
    for part in folders(source):
        there = root / part.relative_to(source)
        there.mkdir(exist_ok=True)
        for path in sorted(part.iterdir()):
            if path in archives.paths:
                archives.unpack(path, there)
            elif path.is_file() and not path.name.startswith("."):
                (there / path.name).symlink_to(path.resolve())


def _unpack(archive: Path, folder: Path, bytes_left: int) -> int:
    """Unpack into a folder; returns the bytes. An archive of one folder with its own name does not add another level.

    Raises Refusal if the archive is damaged or breaks a rule.
    """
    try:
        with zipfile.ZipFile(archive) as opened:
            total = check_members(opened.infolist(), archive.stat().st_size, bytes_left)
            folder.mkdir(exist_ok=True)
            if total > (free := shutil.disk_usage(folder).free):
                raise StorageError(
                    f"{archive} unpacks to {total} bytes, but {folder.parent} has {free}: set TMPDIR to a larger disk"
                )
            for member in opened.infolist():
                if not member.is_dir():
                    path = folder / PurePosixPath(member.filename)
                    path.parent.mkdir(parents=True, exist_ok=True)
                    with opened.open(member) as stream, path.open("wb") as out:
                        shutil.copyfileobj(stream, out, 2**20)
    except HeparError:
        raise
    except Exception as error:  # whatever a damaged archive does to zipfile, zlib, bz2 and lzma
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StorageError(f"{archive} cannot be unpacked: {error.strerror}; set TMPDIR to a larger disk") from None
        encrypted = isinstance(error, RuntimeError) and "password" in str(error)
        raise Refusal(RULE, "it is encrypted" if encrypted else f"it is damaged ({type(error).__name__})") from None
    only = list(folder.iterdir())
    if len(only) == 1 and only[0].is_dir() and only[0].name == archive.stem:
        inner = _free_place(f"{folder.name}.inner", folder.parent, folder.parent)
        only[0].rename(inner)
        folder.rmdir()
        inner.rename(folder)
    return total


def check_members(members: list[zipfile.ZipInfo], size_bytes: int, bytes_left: int) -> int:
    """The bytes that the members of an archive of a size unpack to.

    Raises Refusal if they are more than `bytes_left` or than scans compress to, or if a member leads elsewhere.
    """
    limit_bytes = min(bytes_left, _limit_bytes(size_bytes))
    if (total := sum(member.file_size for member in members)) > limit_bytes:
        raise Refusal(RULE, f"it unpacks to {total} bytes, more than {limit_bytes}")
    for number, member in enumerate(members, start=1):
        path = PurePosixPath(member.filename.replace("\\", "/"))
        if path.is_absolute() or ".." in path.parts:
            raise Refusal(RULE, f"member {number} leaves the folder")
        if stat.S_ISLNK(member.external_attr >> 16):
            raise Refusal(RULE, f"member {number} is a link")
    return total
