"""A version of a pool on a DVC remote, read without trusting the remote.

A version is the MD5 of a list of files, which is itself an object on the remote. That object comes first; its hash must
be the version, and every name in it that of a file which a pool holds. Then the size of each file is asked for, and
only then are files downloaded, each to its checked name in a folder of the caller's; the MD5 of each must be the listed
one. DVC is asked for the file system of the remote and for the place of an object, for nothing else.
"""

from __future__ import annotations

import json
import re
import shutil
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from hepar.errors import HeparError, StorageError, one_line
from hepar.pool.table import Pool
from hepar.runtime.artifacts import MANIFEST, md5_file, read_manifest
from hepar.runtime.plain_names import broken_rule
from hepar.runtime.redaction import redact

MD5 = re.compile(r"[0-9a-f]{32}")
MAX_LISTING_BYTES, MAX_FILES = 2**28, 10**6
CONNECTIONS = 16
T = TypeVar("T")


@dataclass(frozen=True)
class RemotePool:
    """A version and its files: `listing` maps a path in the pool to the MD5 of its content."""

    version: str
    url: str
    listing: Mapping[str, str]
    store: Any  # DVC's object database

    @classmethod
    def open(cls, version: str, settings: Mapping[str, Any], scratch: Path) -> RemotePool:
        """Downloads and checks the list of files; `scratch` is a folder for temporary files.

        Raises StorageError if the remote cannot be reached, lacks the version, or lists a file that a pool cannot hold.
        """
        opened = cls(version, redact(str(settings["url"])), {}, None)
        with opened._reading():
            from dvc.data_cloud import Remote
            from dvc.fs import get_cloud_fs

            kind, config, path = get_cloud_fs({"core": {}, "remote": {"origin": dict(settings)}}, name="origin")
            opened = cls(version, opened.url, {}, Remote("origin", path, kind(**config), tmp_dir=str(scratch)).odb)
        file = scratch / "listing"
        opened._check_size("the list of files", opened._size(version), MAX_LISTING_BYTES)
        opened._download(version, "the list of files", file)
        return cls(version, opened.url, opened._read_listing(file), opened.store)

    def fetch(self, names: Iterable[str], folder: Path) -> None:
        """Downloads files into a folder, where they have the same relative paths; those already there are kept.

        Raises StorageError naming the first file that is not listed, too large, or not what the listing says, or if the
        disk has no room for all of them.
        """
        wanted = [name for name in dict.fromkeys(names) if not (folder / name).exists()]
        for name in wanted:
            if name not in self.listing:
                raise self._refusal(f"{_shown(name)} is not listed")
        with ThreadPoolExecutor(CONNECTIONS) as executor:
            sizes = dict(zip(wanted, _all(executor, self._size, [self.listing[name] for name in wanted]), strict=True))
            for name, size in sizes.items():
                self._check_size(_shown(name), size, Pool.max_bytes(name) or 0)
            folder.mkdir(parents=True, exist_ok=True)
            if (needed := sum(sizes.values())) > (free := shutil.disk_usage(folder).free):
                raise StorageError(f"{needed:,} bytes of pool version {self.version} do not fit in {free:,} free bytes")
            _all(executor, lambda name: self._download(self.listing[name], _shown(name), folder / name), wanted)

    def fetch_all(self, folder: Path) -> None:
        """Downloads the whole pool; raises StorageError as `fetch` does, or if the pool is incomplete."""
        self.fetch(self.listing, folder)
        with self._checking():
            named = {MANIFEST, *read_manifest(folder, Pool.KIND).files}
        if odd := sorted(named ^ self.listing.keys()):
            raise self._refusal(f"{_shown(odd[0])} is either listed or in {MANIFEST}, but not both")
        self.load(folder)

    def load(self, folder: Path) -> Pool:
        """The pool in a folder with table and plan. Raises StorageError if the arrays of a case are not listed."""
        with self._checking():
            pool = Pool.load(folder)
        for entry in pool.entries:
            for name in Pool.array_files(entry):
                if name not in self.listing:
                    raise self._refusal(f"case {entry.case_id} has its arrays in {_shown(name)}, which is not listed")
        return pool

    def _read_listing(self, file: Path) -> dict[str, str]:
        try:
            entries = json.loads(file.read_bytes())
        except (ValueError, RecursionError):
            entries = None
        if not isinstance(entries, list) or len(entries) > MAX_FILES:
            raise self._refusal(f"its list of files is not a JSON list of at most {MAX_FILES:,} files")
        listing, known = dict[str, str](), set[str]()
        for entry in entries:
            match entry:
                case {"md5": str(md5), "relpath": str(name)} if MD5.fullmatch(md5):
                    if rule := _broken_rule(name):
                        raise self._refusal(f"it lists {_shown(name)}, {rule}")
                    if (normal := unicodedata.normalize("NFC", name)) in known:
                        raise self._refusal(f"it lists {_shown(name)} twice")
                    known.add(normal)
                    listing[name] = md5
                case _:
                    raise self._refusal(f"it lists {_shown(str(entry))}, which is not a file with an MD5")
        folders = {str(parent) for name in listing for parent in Path(name).parents}
        for name in (*Pool.REQUIRED, MANIFEST):
            if name not in listing:
                raise self._refusal(f"it lists no {name}")
        if both := sorted(folders & listing.keys()):
            raise self._refusal(f"it lists {_shown(both[0])} as a file and as a folder")
        return listing

    def _size(self, md5: str) -> int:
        """Bytes of an object. Raises StorageError if it is missing or not a regular file."""
        with self._reading():
            found = self.store.fs.info(self.store.oid_to_path(md5))
        if found.get("type") != "file" or found.get("islink"):
            raise self._refusal(f"the object {md5} is not a regular file")
        return int(found.get("size") or 0)

    def _check_size(self, what: str, size: int, most: int) -> None:
        if size > most:
            raise self._refusal(f"{what} has {size:,} bytes, but at most {most:,} are allowed")

    def _download(self, md5: str, what: str, target: Path) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        with self._reading():
            self.store.fs.get_file(self.store.oid_to_path(md5), str(target))
            found = md5_file(target)
        if found != md5.removesuffix(".dir"):
            target.unlink()
            raise self._refusal(f"{what} has the MD5 {found[:12]} but must have {md5[:12]}")

    def _refusal(self, reason: str) -> StorageError:
        return StorageError(f"pool version {self.version} on the remote {self.url} is refused: {reason}")

    @contextmanager
    def _checking(self) -> Iterator[None]:
        """Refuse the version if a file in it cannot be read."""
        try:
            yield
        except StorageError:
            raise
        except HeparError as error:
            raise self._refusal(str(error)) from None

    @contextmanager
    def _reading(self) -> Iterator[None]:
        """Give the errors of all kinds of remotes as StorageError."""
        try:
            yield
        except FileNotFoundError:
            raise StorageError(
                f"the remote {self.url} does not have version {self.version}, or has only part of it"
            ) from None
        except Exception as error:  # each kind of remote has errors of its own
            message = one_line(error) or type(error).__name__
            raise StorageError(redact(f"the remote {self.url} cannot be read: {message}")) from None


def _all(executor: ThreadPoolExecutor, function: Callable[[str], T], values: Iterable[str]) -> list[T]:
    """The results for all values, in order; the first error cancels what has not begun."""
    futures = [executor.submit(function, value) for value in values]
    try:
        return [future.result() for future in futures]
    except BaseException:
        executor.shutdown(wait=True, cancel_futures=True)
        raise


def _broken_rule(name: str) -> str:
    """Why a name cannot be that of a file in a pool; empty if it can."""
    return broken_rule(name) or ("" if Pool.max_bytes(name) else "which is not a file of a pool")


def _shown(name: str) -> str:
    text = repr(name)
    return text if len(text) <= 120 else f"{text[:100]}…{text[-10:]}"
