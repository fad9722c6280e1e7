"""The store that HEPAR_STORE names: a folder or `s3://BUCKET/PREFIX`, laid out as a DVC remote.

An object lies at the MD5 of its content, below `files/md5`. A version of an artifact is the MD5 of a JSON list of its
files with their MD5, followed by `.dir`, and an object itself, as for `dvc add` and `dvc push`. What is fetched is
compared with its MD5. Beside the objects lie named ones, which come and go: checkpoints.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hepar.errors import DataError, StorageError
from hepar.runtime import s3_client
from hepar.runtime.artifacts import md5_file
from hepar.runtime.environment import STORE_VARIABLE
from hepar.runtime.plain_names import broken_rule
from hepar.runtime.redaction import CREDENTIALS_RULE, has_credentials, redact
from hepar.runtime.remote_cache import in_parallel
from hepar.runtime.scratch import scratch_folder
from hepar.runtime.stored_files import VERSION
from hepar.runtime.whole_files import whole_file, write_text

OBJECTS = "files/md5"
DOWNLOADS = 3  # attempts on an object that arrives damaged


@dataclass(frozen=True)
class Store:
    """The store at an address."""

    url: str

    @classmethod
    def of_environment(cls) -> Store | None:
        """The store that HEPAR_STORE names; None without one. Raises DataError if it is neither a folder nor in S3."""
        url = os.environ.get(STORE_VARIABLE, "")
        if not url:
            return None
        if has_credentials(url):
            raise DataError(f"{STORE_VARIABLE} is {redact(url)}: {CREDENTIALS_RULE}")
        if "://" in url and not url.startswith(s3_client.SCHEME):
            raise DataError(f"{STORE_VARIABLE} is {redact(url)} but must be a folder or s3://BUCKET/PREFIX")
        return cls(url.rstrip("/") if "://" in url else str(Path(url).resolve()))

    @classmethod
    def needed_for(cls, what: str) -> Store:
        """The store that HEPAR_STORE names. Raises DataError saying what it is needed for if there is none."""
        if (store := cls.of_environment()) is None:
            raise DataError(f"{what} is in a store: set {STORE_VARIABLE} to the store that it was written to")
        return store

    def object(self, md5: str) -> StoredObject:
        """The object with this MD5, or of this version."""
        return StoredObject(self, md5)

    def listing(self, version: str) -> dict[str, str]:
        """The MD5 of each file of a version, by its path in the artifact.

        Raises DataError if the store lacks the version, StorageError if it fails or lists a path that is not plain.
        """
        if not VERSION.fullmatch(version):
            raise DataError(f"{version!r} is not a version: 32 hexadecimal digits and .dir")
        with scratch_folder("listing") as scratch:
            self.object(version).download(scratch / "list")
            try:
                listed = json.loads((scratch / "list").read_bytes())
                found = {str(entry["relpath"]): str(entry["md5"]) for entry in listed}
            except (ValueError, TypeError, KeyError, RecursionError):
                raise StorageError(f"version {version} in {self.url} is not a list of files") from None
        for name in found:
            if rule := broken_rule(name):
                raise StorageError(f"version {version} in {self.url} lists {name!r}, {rule}")
        return found

    def add(self, files: Mapping[str, Path]) -> list[str]:
        """Add objects, files by MD5, that the store lacks; returns those added. Raises StorageError if it fails."""
        known = in_parallel(lambda md5: self.has(_place(md5)), list(files))
        missing = [md5 for md5, is_known in zip(files, known, strict=True) if not is_known]
        in_parallel(lambda md5: self.put(_place(md5), files[md5]), missing)
        return missing

    def has(self, name: str) -> bool:
        """Whether there is an object of this name. Raises StorageError if the store fails."""
        if (path := self._path(name)) is not None:
            return path.is_file()
        try:
            with s3_client.s3_errors(self.address(name)):
                s3_client.client().head_object(**self._key(name))
        except DataError:
            return False
        return True

    def put(self, name: str, file: Path) -> None:
        """Write an object, whole or not at all. Raises StorageError if the store fails."""
        if (path := self._path(name)) is not None:
            with whole_file(path) as partial:
                shutil.copyfile(file, partial)
            return
        with s3_client.s3_errors(self.address(name)):
            key = self._key(name)
            s3_client.client().upload_file(str(file), key["Bucket"], key["Key"])

    def get(self, name: str, target: Path) -> None:
        """Read an object into a file. Raises DataError if there is none, StorageError if the store fails."""
        if (path := self._path(name)) is not None:
            try:
                shutil.copyfile(path, target)
            except FileNotFoundError:
                raise DataError(f"{path} does not exist") from None
            except OSError as error:
                raise StorageError(f"{path} cannot be read: {error.strerror}") from None
            return
        with s3_client.s3_errors(self.address(name)):
            key = self._key(name)
            s3_client.client().download_file(key["Bucket"], key["Key"], str(target))

    def put_text(self, name: str, text: str) -> None:
        """Write a small object, in place of an earlier one. Raises StorageError if the store fails."""
        with scratch_folder("text") as scratch:
            write_text(scratch / "text", text)
            self.put(name, scratch / "text")

    def get_text(self, name: str) -> str | None:
        """A small object; None if there is none. Raises StorageError if the store fails."""
        if not self.has(name):
            return None
        with scratch_folder("text") as scratch:
            self.get(name, scratch / "text")
            return (scratch / "text").read_bytes().decode()

    def remove(self, names: Iterable[str]) -> None:
        """Remove objects, of which none need exist. Raises StorageError if the store fails."""
        for name in names:
            if (path := self._path(name)) is not None:
                try:
                    path.unlink(missing_ok=True)
                except OSError as error:
                    raise StorageError(f"{path} cannot be removed: {error.strerror}") from None
                continue
            with s3_client.s3_errors(self.address(name)):
                s3_client.client().delete_object(**self._key(name))

    def address(self, name: str) -> str:
        """The address of an object, for messages."""
        return f"{self.url}/{name}"

    def _path(self, name: str) -> Path | None:
        return None if "://" in self.url else Path(self.url) / name

    def _key(self, name: str) -> dict[str, Any]:
        bucket, _, prefix = self.url.removeprefix(s3_client.SCHEME).partition("/")
        return {"Bucket": bucket, "Key": f"{prefix}/{name}" if prefix else name}


@dataclass(frozen=True)
class StoredObject:
    """One object; a `RemoteFile` of the cache, which knows it by its content in whatever store."""

    store: Store
    md5: str

    @property
    def url(self) -> str:
        return self.store.address(_place(self.md5))

    @property
    def version(self) -> str:
        return f"md5 {self.md5}"

    def download(self, target: Path) -> None:
        """Raises DataError if the store lacks the object, StorageError if it fails or the content stays wrong."""
        found = ""
        for _ in range(DOWNLOADS):
            self.store.get(_place(self.md5), target)
            if (found := md5_file(target)) == self.md5.removesuffix(".dir"):
                return
        target.unlink()
        raise StorageError(f"{self.url} is damaged: its MD5 is {found}")


def _place(md5: str) -> str:
    return f"{OBJECTS}/{md5[:2]}/{md5[2:]}"
