"""Poisoned remotes: one sentence that names version and entry, and nothing is written outside of a temporary folder."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import boto3
import pytest
from conftest import call
from toy_pool import TOYS, content, finished_pool, with_columns

from components import pool_versions
from hepar.errors import StorageError
from hepar.pool.table import Pool
from hepar.runtime.artifacts import MANIFEST, dvc_version, write_artifact

Listing = list[dict[str, Any]]


def md5(data: bytes) -> str:
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


class Remote:
    """A remote folder with one good version, and further versions as an attacker would add them."""

    def __init__(self, folder: Path, good: str) -> None:
        self.folder = folder
        self.good = good

    def path(self, md5_or_version: str) -> Path:
        return self.folder / "files" / "md5" / md5_or_version[:2] / md5_or_version[2:]

    def add(self, data: bytes, suffix: str = "") -> str:
        name = md5(data) + suffix
        self.path(name).parent.mkdir(parents=True, exist_ok=True)
        if not self.path(name).exists():
            self.path(name).write_bytes(data)
        return name

    def listing(self) -> Listing:
        found: Listing = json.loads(self.path(self.good).read_text())
        return found

    def poisoned(self, change: Callable[[Listing], object]) -> str:
        """A version whose list of files is changed; its hash is right."""
        listing = self.listing()
        change(listing)
        return self.add(json.dumps(listing, sort_keys=True).encode(), ".dir")


@pytest.fixture(scope="module")
def pushed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A remote folder, and the version of the pool in it."""
    folder = tmp_path_factory.mktemp("pushed")
    return folder / "remote", pool_versions.push(finished_pool(folder / "pool", TOYS[:2]), str(folder / "remote"))


@pytest.fixture
def remote(tmp_path: Path, pushed: tuple[Path, str]) -> Remote:
    """A copy that a test may poison."""
    shutil.copytree(pushed[0], tmp_path / "remote")
    return Remote(tmp_path / "remote", pushed[1])


def everything(folder: Path) -> dict[str, tuple[int, int, str]]:
    """All paths below a folder with mode, size and where a link points."""
    found = {}
    for path in sorted(folder.rglob("*")):
        state = path.lstat()
        size = 0 if path.is_dir() else state.st_size
        found[str(path)] = (state.st_mode, size, str(path.readlink()) if path.is_symlink() else "")
    return found


def refuse(remote: Remote, version: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Pull and open a version; returns the sentence that refuses it."""
    place = tmp_path / "deep" / "deeper" / "work"
    temporary = tmp_path / "deep" / "tmp"
    for folder in (place, temporary):
        folder.mkdir(parents=True, exist_ok=True)
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    monkeypatch.chdir(place)
    before = everything(tmp_path)
    with pytest.raises(StorageError) as pulled:
        pool_versions.pull(version, Path("pool"), str(remote.folder))
    with pytest.raises(StorageError) as opened, pool_versions.open_pool(version, str(remote.folder)):
        pass
    assert everything(tmp_path) == before
    message = str(pulled.value)
    assert message == str(opened.value)
    assert message.startswith(f"pool version {version} on the remote {remote.folder} is refused: ")
    assert "\n" not in message
    assert len(message) < 600
    return message


HOSTILE_NAMES = {
    "up": "../../evil.json",
    "up in a folder": "cases/../../../evil.json",
    "to a picture outside": "pictures/../../x.png",
    "absolute": "/tmp/evil.json",
    "absolute to arrays": "/cases/a/image.b2nd",
    "backslash": "..\\evil.json",
    "backslash in arrays": "cases\\x/image.b2nd",
    "drive": "C:\\image.b2nd",
    "empty": "",
    "dot": ".",
    "dot dot": "..",
    "empty part": "cases//a/image.b2nd",
    "trailing slash": "cases/a/",
    "not normalised": "cases/./a/image.b2nd",
    "leading dot": "./pool.parquet",
    "nul": "cases/a\0/image.b2nd",
    "newline": "cases/a\n/image.b2nd",
    "escape": "cases/\x1b[2J/image.b2nd",
    "right to left": "cases/\u202eevil/image.b2nd",
    "dvc": ".dvc/config",
    "git": ".git/hooks/image.b2nd",
    "hidden": "cases/.ssh/image.b2nd",
    "code": "evil.py",
    "pickle": "cases/a/image.pkl",
    "table elsewhere": "cases/pool.parquet",
    "picture elsewhere": "x.png",
    "long": "cases/" + "x" * 300 + "/image.b2nd",
    "deep": "x/" * 600 + "image.b2nd",
    "surrogate": "cases/\ud800/image.b2nd",
}


@pytest.mark.parametrize("name", HOSTILE_NAMES.values(), ids=HOSTILE_NAMES.keys())
def test_a_hostile_name_writes_nothing(
    remote: Remote, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evil = remote.add(b"evil")
    for position in (0, -1):
        version = remote.poisoned(lambda listing, at=position: listing.insert(at, {"md5": evil, "relpath": name}))  # type: ignore[misc]
        message = refuse(remote, version, tmp_path, monkeypatch)
        assert repr(name)[:50].rstrip("'") in message


HOSTILE_LISTINGS: dict[str, tuple[Callable[[Listing], object], str]] = {
    "twice": (lambda files: files.append(dict(files[0])), "twice"),
    "twice in other Unicode": (
        lambda files: files.extend(
            {"md5": files[0]["md5"], "relpath": f"cases/{name}/image.b2nd"} for name in ("\u00e9", "e\u0301")
        ),
        "twice",
    ),
    "file and folder": (
        lambda files: files.extend(
            {"md5": files[0]["md5"], "relpath": f"x/image.b2nd{rest}"} for rest in ("", "/labels.b2nd")
        ),
        "as a file and as a folder",
    ),
    "no name": (lambda files: files.append({"md5": files[0]["md5"]}), "which is not a file with an MD5"),
    "number as name": (lambda files: files.append({"md5": files[0]["md5"], "relpath": 7}), "which is not a file"),
    "list in the list": (lambda files: files.append([]), "which is not a file with an MD5"),  # type: ignore[arg-type]
    "path as hash": (lambda files: files.append({"md5": "../../../x", "relpath": "x/image.b2nd"}), "not a file with"),
    "short hash": (
        lambda files: files.append({"md5": "0f", "relpath": "x/image.b2nd"}),
        "which is not a file with an MD5",
    ),
    "folder as hash": (
        lambda files: files.append({"md5": "0" * 32 + ".dir", "relpath": "x/image.b2nd"}),
        "which is not a file with an MD5",
    ),
    "no table": (lambda files: files.remove(next(f for f in files if f["relpath"] == Pool.TABLE)), "no pool.parquet"),
    "no manifest": (lambda files: files.remove(next(f for f in files if f["relpath"] == MANIFEST)), "no manifest.json"),
    "nothing": (lambda files: files.clear(), "lists no pool.parquet"),
}


@pytest.mark.parametrize(("change", "reason"), HOSTILE_LISTINGS.values(), ids=HOSTILE_LISTINGS.keys())
def test_a_hostile_list_of_files_writes_nothing(
    remote: Remote,
    change: Callable[[Listing], object],
    reason: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert reason in refuse(remote, remote.poisoned(change), tmp_path, monkeypatch)


@pytest.mark.parametrize("data", [b"", b"{}", b"null", b"\xff\xfe", b"[" * 100_000, b'"' + b"x" * 9999, b"[1e999]"])
def test_a_list_of_files_that_is_none_writes_nothing(
    remote: Remote, data: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse(remote, remote.add(data, ".dir"), tmp_path, monkeypatch)


def test_a_list_of_files_under_a_wrong_hash_is_refused(
    remote: Remote, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As for a user who pulls a version that was pushed when the remote was still good."""
    listing = remote.listing()
    listing.append({"md5": remote.add(b"evil"), "relpath": "../../evil.json"})
    remote.path(remote.good).chmod(0o644)
    remote.path(remote.good).write_text(json.dumps(listing))
    message = refuse(remote, remote.good, tmp_path, monkeypatch)
    assert "the list of files has the MD5 " in message


def object_of(remote: Remote, name: str) -> Path:
    return remote.path(next(file["md5"] for file in remote.listing() if file["relpath"] == name))


@pytest.mark.parametrize("kind", ["link", "dangling link", "link to itself", "fifo", "folder"])
@pytest.mark.parametrize("name", [Pool.TABLE, ""])
def test_an_object_that_is_no_regular_file_is_refused(
    remote: Remote, kind: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = object_of(remote, name) if name else remote.path(remote.good)
    (tmp_path / "secret").write_bytes(target.read_bytes())
    target.unlink()
    if kind == "fifo":
        os.mkfifo(target)
    elif kind == "folder":
        target.mkdir()
    else:
        target.symlink_to({"link": tmp_path / "secret", "dangling link": "/none"}.get(kind, target))
    if kind in ("dangling link", "link to itself"):
        with pytest.raises(StorageError, match=f"remote {remote.folder}"):
            pool_versions.pull(remote.good, tmp_path / "pool", str(remote.folder))
        assert not (tmp_path / "pool").exists()
    else:
        assert "is not a regular file" in refuse(remote, remote.good, tmp_path, monkeypatch)


def test_a_file_with_other_content_is_refused(remote: Remote, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = object_of(remote, Pool.TABLE)
    table.chmod(0o644)
    table.write_bytes(b"PAR1 evil")
    assert f"{Pool.TABLE!r} has the MD5 " in refuse(remote, remote.good, tmp_path, monkeypatch)


@pytest.mark.parametrize("name", [Pool.TABLE, ""])
def test_a_huge_object_is_refused_before_it_is_downloaded(
    remote: Remote, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    huge = object_of(remote, name) if name else remote.path(remote.good)
    huge.chmod(0o644)
    with huge.open("r+b") as stream:
        stream.truncate(2**40)  # sparse
    assert "has 1,099,511,627,776 bytes, " in refuse(remote, remote.good, tmp_path, monkeypatch)


def test_a_pool_that_does_not_fit_on_the_disk_is_refused_before_it_is_downloaded(
    remote: Remote, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr("shutil.disk_usage", lambda folder: usage)
    with pytest.raises(StorageError, match=r"^[\d,]+ bytes of pool version .*\.dir do not fit in 1,000 free bytes$"):
        pool_versions.pull(remote.good, tmp_path / "pool", str(remote.folder))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["remote"]


@pytest.mark.parametrize("folder", ["../../..", "/etc", "elsewhere"])
def test_a_table_that_points_elsewhere_is_refused(tmp_path: Path, folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made = tmp_path / "made" / "pool"
    pool = Pool.load(finished_pool(tmp_path / "good", TOYS[:1]))
    with write_artifact(made, Pool.KIND, {}) as partial:
        shutil.copytree(tmp_path / "good" / "a", partial / "a")
        Pool(partial, pool.plan, (with_columns(pool.entries[0], folder=folder),)).save()
    remote = Remote(tmp_path / "remote", good="")
    files = [{"md5": remote.add(data), "relpath": name} for name, data in content(made).items()]
    message = refuse(remote, remote.add(json.dumps(files).encode(), ".dir"), tmp_path, monkeypatch)
    assert f"case a has its arrays in '{folder}/image.b2nd', which is not listed" in message


def test_a_file_that_the_manifest_does_not_name_is_refused(remote: Remote, tmp_path: Path) -> None:
    extra = remote.add(b"extra")
    version = remote.poisoned(lambda listing: listing.append({"md5": extra, "relpath": "x/image.b2nd"}))
    with pytest.raises(StorageError, match=r"'x/image\.b2nd' is either listed or in manifest\.json, but not both$"):
        pool_versions.pull(version, tmp_path / "pool", str(remote.folder))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["remote"]


def test_only_listed_files_are_fetched_later(remote: Remote, tmp_path: Path) -> None:
    with pool_versions.open_pool(remote.good, str(remote.folder)) as opened:
        assert sorted(content(opened.pool.folder)) == [Pool.PLAN, Pool.TABLE]
        with pytest.raises(StorageError, match=r"'\.\./\.\./x' is not listed"):
            opened.fetch(["a/image.b2nd", "../../x"])
        opened.fetch(["a/image.b2nd"])
        opened.fetch(["a/image.b2nd", "a/labels.b2nd"])
        assert sorted(content(opened.pool.folder)) == ["a/image.b2nd", "a/labels.b2nd", Pool.PLAN, Pool.TABLE]


def test_a_bucket_is_not_trusted_either(remote: Remote, bucket: dict[str, str], tmp_path: Path) -> None:
    client = boto3.client(
        "s3",
        endpoint_url=bucket["AWS_ENDPOINT_URL"],
        aws_access_key_id="key",
        aws_secret_access_key="secret",
        region_name="us-east-1",
    )
    evil = remote.add(b"evil")
    hostile = remote.poisoned(lambda listing: listing.append({"md5": evil, "relpath": "../../evil.json"}))
    for path in remote.folder.rglob("*"):
        if path.is_file():
            client.upload_file(str(path), "pools", f"poisoned/{path.relative_to(remote.folder).as_posix()}")
    place = tmp_path / "deep" / "work"
    place.mkdir(parents=True)
    before = everything(tmp_path)
    command = ("hepar", "pool", "pull", "--remote", "s3://pools/poisoned")
    refused = call(*command, hostile, cwd=place, **bucket)
    assert refused.returncode == 2
    assert f"pool version {hostile} on the remote s3://pools/poisoned is refused" in " ".join(refused.stderr.split())
    assert "Traceback" not in refused.stderr
    assert everything(tmp_path) == before
    missing = call(*command, "0" * 32 + ".dir", cwd=place, **bucket)
    assert (missing.returncode, "does not have version" in missing.stderr) == (2, True)
    assert everything(tmp_path) == before
    assert call(*command, remote.good, cwd=place, **bucket).returncode == 0
    assert dvc_version(place / "pool") == remote.good
    assert sorted(path.name for path in place.iterdir()) == ["pool"]
