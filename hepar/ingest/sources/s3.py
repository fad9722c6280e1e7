"""Sources in S3 or a compatible store: `s3://bucket/prefix`. Endpoint and credentials come from the AWS settings."""

from __future__ import annotations

import base64
import hashlib
import os
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pydicom
from pydicom.errors import InvalidDicomError

from hepar.errors import DataError, Refusal, StorageError
from hepar.ingest.sources.dicom import CLASSIC, ENHANCED
from hepar.ingest.sources.files import VOLUME_ENDINGS
from hepar.runtime.progress import current_stage
from hepar.runtime.redaction import CREDENTIALS_RULE, has_credentials, redact
from hepar.runtime.remote_cache import in_parallel
from hepar.runtime.s3_client import SCHEME, client, s3_errors

DOWNLOADS = 3  # attempts on a file whose checksum is wrong
HEADER_BYTES = 2**16
DETACHED = (".mhd", ".nhdr")  # headers whose voxels are another file
WHOLE = (".json", ".csv", ".tsv", ".parquet", ".zip", *DETACHED)  # read when a source is listed
BY_NAME = (*(end for end in VOLUME_ENDINGS if end not in DETACHED), ".raw", ".zraw", ".gz", ".img", ".png")
BLOCK = 2**20


@dataclass(frozen=True)
class S3Object:
    """One object in the version of its ETag."""

    bucket: str
    key: str
    etag: str
    size: int

    @property
    def url(self) -> str:
        return f"{SCHEME}{self.bucket}/{self.key}"

    @property
    def version(self) -> str:
        return f"{self.url} {self.etag} {self.size}"

    def download(self, target: Path) -> None:
        """Raises StorageError if the store fails or the object changed, Refusal if its checksum stays wrong."""
        with s3_errors(self.url):
            for attempt in range(DOWNLOADS):
                if attempt:
                    time.sleep(2.0**attempt)
                head = client().head_object(Bucket=self.bucket, Key=self.key, ChecksumMode="ENABLED")
                if (found := head["ETag"].strip('"')) != self.etag:
                    raise StorageError(f"{self.url} changed during ingest, from ETag {self.etag} to {found}: run again")
                client().download_file(self.bucket, self.key, str(target))
                problem = self._problem(target, head)
                if not problem:
                    return
        raise Refusal("a download matches its checksum", f"{self.url}: {problem}, in {DOWNLOADS} attempts")

    def _problem(self, path: Path, head: Mapping[str, Any]) -> str:
        """What is wrong with a download by the best checksum that the store gives; empty if nothing is."""
        if (size := path.stat().st_size) != self.size:
            return f"{size} of {self.size} bytes"
        wanted, found = _checksums(path, head, self.etag, self._part_size)
        return "" if wanted == found else f"checksum {found} instead of {wanted}"

    def _part_size(self) -> int:
        head = client().head_object(Bucket=self.bucket, Key=self.key, PartNumber=1)
        return int(head["ContentLength"])


def _checksums(path: Path, head: Mapping[str, Any], etag: str, part_size: Callable[[], int]) -> tuple[str, str]:
    """The store's checksum and the file's: a checksum of the whole object, else the MD5 in the ETag."""
    whole = head.get("ChecksumType", "FULL_OBJECT") == "FULL_OBJECT"
    if whole and (wanted := head.get("ChecksumSHA256")):
        return wanted, base64.b64encode(_digest(path, "sha256").digest()).decode()
    if whole and (wanted := head.get("ChecksumCRC32")):
        return wanted, base64.b64encode(_crc32(path).to_bytes(4, "big")).decode()
    if head.get("ServerSideEncryption", "AES256") != "AES256" or head.get("SSECustomerAlgorithm"):
        return etag, etag  # the ETag of an object encrypted with a key is not a checksum; only its size was compared
    if "-" not in etag:
        return etag, _digest(path, "md5").hexdigest()
    return etag, _multipart(path, part_size())


def _digest(path: Path, name: str) -> Any:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, lambda: hashlib.new(name, usedforsecurity=False))


def _crc32(path: Path) -> int:
    value = 0
    with path.open("rb") as stream:
        while block := stream.read(BLOCK):
            value = zlib.crc32(block, value)
    return value


def _multipart(path: Path, part_size: int) -> str:
    """The ETag of a multipart upload: MD5 of the parts' MD5, and their number."""
    parts = []
    with path.open("rb") as stream:
        while block := stream.read(part_size):
            parts.append(hashlib.md5(block, usedforsecurity=False).digest())
    return f"{hashlib.md5(b''.join(parts), usedforsecurity=False).hexdigest()}-{len(parts)}"


class Buckets:
    """A local folder with one folder per bucket, in which placeholders stand for objects."""

    def __init__(self, root: Path) -> None:
        self.root = root.resolve()
        self._known: dict[Path, S3Object] = {}

    def placeholder(self, url: str) -> Path:
        """The local path of an object or prefix, existing or not. Raises DataError if `url` is not an S3 address."""
        if has_credentials(url):
            raise DataError(f"{redact(url)}: {CREDENTIALS_RULE}")
        bucket, _, key = url.removeprefix(SCHEME).partition("/")
        path = Path(os.path.normpath(self.root / bucket / key))
        if not bucket or not path.is_relative_to(self.root / bucket):
            raise DataError(f"{url} is not an S3 address; expected {SCHEME}BUCKET/KEY")
        return path

    def path(self, url: str) -> Path:
        """As `placeholder`, but a detached header is fetched, since it names the file of its voxels."""
        path = self.placeholder(url)
        if path.suffix in DETACHED and not path.exists():
            self._whole(path, self.remote(path))
        return path

    def objects(self, url: str) -> list[S3Object]:
        """The object at an address, or all objects below a prefix. Raises DataError if there is none."""
        self.placeholder(url)
        bucket, _, prefix = url.removeprefix(SCHEME).partition("/")
        with s3_errors(url):
            objects = list(list_objects(bucket, prefix))
        if one := next((item for item in objects if item.key == prefix), None):
            return [one]
        folder = f"{prefix.rstrip('/')}/" if prefix else ""
        objects = [item for item in objects if item.key.startswith(folder)]
        if not objects:
            raise DataError(f"source {url}: no such object, and no object below that prefix")
        return objects

    def mirror(self, url: str) -> Path:
        """The object as a file, or the prefix as a folder of placeholders. Raises DataError if there is neither."""
        path, objects = self.path(url), self.objects(url)
        if objects[0].url == url:
            self._whole(path, objects[0])
            return path
        for item in objects:
            self._known[self.path_of(item)] = item
        with current_stage().counting(len(objects), "files listed") as count:
            in_parallel(self._stub, objects, count.advance)
        return path

    def fetch(self, url: str) -> Path:
        """The prefix as a folder with every object in it. Raises DataError if there is none."""
        bucket, _, prefix = url.removeprefix(SCHEME).partition("/")
        folder = self.path(url)
        with s3_errors(url):
            objects = list(list_objects(bucket, f"{prefix.rstrip('/')}/"))
        if not objects:
            raise DataError(f"{url}: no object below that prefix")
        in_parallel(lambda item: self._whole(self.path_of(item), item), objects)
        return folder

    def path_of(self, item: S3Object) -> Path:
        """The local path of an object. Raises DataError if its key leaves the folder."""
        path = Path(os.path.normpath(self.root / item.bucket / item.key))
        if not path.is_relative_to(self.root / item.bucket) or "\0" in item.key:
            raise DataError(f"{item.url}: the key leaves its bucket")
        return path

    def remote(self, path: Path) -> S3Object:
        """The object that a path stands for; its ETag is empty if there is none, and fetching it then fails."""
        if path not in self._known:
            bucket, *parts = path.relative_to(self.root).parts
            key = "/".join(parts)
            try:
                with s3_errors(f"{SCHEME}{bucket}/{key}"):
                    head = client().head_object(Bucket=bucket, Key=key)
                self._known[path] = S3Object(bucket, key, head["ETag"].strip('"'), int(head["ContentLength"]))
            except DataError:
                self._known[path] = S3Object(bucket, key, "", 0)
        return self._known[path]

    def _stub(self, item: S3Object) -> None:
        path = self.path_of(item)
        with s3_errors(item.url):
            path.parent.mkdir(parents=True, exist_ok=True)
        name = path.name.lower()
        if name.endswith(WHOLE):
            self._whole(path, item)
        elif name.endswith(BY_NAME):
            path.touch()
        else:
            self._header(path, item)

    def _whole(self, path: Path, item: S3Object) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        item.download(path)

    def _header(self, path: Path, item: S3Object) -> None:
        """Fetch the beginning of a file; of a DICOM image all that precedes its pixels, of other DICOM all."""
        with s3_errors(item.url):
            span = {"Range": f"bytes=0-{HEADER_BYTES - 1}"} if item.size > HEADER_BYTES else {}
            body = client().get_object(Bucket=item.bucket, Key=item.key, **span)["Body"].read()
        path.write_bytes(body)
        if len(body) == item.size or body[128:132] != b"DICM" or _cut_before_pixels(path):
            return
        self._whole(path, item)
        _cut_before_pixels(path)


def _cut_before_pixels(path: Path) -> bool:
    """Cut off what follows the header; returns whether the file is a DICOM image with a whole header."""
    with path.open("r+b") as stream:
        try:
            header = pydicom.dcmread(stream, stop_before_pixels=True)
        except (InvalidDicomError, EOFError, OSError, AttributeError, ValueError):
            return False
        end = stream.tell()
        if header.get("SOPClassUID") not in {**CLASSIC, **ENHANCED} or end == stream.seek(0, os.SEEK_END):
            return False
        stream.truncate(end)
    return True


def list_objects(bucket: str, prefix: str) -> Iterator[S3Object]:
    """The objects whose keys begin with `prefix`, in order of their keys; folder markers are left out."""
    for page in client().get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix):
        for item in page.get("Contents", []):
            if not item["Key"].endswith("/"):
                yield S3Object(bucket, item["Key"], item["ETag"].strip('"'), int(item["Size"]))
