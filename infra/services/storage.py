#!/usr/bin/env python3
"""Make the buckets of a site, and back up or restore the database and the buckets: `hepar-storage` in the image.

The database is the one of libpq's variables (PGHOST, PGUSER, PGPASSWORD, PGDATABASE); the S3 server and its key are
boto3's (AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY). A backup is a folder:

    objects/ab/abcd…            the content of objects, named by its SHA-256, each content once
    snapshots/TIME/database     a dump of `pg_dump --format=custom`
    snapshots/TIME/objects.json key, size, ETag and SHA-256 of every object, by bucket; the SHA-256 of the dump
    unfinished.jsonl            the same of what a backup has stored that runs, or that was killed

A snapshot appears by one rename, so every snapshot is whole; the next backup goes on from what a killed one has stored.
The database is dumped before the buckets are listed, and MLflow and DVC upload files before they record them, so all
that the database names is among the objects. Metadata of objects, older versions of objects, secrets, and what Kubeflow
Pipelines stores itself are not backed up.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import boto3
from botocore.exceptions import BotoCoreError, ClientError

CONNECTIONS = 8
CHUNK_BYTES = 2**20
FAR_SMALLER = 0.5  # a snapshot with less than this share of another may be that of a site that was lost
MISSING = {"404", "NoSuchKey", "NoSuchBucket"}
TABLES = "select count(*) from pg_class where relkind in ('r', 'p') and relnamespace = 'public'::regnamespace"


class StorageFailure(Exception):
    """What the operator has to know, in one sentence."""


@dataclass(frozen=True)
class StoredObject:
    """An object of a bucket, and the SHA-256 of its content."""

    key: str
    size: int
    etag: str
    sha256: str


@dataclass(frozen=True)
class Snapshot:
    """One backup: its folder, the SHA-256 of its dump, and its objects by bucket."""

    folder: Path
    dump_sha256: str
    buckets: dict[str, list[StoredObject]]

    @classmethod
    def load(cls, folder: Path) -> Snapshot:
        """The snapshot in a folder. Raises StorageFailure if its list cannot be read."""
        try:
            values = json.loads(list_file(folder).read_text())
            buckets = {name: [StoredObject(**entry) for entry in found] for name, found in values["buckets"].items()}
            return cls(folder, values["dump_sha256"], buckets)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise StorageFailure(f"snapshot {folder.name} cannot be read: {error}") from None

    def objects(self) -> Iterator[StoredObject]:
        for found in self.buckets.values():
            yield from found

    def sizes(self) -> tuple[int, int, int]:
        """The number of objects, their bytes, and the bytes of the dump; a missing dump has none."""
        listed, dump = list(self.objects()), dump_file(self.folder)
        return len(listed), sum(found.size for found in listed), dump.stat().st_size if dump.is_file() else 0

    def is_far_smaller_than(self, other: Snapshot) -> bool:
        """Whether it has less than half of another's objects, of their bytes, or of the bytes of its dump."""
        return any(own < FAR_SMALLER * size for own, size in zip(self.sizes(), other.sizes(), strict=True))

    def __str__(self) -> str:
        count, size, dump = self.sizes()
        return f"{self.folder.name} ({count:,} objects with {size:,} bytes, a dump of {dump:,} bytes)"


def main() -> int:
    """Run the command of the command line; 1 and one sentence on standard error if it fails."""
    arguments = parse(sys.argv[1:])
    try:
        arguments.run(arguments)
    except StorageFailure as failure:
        print(f"hepar-storage: {failure}", file=sys.stderr)
        return 1
    except (BotoCoreError, ClientError) as error:
        print(f"hepar-storage: the S3 server fails: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"hepar-storage: {error}", file=sys.stderr)
        return 1
    return 0


def parse(words: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="hepar-storage", description=__doc__.split("\n", 1)[0])
    commands = parser.add_subparsers(required=True)

    made = commands.add_parser("make-buckets", help="create the buckets that are missing")
    made.add_argument("buckets", nargs="+", metavar="BUCKET")
    made.set_defaults(run=lambda given: make_buckets(given.buckets))

    saved = commands.add_parser("backup", help="back up the database and the buckets; prints the snapshot's name")
    saved.add_argument("folder", type=Path)
    saved.add_argument("--buckets", nargs="+", required=True, metavar="BUCKET")
    saved.add_argument(
        "--keep",
        type=int,
        choices=range(1, 1000),
        metavar="N",
        help="delete all snapshots but the last N, and those than which the newest is far smaller",
    )
    saved.set_defaults(run=lambda given: print(backup(given.folder, given.buckets, given.keep)))

    checked = commands.add_parser("verify", help="hash every file of a snapshot")
    restored = commands.add_parser("restore", help="fill an empty database and empty buckets from a snapshot")
    for command in (checked, restored):
        command.add_argument("folder", type=Path)
        command.add_argument("--snapshot", default="", help="its name; default: the newest")
    checked.set_defaults(run=lambda given: verify(given.folder, find_snapshot(given.folder, given.snapshot)))
    restored.set_defaults(run=lambda given: restore(given.folder, snapshot_to_restore(given.folder, given.snapshot)))
    return parser.parse_args(words)


def make_buckets(buckets: list[str]) -> None:
    """Create buckets; those that exist are left alone."""
    client = boto3.client("s3")
    existing = {found["Name"] for found in client.list_buckets()["Buckets"]}
    for bucket in buckets:
        if bucket not in existing:
            client.create_bucket(Bucket=bucket)


def backup(folder: Path, buckets: list[str], keep: int | None) -> str:
    """Write a new snapshot and return its name. Objects that an earlier snapshot holds are not downloaded again."""
    with only_one(folder):
        earlier = snapshots(folder)
        known = Snapshot.load(earlier[-1]).buckets if earlier else {}
        unfinished = Unfinished(folder)
        name = datetime.now(UTC).strftime("%Y-%m-%dT%H%M%S.%fZ")
        partial = folder / "snapshots" / f".{name}"
        partial.mkdir(parents=True)
        try:
            run_client("pg_dump", "--format=custom", "--no-owner", f"--file={dump_file(partial)}")
            values = {
                "dump_sha256": hash_file(dump_file(partial)),
                "buckets": {
                    bucket: [asdict(found) for found in copy_bucket(bucket, known.get(bucket, []), unfinished)]
                    for bucket in buckets
                },
            }
            list_file(partial).write_text(json.dumps(values, indent=1))
            for file in partial.iterdir():
                sync(file)
            partial.rename(folder / "snapshots" / name)
            sync(folder / "snapshots")
            unfinished.file.unlink(missing_ok=True)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        if keep:
            prune(folder, keep)
        return name


class Unfinished:
    """The objects that a backup has stored so far, so that the next one goes on from there if it is killed."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.file = folder, folder / "unfinished.jsonl"
        self._lock = threading.Lock()

    def load(self, bucket: str) -> list[StoredObject]:
        """Those of a bucket; a line that a killed backup has not finished is left out."""
        found = []
        for line in self.file.read_text().splitlines() if self.file.is_file() else ():
            with suppress(ValueError):
                of_bucket, values = json.loads(line)
                if of_bucket == bucket:
                    found.append(StoredObject(**values))
        return found

    def add(self, bucket: str, stored: StoredObject) -> None:
        """Add an object whose content is in the folder."""
        with self._lock, self.file.open("a") as stream:
            stream.write(f"\n{json.dumps([bucket, asdict(stored)])}")  # a new line, lest the one before was cut off


def copy_bucket(bucket: str, known: list[StoredObject], unfinished: Unfinished) -> list[StoredObject]:
    """Download what is new in a bucket; an object that is deleted meanwhile is left out and named on standard error."""
    client, folder = boto3.client("s3"), unfinished.folder
    same = {(found.key, found.size, found.etag): found for found in (*known, *unfinished.load(bucket))}

    def copy(listed: dict[str, Any]) -> StoredObject | None:
        before = same.get((listed["Key"], listed["Size"], listed["ETag"]))
        if before is not None and object_file(folder, before.sha256).is_file():
            return before
        try:
            body = client.get_object(Bucket=bucket, Key=listed["Key"])
        except ClientError as error:
            if error.response["Error"]["Code"] in MISSING:
                print(f"{bucket}/{listed['Key']} was deleted during the backup", file=sys.stderr)
                return None
            raise
        sha256, size = store(body["Body"], folder)
        stored = StoredObject(listed["Key"], size, body["ETag"], sha256)
        unfinished.add(bucket, stored)
        return stored

    with ThreadPoolExecutor(CONNECTIONS) as executor:
        return [found for found in executor.map(copy, list_bucket(client, bucket)) if found is not None]


def list_bucket(client: Any, bucket: str) -> list[dict[str, Any]]:
    """The objects of a bucket. Raises StorageFailure if there is no such bucket."""
    pages = client.get_paginator("list_objects_v2").paginate(Bucket=bucket)
    try:
        return [found for page in pages for found in page.get("Contents", ())]
    except ClientError as error:
        if error.response["Error"]["Code"] in MISSING:
            raise StorageFailure(f"there is no bucket {bucket}: create it with `make-buckets`") from None
        raise


def store(body: Any, folder: Path) -> tuple[str, int]:
    """Write a content to `objects/`; its SHA-256 and its size."""
    (folder / "objects").mkdir(parents=True, exist_ok=True)
    digest, size = hashlib.sha256(), 0
    with tempfile.NamedTemporaryFile(dir=folder / "objects", prefix=".", delete=False) as partial:
        try:
            for chunk in body.iter_chunks(CHUNK_BYTES):
                digest.update(chunk)
                size += len(chunk)
                partial.write(chunk)
            partial.flush()
            os.fsync(partial.fileno())
            target = object_file(folder, digest.hexdigest())
            target.parent.mkdir(exist_ok=True)
            Path(partial.name).rename(target)
        except BaseException:
            Path(partial.name).unlink(missing_ok=True)
            raise
    return digest.hexdigest(), size


def prune(folder: Path, keep: int) -> None:
    """Delete all but the newest snapshots, and the contents that no snapshot names any more.

    A snapshot than which the newest is far smaller is kept, and named on standard error.
    """
    newest = find_snapshot(folder, "")
    for old in snapshots(folder)[:-keep]:
        if newest.is_far_smaller_than(before := Snapshot.load(old)):
            print(f"snapshot {before} is not deleted: the newest, {newest}, is far smaller", file=sys.stderr)
        else:
            shutil.rmtree(old)
    needed = {found.sha256 for kept in snapshots(folder) for found in Snapshot.load(kept).objects()}
    for file in (folder / "objects").glob("*/*"):
        if file.name not in needed:
            file.unlink()


def verify(folder: Path, snapshot: Snapshot) -> None:
    """Hash the dump and every object. Raises StorageFailure naming the first that is missing or damaged."""
    check_file(dump_file(snapshot.folder), snapshot.dump_sha256, "the dump of the database")
    for bucket, found in snapshot.buckets.items():
        for entry in found:
            check_file(object_file(folder, entry.sha256), entry.sha256, f"{bucket}/{entry.key}")
    print(f"snapshot {snapshot.folder.name} is whole: a dump and {len(list(snapshot.objects()))} objects")


def restore(folder: Path, snapshot: Snapshot) -> None:
    """Fill the buckets, then the database in one transaction; repeat it if it broke off.

    Raises StorageFailure if a file of the backup is damaged, if the database has a table, or if a bucket holds an
    object that the snapshot does not have; nothing is written then.
    """
    verify(folder, snapshot)
    if tables := int(run_client("psql", "--no-psqlrc", "--tuples-only", f"--command={TABLES}")):
        raise StorageFailure(f"the database has {tables} tables but must be empty: stop MLflow, create a new database")
    client = boto3.client("s3")
    make_buckets(list(snapshot.buckets))
    for bucket, found in snapshot.buckets.items():
        listed = {entry["Key"] for entry in list_bucket(client, bucket)}
        if other := sorted(listed - {entry.key for entry in found}):
            raise StorageFailure(f"bucket {bucket} is not empty: it has {other[0]}, which the snapshot has not")
    with ThreadPoolExecutor(CONNECTIONS) as executor:
        for bucket, found in snapshot.buckets.items():
            uploads = [
                executor.submit(client.upload_file, str(object_file(folder, entry.sha256)), bucket, entry.key)
                for entry in found
            ]
            for upload in uploads:
                upload.result()
    dump = str(dump_file(snapshot.folder))
    run_client("pg_restore", "--no-owner", "--exit-on-error", "--single-transaction", f"--dbname={database()}", dump)
    print(f"snapshot {snapshot.folder.name} is restored")


def find_snapshot(folder: Path, name: str) -> Snapshot:
    """The snapshot of that name; the newest without one. Raises StorageFailure if there is none."""
    found = {path.name: path for path in snapshots(folder)}
    if not found or (name and name not in found):
        raise StorageFailure(f"{folder} has no snapshot {name}".rstrip())
    return Snapshot.load(found[name] if name else found[max(found)])


def snapshot_to_restore(folder: Path, name: str) -> Snapshot:
    """The snapshot of that name; the newest without one.

    Raises StorageFailure if there is none, or if the newest is far smaller than an earlier one and was not named.
    """
    chosen = find_snapshot(folder, name)
    for path in () if name else reversed(snapshots(folder)):
        if chosen.is_far_smaller_than(before := Snapshot.load(path)):
            raise StorageFailure(
                f"the newest snapshot, {chosen}, is far smaller than {before}: choose one of them with --snapshot NAME"
            )
    return chosen


def snapshots(folder: Path) -> list[Path]:
    """The folders of finished snapshots, the oldest first."""
    return sorted(path for path in (folder / "snapshots").glob("*") if not path.name.startswith("."))


@contextmanager
def only_one(folder: Path) -> Iterator[None]:
    """Refuse a second backup to the same folder, and remove what a killed one has left."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StorageFailure(f"another backup to {folder} is running") from None
        for left in (folder / "snapshots").glob(".*"):
            shutil.rmtree(left)
        for left in (folder / "objects").glob(".*"):
            left.unlink()
        yield


def run_client(*command: str) -> str:
    """The output of a program of PostgreSQL. Raises StorageFailure with its last words if it fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except FileNotFoundError:
        raise StorageFailure(f"there is no {command[0]}: install the clients of PostgreSQL") from None
    if done.returncode:
        reason = done.stderr.strip().rpartition("\n")[2]
        raise StorageFailure(f"{command[0]} ended with exit code {done.returncode}: {reason}")
    return done.stdout


def check_file(path: Path, sha256: str, what: str) -> None:
    if not path.is_file():
        raise StorageFailure(f"{what} is missing from the backup")
    if hash_file(path) != sha256:
        raise StorageFailure(f"{what} is damaged in the backup")


def hash_file(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def database() -> str:
    return os.environ.get("PGDATABASE", "") or os.environ.get("PGUSER", "")


def object_file(folder: Path, sha256: str) -> Path:
    return folder / "objects" / sha256[:2] / sha256


def dump_file(snapshot: Path) -> Path:
    return snapshot / "database"


def list_file(snapshot: Path) -> Path:
    return snapshot / "objects.json"


if __name__ == "__main__":
    sys.exit(main())
