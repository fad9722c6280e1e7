"""Pools on DVC remotes: pushed, side by side too, pulled by version, registered model or git revision, and compared."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import BIN, call, environment, succeed
from toy_pool import Toy, toy_pool

from components import pool_versions
from hepar.runtime.artifacts import dvc_version, read_manifest, sha256_json, writing
from hepar.cases import LabelState, Split
from hepar.pool.diff import changes
from hepar.errors import DataError, StorageError
from hepar.pool.table import Pool

TOYS = [Toy("a"), Toy("b", liver=((12, 12, 12), 8)), Toy("c", tumour_state=LabelState.ABSENT, level=5.0)]


def sealed(folder: Path, toys: list[Toy]) -> Path:
    """A pool artifact of toy cases, whose entries are known by the toys that they are made from."""
    with writing(folder, "pool", {}) as partial:
        pool = toy_pool(partial, toys)
        hashes = [sha256_json(repr(toy)) for toy in toys]
        keyed = (replace(entry, sha256=own) for entry, own in zip(pool.entries, hashes, strict=True))
        Pool(partial, pool.plan, tuple(keyed)).save()
    return folder


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def objects(remote: Path) -> set[Path]:
    return {path for path in remote.rglob("*") if path.is_file()}


def test_a_version_is_the_hash_that_dvc_gives_the_folder(tmp_path: Path) -> None:
    pool = sealed(tmp_path / "pool", TOYS)
    succeed("dvc", "init", "--no-scm", "--quiet", cwd=tmp_path)
    succeed("dvc", "add", "--quiet", "pool", cwd=tmp_path)
    assert dvc_version(pool) in (tmp_path / "pool.dvc").read_text()


def test_what_is_pushed_is_pulled_by_its_version_alone(tmp_path: Path) -> None:
    pool = sealed(tmp_path / "pool", TOYS)
    modes = {path: path.stat().st_mode for path in pool.rglob("*")}
    version = pool_versions.push(pool, str(tmp_path / "remote"))
    assert version == dvc_version(pool)
    assert {path: path.stat().st_mode for path in pool.rglob("*")} == modes
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".hepar")] == []
    pool_versions.pull(version, tmp_path / "elsewhere" / "pool", str(tmp_path / "remote"))
    assert content(tmp_path / "elsewhere" / "pool") == content(pool)
    assert os.access(tmp_path / "elsewhere" / "pool" / "pool.parquet", os.W_OK)
    pool_versions.pull(version, tmp_path / "elsewhere" / "pool", str(tmp_path / "remote"))  # there already


def test_one_more_case_pushes_only_what_is_new(tmp_path: Path) -> None:
    remote = tmp_path / "remote"
    pool_versions.push(sealed(tmp_path / "pool", TOYS[:2]), str(remote))
    before = objects(remote)
    pool_versions.push(sealed(tmp_path / "pool", TOYS), str(remote))
    # arrays of the case (their files are equal to no other's), the table, the manifest, and the listing
    assert len(objects(remote) - before) == 2 + 3


def test_a_remote_may_have_any_name(tmp_path: Path) -> None:
    remote = tmp_path / "it's #1, with a comma"
    version = pool_versions.push(sealed(tmp_path / "pool", TOYS[:1]), str(remote))
    assert remote.is_dir()
    pool_versions.pull(version, tmp_path / "pulled", str(remote))
    with pytest.raises(DataError, match="cannot hold"):
        pool_versions.push(tmp_path / "pool", str(tmp_path / "%(y)s"))


def test_another_pool_in_the_way_is_left_alone(tmp_path: Path) -> None:
    version = pool_versions.push(sealed(tmp_path / "pool", TOYS), str(tmp_path / "remote"))
    other = sealed(tmp_path / "other", TOYS[:1])
    before = content(other)
    with pytest.raises(DataError, match="is there already and is another version"):
        pool_versions.pull(version, other, str(tmp_path / "remote"))
    assert content(other) == before


def test_a_version_that_the_remote_lacks_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "remote").mkdir()
    with pytest.raises(StorageError, match=r"^the remote .*/remote does not hold it, or not all of it$"):
        pool_versions.pull("0" * 32 + ".dir", tmp_path / "pool", str(tmp_path / "remote"))
    assert [path.name for path in tmp_path.iterdir()] == ["remote"]


def test_a_damaged_object_is_not_taken_for_the_pool(tmp_path: Path) -> None:
    version = pool_versions.push(sealed(tmp_path / "pool", TOYS), str(tmp_path / "remote"))
    largest = max(objects(tmp_path / "remote"), key=lambda path: path.stat().st_size)
    largest.chmod(0o644)
    largest.write_bytes(largest.read_bytes()[:-1])
    with pytest.raises(StorageError):
        pool_versions.pull(version, tmp_path / "again", str(tmp_path / "remote"))
    assert not (tmp_path / "again").exists()


def test_without_a_remote_it_is_told_how_to_name_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pool = sealed(tmp_path / "pool", TOYS[:1])
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="there is no DVC remote to hold pools: give --remote"):
        pool_versions.push(pool)


def test_the_remote_of_the_repository_around_is_the_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pool = sealed(tmp_path / "pool", TOYS[:1])
    succeed("dvc", "init", "--no-scm", "--quiet", cwd=tmp_path)
    succeed("dvc", "remote", "add", "--default", "own", "store", cwd=tmp_path)
    monkeypatch.chdir(tmp_path)
    pool_versions.push(pool)
    assert objects(tmp_path / "store")


def test_pushes_side_by_side_leave_every_version_whole(tmp_path: Path) -> None:
    pools = [sealed(tmp_path / str(n) / "pool", [*TOYS[:2], Toy(f"own-{n}", level=float(n))]) for n in range(3)]
    command = [str(BIN / "hepar"), "pool", "push", "--remote", str(tmp_path / "remote"), "--pool"]
    pushing = [
        subprocess.Popen([*command, str(pool)], stdout=subprocess.PIPE, text=True, env=environment()) for pool in pools
    ]
    versions = [process.communicate(timeout=300)[0].strip() for process in pushing]
    assert [process.returncode for process in pushing] == [0] * 3
    for n, version in enumerate(versions):
        pool_versions.pull(version, tmp_path / f"pulled-{n}", str(tmp_path / "remote"))
        assert content(tmp_path / f"pulled-{n}") == content(pools[n])


def test_a_git_revision_stands_for_the_pool_that_it_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    git = ("git", "-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "init.defaultBranch=main")
    succeed(*git, "init", "--quiet", cwd=tmp_path)
    versions = ["1" * 32 + ".dir", "2" * 32 + ".dir"]
    (tmp_path / "pool.dvc").write_text(f"outs:\n- md5: {versions[0]}\n  path: pool\n")
    succeed(*git, "add", ".", cwd=tmp_path)
    succeed(*git, "commit", "--quiet", "-m", "a pool", cwd=tmp_path)
    (tmp_path / "pool.dvc").unlink()
    stages = {
        "assemble-pool": {"outs": [{"path": "pool", "md5": versions[1]}]},
        "ingest": {"outs": [{"path": "cohort"}]},
    }
    (tmp_path / "dvc.lock").write_text(json.dumps({"stages": stages}))
    succeed(*git, "add", "--all", cwd=tmp_path)
    succeed(*git, "commit", "--quiet", "-m", "by stages", cwd=tmp_path)
    assert [pool_versions.resolve(revision) for revision in ("HEAD~1", "HEAD")] == versions
    with pytest.raises(DataError, match=r"^HEAD~5 is no version of a pool"):
        pool_versions.resolve("HEAD~5")


def test_what_changed_is_told_case_by_case_with_the_dice_of_old_and_new(tmp_path: Path) -> None:
    later = [
        replace(TOYS[0], liver=((12, 12, 12), 7)),  # another liver
        replace(TOYS[1], split=Split.VAL),
        Toy("d"),
    ]
    old, new = sealed(tmp_path / "old", TOYS), sealed(tmp_path / "new", later)
    found = {change.case_id: change for change in changes(Pool.load(old), Pool.load(new))}
    assert {name: change.change for name, change in found.items()} == {
        "a": "changed",  # toys have no hashes of their masks
        "b": "changed",
        "c": "removed",
        "d": "added",
    }
    balls = [int(Pool.load(folder).arrays(Pool.load(folder).entries[0]).liver.sum()) for folder in (old, new)]
    assert found["a"].liver_dice == pytest.approx(2 * balls[1] / sum(balls))  # the smaller lies in the larger
    assert found["a"].tumour_dice == 1
    assert found["b"].what == "split train → val"


def test_what_is_said_of_a_case_beside_its_labels_is_compared_too(tmp_path: Path) -> None:
    old, new = (Pool.load(sealed(tmp_path / name, TOYS)) for name in ("old", "new"))
    first = replace(new.entries[0], teacher="f" * 64, licence="CC0")
    (found,) = changes(old, replace(new, entries=(first, *new.entries[1:])))
    assert (found.case_id, found.change) == ("a", "changed")
    assert found.what == "licence none → CC0, teacher none → ffffffff"


def test_a_relabelled_case_says_what_was_known_before_and_is_known_now(tmp_path: Path) -> None:
    toys = [TOYS[0], replace(TOYS[1], tumour_state=LabelState.UNKNOWN)]
    later = [TOYS[0], TOYS[1]]
    found = changes(Pool.load(sealed(tmp_path / "old", toys)), Pool.load(sealed(tmp_path / "new", later)))
    assert [(change.case_id, change.change) for change in found] == [("b", "relabelled")]
    assert "tumour_state unknown → manual" in found[0].what
    assert found[0].tumour_dice is None  # nothing was known before


def test_two_versions_are_compared_without_pulling_either(tmp_path: Path) -> None:
    remote = str(tmp_path / "remote")
    versions = [
        pool_versions.push(sealed(tmp_path / name, toys), remote)
        for name, toys in (("old", TOYS), ("new", [*TOYS[:1], replace(TOYS[1], tumour_state=LabelState.UNKNOWN)]))
    ]
    table = succeed("hepar", "pool", "diff", *versions, "--remote", remote, "--format", "csv", cwd=tmp_path)
    lines = table.splitlines()
    assert lines[0] == "case_id,change,what,liver_dice,tumour_dice"
    assert [line.split(",")[:2] for line in lines[1:]] == [["b", "relabelled"], ["c", "removed"]]
    refused = call("hepar", "pool", "diff", versions[0], "nothing", "--remote", remote, cwd=tmp_path)
    assert refused.returncode == 2
    assert "nothing is no version of a pool" in refused.stderr


@pytest.fixture(scope="module")
def bucket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """A real S3 server on loopback with one bucket; the environment that reaches it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    settings = {
        "AWS_ENDPOINT_URL": url,
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    server = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-p", str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        end = time.monotonic() + 60
        while True:
            with socket.socket() as trial:
                if trial.connect_ex(("127.0.0.1", port)) == 0:
                    break
            assert time.monotonic() < end
            time.sleep(0.1)
        import boto3

        client = boto3.client(
            "s3",
            endpoint_url=url,
            aws_access_key_id="key",
            aws_secret_access_key="secret",
            region_name="us-east-1",
        )
        client.create_bucket(Bucket="pools")
        yield settings
    finally:
        server.kill()
        server.wait()


def test_a_bucket_holds_versions(bucket: dict[str, str], tmp_path: Path) -> None:
    pool = sealed(tmp_path / "pool", TOYS[:2])
    remote = {**bucket, "HEPAR_POOL_REMOTE": "s3://pools/hepar"}
    version = succeed("hepar", "pool", "push", cwd=tmp_path, **remote).strip()
    assert version == dvc_version(pool)
    succeed("hepar", "pool", "pull", version, "--pool", "again", cwd=tmp_path, **remote)
    assert content(tmp_path / "again") == content(pool)


def test_a_registered_model_brings_its_pool_back(by_kfp: Path, tmp_path: Path) -> None:
    tracking = {"MLFLOW_TRACKING_URI": f"sqlite:///{by_kfp / 'mlflow.db'}"}
    remote = ("--remote", str(tmp_path / "remote"))
    succeed("hepar", "pool", "push", "--pool", str(by_kfp / "pool"), *remote, cwd=tmp_path)
    succeed("hepar", "pool", "pull", "models:/hepar-tiny@champion", *remote, cwd=tmp_path, **tracking)
    assert read_manifest(tmp_path / "pool", "pool").hash == read_manifest(by_kfp / "pool", "pool").hash
    unknown = call("hepar", "pool", "pull", "models:/none@champion", *remote, "--pool", "x", cwd=tmp_path, **tracking)
    assert unknown.returncode == 2
    assert "models:/none@champion" in unknown.stderr
    shutil.rmtree(tmp_path / "pool")
