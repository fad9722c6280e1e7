"""Files of a remote store (S3, DICOMweb), fetched case by case through a bounded cache.

A reader sees a local tree: descriptions, tables and DICOM headers in full, all other files as empty placeholders. Each
case maps its placeholders to remote files (`SourceCase.remote`); `local` fetches them while the case is worked on.

The cache lies in HEPAR_CACHE, or the user's cache folder, or in a container where temporary files are, and takes at
most HEPAR_CACHE_GIB (20). It remembers the SHA-256 of every version that was ever fetched, so an unchanged case is
recognised without fetching it. A file in it is compared with this hash once in each process that uses it.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sqlite3
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import lru_cache
from pathlib import Path
from threading import Lock
from typing import Any, Protocol, TypeVar
from uuid import uuid4

from hepar.errors import DataError
from hepar.runtime.artifacts import sha256_file
from hepar.runtime.environment import EPHEMERAL_VARIABLE
from hepar.runtime.scratch import scratch_folder

FOLDER_VARIABLE, LIMIT_VARIABLE = "HEPAR_CACHE", "HEPAR_CACHE_GIB"
DEFAULT_LIMIT_GIB = 20.0
CONNECTIONS = 8
BATCH = 256
STALE_SECONDS = 24 * 3600  # an unfinished download that old was abandoned
BUSY_SECONDS = 60  # to wait for another process that locks the index of digests
_CREATION = Lock()  # closing a file drops the locks that SQLite holds on it in other threads
Located = TypeVar("Located")
Item = TypeVar("Item")
Result = TypeVar("Result")


class RemoteFile(Protocol):
    """One file of a store. `version` names store, address and content: other bytes have another version."""

    @property
    def url(self) -> str: ...

    @property
    def version(self) -> str: ...

    def download(self, target: Path) -> None:
        """Write the file's bytes, checked, to `target`. Raises DataError or StorageError naming the URL."""


@dataclass(frozen=True)
class Cache:
    """Fetched files by version; above the limit the least recently used are dropped. Processes may share it."""

    folder: Path
    limit_bytes: int

    @classmethod
    def of_user(cls) -> Cache:
        """The cache that the environment names. Raises DataError if its limit is not a positive number."""
        given = os.environ.get(LIMIT_VARIABLE) or str(DEFAULT_LIMIT_GIB)
        try:
            limit = float(given)
        except ValueError:
            limit = 0.0
        if not limit > 0:
            raise DataError(f"{LIMIT_VARIABLE} is {given!r} but must be a number of GiB above 0")
        return cls(Path(os.environ.get(FOLDER_VARIABLE) or _default_folder()), int(limit * 2**30))

    def digests(self, files: Sequence[RemoteFile]) -> list[str]:
        """SHA-256 of each file; versions never fetched before are fetched."""
        known = self._known(files)
        missing = [file for file in files if file.version not in known]
        known.update(
            (file.version, digest) for file, digest in zip(missing, in_parallel(self._fetch, missing), strict=True)
        )
        return [known[file.version] for file in files]

    def place(self, file: RemoteFile, target: Path) -> None:
        """Link or copy a file to `target`, from the cache or, if it is missing or damaged there, its store."""
        kept = self._kept(file)
        target.parent.mkdir(parents=True, exist_ok=True)
        while True:
            if not self._is_sound(file):
                self._fetch(file)
            with suppress(FileNotFoundError):  # another process trimmed it meanwhile
                os.utime(kept, ns=(time.time_ns(), kept.stat().st_mtime_ns))  # of use alone: the file is unchanged
                try:
                    os.link(kept, target)
                except FileNotFoundError:
                    raise
                except OSError:  # another file system
                    shutil.copyfile(kept, target)
                return

    def trim(self) -> None:
        """Drop the least recently used files above the limit, and abandoned downloads."""
        found = []
        for entry in os.scandir(self._files()):
            with suppress(FileNotFoundError):
                state = entry.stat()
                if entry.name.startswith(".") and time.time() - state.st_mtime < STALE_SECONDS:
                    continue
                found.append((entry.name.startswith("."), state.st_atime, state.st_size, Path(entry.path)))
        total = sum(size for partial, _, size, _ in found if not partial)
        for partial, _, size, path in sorted(found):
            if partial or total > self.limit_bytes:
                path.unlink(missing_ok=True)
                total -= 0 if partial else size

    def _known(self, files: Sequence[RemoteFile]) -> dict[str, str]:
        """SHA-256 by version of the files that were fetched before."""
        known: dict[str, str] = {}
        with self._digests() as table:
            for some in batches(files):
                marks = ", ".join("?" * len(some))
                query = f"SELECT version, sha256 FROM digest WHERE version IN ({marks})"
                known.update(table.execute(query, [file.version for file in some]))
        return known

    def _is_sound(self, file: RemoteFile) -> bool:
        """Whether a file is in the cache with the content that was fetched."""
        kept = self._kept(file)
        try:
            state = kept.stat()
            found = _sha256(kept, state.st_ino, state.st_mtime_ns, state.st_size)
        except OSError:  # not there, or the disk cannot read it
            return False
        return self._known([file]).get(file.version) == found

    def _fetch(self, file: RemoteFile) -> str:
        kept = self._kept(file)
        partial = kept.with_name(f".{kept.name}.{uuid4().hex}")
        try:
            file.download(partial)
            digest = sha256_file(partial)
            with partial.open("rb") as stream:
                os.fsync(stream.fileno())  # else a power cut could leave a short file under the final name
            with self._digests() as table:
                table.execute("INSERT OR REPLACE INTO digest VALUES (?, ?)", (file.version, digest))
            partial.replace(kept)
        finally:
            partial.unlink(missing_ok=True)
        return digest

    def _kept(self, file: RemoteFile) -> Path:
        return self._files() / hashlib.sha256(file.version.encode()).hexdigest()

    def _files(self) -> Path:
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)  # addresses and files may name patients
        files = self.folder / "files"
        files.mkdir(exist_ok=True, mode=0o700)
        return files

    @contextmanager
    def _digests(self) -> Iterator[sqlite3.Connection]:
        self._files()
        index = self.folder / "digests.sqlite"
        with _CREATION:
            if not index.exists():
                index.touch(mode=0o600)
        with suppress(PermissionError):
            index.chmod(0o600)  # one of an earlier version; SQLite gives its journal the same mode
        with closing(sqlite3.connect(index, timeout=BUSY_SECONDS)) as connection, connection:
            connection.execute("CREATE TABLE IF NOT EXISTS digest (version TEXT PRIMARY KEY, sha256 TEXT)")
            yield connection


@lru_cache(maxsize=2**16)
def _sha256(path: Path, inode: int, mtime_ns: int, size: int) -> str:
    return sha256_file(path)


def _default_folder() -> Path:
    """In the user's cache folder; in a container, which has none to keep, where temporary files are."""
    if os.environ.get(EPHEMERAL_VARIABLE):
        return Path(tempfile.gettempdir()) / f"hepar-cache-{os.getuid()}"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hepar"


def digests(files: Mapping[Path, RemoteFile]) -> dict[Path, str]:
    """SHA-256 of every file, several fetched at a time where they must be."""
    return dict(zip(files, Cache.of_user().digests(list(files.values())), strict=True)) if files else {}


@contextmanager
def local(item: Located, remote: Mapping[Path, RemoteFile]) -> Iterator[Located]:
    """A dataclass with its `remote` paths replaced by local copies, which are removed when the context ends."""
    if not remote:
        yield item
        return
    cache = Cache.of_user()
    with scratch_folder("case") as name:
        root = Path(os.path.commonpath([path.parent for path in remote]))
        copies = {path: name / path.relative_to(root) for path in remote}
        in_parallel(lambda path: cache.place(remote[path], copies[path]), list(remote))
        cache.trim()
        yield relocated(item, copies)


def relocated(item: Located, copies: Mapping[Path, Path]) -> Located:
    """A dataclass, tuple or path with every path in `copies` replaced, at any depth."""
    return _relocated(item, copies)  # type: ignore[no-any-return]


def _relocated(item: Any, copies: Mapping[Path, Path]) -> Any:
    if isinstance(item, Path):
        return copies.get(item, item)
    if isinstance(item, tuple):
        return tuple(_relocated(part, copies) for part in item)
    if is_dataclass(item) and not isinstance(item, type):
        changed = {part.name: _relocated(getattr(item, part.name), copies) for part in fields(item)}
        return replace(item, **changed)
    return item


def in_parallel(
    work: Callable[[Item], Result], items: Sequence[Item], done: Callable[[int], None] = lambda count: None
) -> list[Result]:
    """`work` on every item over several connections, results in order; `done` receives the count so far."""
    results: list[Result] = []
    with ThreadPoolExecutor(CONNECTIONS) as executor:
        for some in batches(items):
            results += executor.map(work, some)
            done(len(results))
    return results


def batches(items: Sequence[Item]) -> Iterator[Sequence[Item]]:
    """The items, `BATCH` at a time."""
    return (items[start : start + BATCH] for start in range(0, len(items), BATCH))
