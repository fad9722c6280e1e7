"""Pools on DVC remotes: pushed, also concurrently, pulled by version, model or git revision, and compared."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from commands import start
from conftest import call, succeed
from toy_pool import TOYS, Toy, content, finished_pool, with_columns

from components import pool_versions
from hepar.cases import LabelState, Split
from hepar.errors import DataError, NotConfigured, StorageError
from hepar.pool.diff import EntryDiff, diff_pools
from hepar.pool.table import Pool
from hepar.runtime.artifacts import dvc_version, read_manifest


def objects(remote: Path) -> set[Path]:
    return {path for path in remote.rglob("*") if path.is_file()}


def test_a_version_is_the_hash_dvc_gives_the_folder(tmp_path: Path) -> None:
    pool = finished_pool(tmp_path / "pool", TOYS)
    succeed("dvc", "init", "--no-scm", "--quiet", cwd=tmp_path)
    succeed("dvc", "add", "--quiet", "pool", cwd=tmp_path)
    assert dvc_version(pool) in (tmp_path / "pool.dvc").read_text()


def test_a_pushed_pool_is_pulled_by_its_version(tmp_path: Path) -> None:
    pool = finished_pool(tmp_path / "pool", TOYS)
    modes = {path: path.stat().st_mode for path in pool.rglob("*")}
    version = pool_versions.push(pool, str(tmp_path / "remote"))
    assert version == dvc_version(pool)
    assert {path: path.stat().st_mode for path in pool.rglob("*")} == modes
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".hepar")] == []
    pool_versions.pull(version, tmp_path / "elsewhere" / "pool", str(tmp_path / "remote"))
    assert content(tmp_path / "elsewhere" / "pool") == content(pool)
    assert os.access(tmp_path / "elsewhere" / "pool" / "pool.parquet", os.W_OK)
    pool_versions.pull(
        version, tmp_path / "elsewhere" / "pool", str(tmp_path / "remote")
    )  # already there: nothing to do


def test_one_more_case_pushes_only_new_objects(tmp_path: Path) -> None:
    remote = tmp_path / "remote"
    pool_versions.push(finished_pool(tmp_path / "pool", TOYS[:2]), str(remote))
    before = objects(remote)
    pool_versions.push(finished_pool(tmp_path / "pool", TOYS), str(remote))
    # the two arrays of the case, the table, the manifest, and the listing of the folder
    assert len(objects(remote) - before) == 2 + 3


def test_a_remote_may_have_any_name(tmp_path: Path) -> None:
    remote = tmp_path / "it's #1, with a comma"
    version = pool_versions.push(finished_pool(tmp_path / "pool", TOYS[:1]), str(remote))
    assert remote.is_dir()
    pool_versions.pull(version, tmp_path / "pulled", str(remote))
    with pytest.raises(DataError, match="a DVC config file cannot hold"):
        pool_versions.push(tmp_path / "pool", str(tmp_path / "%(y)s"))


def test_another_pool_in_the_folder_is_not_overwritten(tmp_path: Path) -> None:
    version = pool_versions.push(finished_pool(tmp_path / "pool", TOYS), str(tmp_path / "remote"))
    other = finished_pool(tmp_path / "other", TOYS[:1])
    before = content(other)
    with pytest.raises(DataError, match="already exists and is not version"):
        pool_versions.pull(version, other, str(tmp_path / "remote"))
    assert content(other) == before


def test_a_version_missing_from_the_remote_is_refused_and_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "remote").mkdir()
    with pytest.raises(StorageError, match=r"^the remote .*/remote does not have version 0+\.dir, or has only part"):
        pool_versions.pull("0" * 32 + ".dir", tmp_path / "pool", str(tmp_path / "remote"))
    assert [path.name for path in tmp_path.iterdir()] == ["remote"]


def test_a_damaged_object_is_refused(tmp_path: Path) -> None:
    version = pool_versions.push(finished_pool(tmp_path / "pool", TOYS), str(tmp_path / "remote"))
    largest = max(objects(tmp_path / "remote"), key=lambda path: path.stat().st_size)
    largest.chmod(0o644)
    largest.write_bytes(largest.read_bytes()[:-1])
    with pytest.raises(StorageError, match=rf"^pool version {version} on the .* has the MD5 [0-9a-f]+ but must have"):
        pool_versions.pull(version, tmp_path / "again", str(tmp_path / "remote"))
    assert not (tmp_path / "again").exists()


def test_without_a_remote_the_error_says_how_to_set_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pool = finished_pool(tmp_path / "pool", TOYS[:1])
    monkeypatch.chdir(tmp_path)
    with pytest.raises(NotConfigured, match="no DVC remote is configured for pools: pass --remote"):
        pool_versions.push(pool)


def test_the_default_remote_is_that_of_the_dvc_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pool = finished_pool(tmp_path / "pool", TOYS[:1])
    succeed("dvc", "init", "--no-scm", "--quiet", cwd=tmp_path)
    succeed("dvc", "remote", "add", "--default", "origin", "store", cwd=tmp_path)
    monkeypatch.chdir(tmp_path)
    pool_versions.push(pool)
    assert objects(tmp_path / "store")


def test_concurrent_pushes_leave_every_version_complete(tmp_path: Path) -> None:
    pools = [finished_pool(tmp_path / str(n) / "pool", [*TOYS[:2], Toy(f"own-{n}", level=float(n))]) for n in range(3)]
    command = ["hepar", "pool", "push", "--remote", str(tmp_path / "remote"), "--pool"]
    pushing = [start([*command, str(pool)], tmp_path) for pool in pools]
    pushed = [process.end(300) for process in pushing]
    assert [ended.code for ended in pushed] == [0] * 3, pushed
    versions = [ended.stdout.strip() for ended in pushed]
    for n, version in enumerate(versions):
        pool_versions.pull(version, tmp_path / f"pulled-{n}", str(tmp_path / "remote"))
        assert content(tmp_path / f"pulled-{n}") == content(pools[n])


def test_a_git_revision_resolves_to_the_pool_in_its_dvc_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
    with pytest.raises(DataError, match=r"^HEAD~5 is not a pool version"):
        pool_versions.resolve("HEAD~5")


def test_a_diff_lists_each_case_with_the_dice_of_old_and_new(tmp_path: Path) -> None:
    later = [
        replace(TOYS[0], liver=((12, 12, 12), 7)),  # another liver
        replace(TOYS[1], split=Split.VAL),
        Toy("d"),
    ]
    old, new = finished_pool(tmp_path / "old", TOYS), finished_pool(tmp_path / "new", later)
    diffs = {diff.case_id: diff for diff in diff_pools(Pool.load(old), Pool.load(new))}
    assert {case_id: diff.change for case_id, diff in diffs.items()} == {
        "a": "changed",  # not relabelled: toys have no mask hashes
        "b": "changed",
        "c": "removed",
        "d": "added",
    }
    balls = [int(Pool.load(folder).arrays(Pool.load(folder).entries[0]).liver_zyx.sum()) for folder in (old, new)]
    assert diffs["a"].liver_dice == pytest.approx(2 * balls[1] / sum(balls))  # the smaller lies in the larger
    assert diffs["a"].tumour_dice == 1
    assert diffs["b"].details == "split train → val"


def test_metadata_is_compared_too(tmp_path: Path) -> None:
    old, new = (Pool.load(finished_pool(tmp_path / name, TOYS)) for name in ("old", "new"))
    first = with_columns(new.entries[0], teacher="f" * 64, licence="CC0")
    (diff,) = diff_pools(old, replace(new, entries=(first, *new.entries[1:])))
    assert (diff.case_id, diff.change) == ("a", "changed")
    assert diff.details == "teacher none → ffffffff, licence none → CC0"


def test_a_relabelled_case_lists_old_and_new_states(tmp_path: Path) -> None:
    toys = [TOYS[0], replace(TOYS[1], tumour_state=LabelState.UNKNOWN)]
    later = [TOYS[0], TOYS[1]]
    old, new = finished_pool(tmp_path / "old", toys), finished_pool(tmp_path / "new", later)
    (diff,) = diff_pools(Pool.load(old), Pool.load(new))
    assert (diff.case_id, diff.change) == ("b", "relabelled")
    assert "tumour_state unknown → manual" in diff.details
    assert diff.tumour_dice is None  # unknown before


def test_the_dice_of_two_empty_masks_is_undefined(tmp_path: Path) -> None:
    old, new = (Pool.load(finished_pool(tmp_path / name, [TOYS[2]])) for name in ("old", "new"))
    assert not old.arrays(old.entries[0]).tumour_zyx.any()
    entry = with_columns(new.entries[0], gate="accept")
    assert diff_pools(old, replace(new, entries=(entry,))) == [
        EntryDiff("c", "relabelled", "gate none → accept", liver_dice=1.0, tumour_dice=None)
    ]


def test_two_versions_are_compared_without_pulling_them(tmp_path: Path) -> None:
    remote = str(tmp_path / "remote")
    versions = [
        pool_versions.push(finished_pool(tmp_path / name, toys), remote)
        for name, toys in (("old", TOYS), ("new", [*TOYS[:1], replace(TOYS[1], tumour_state=LabelState.UNKNOWN)]))
    ]
    table = succeed("hepar", "pool", "diff", *versions, "--remote", remote, "--format", "csv", cwd=tmp_path)
    lines = table.splitlines()
    assert lines[0] == "case_id,change,details,liver_dice,tumour_dice"
    assert [line.split(",")[:2] for line in lines[1:]] == [["b", "relabelled"], ["c", "removed"]]
    refused = call("hepar", "pool", "diff", versions[0], "nothing", "--remote", remote, cwd=tmp_path)
    assert refused.returncode == 2
    assert "nothing is not a pool version" in refused.stderr


def test_versions_are_pushed_to_and_pulled_from_a_bucket(bucket: dict[str, str], tmp_path: Path) -> None:
    pool = finished_pool(tmp_path / "pool", TOYS[:2])
    remote = {**bucket, "HEPAR_STORE": "s3://pools/hepar"}
    version = succeed("hepar", "pool", "push", cwd=tmp_path, **remote).strip()
    assert version == dvc_version(pool)
    succeed("hepar", "pool", "pull", version, "--pool", "again", cwd=tmp_path, **remote)
    assert content(tmp_path / "again") == content(pool)


def test_the_pool_of_a_registered_model_is_pulled(by_kfp: Path, tmp_path: Path) -> None:
    tracking = {"MLFLOW_TRACKING_URI": f"sqlite:///{by_kfp / 'mlflow.db'}"}
    remote = ("--remote", str(tmp_path / "remote"))
    succeed("hepar", "pool", "push", "--pool", str(by_kfp / "pool"), *remote, cwd=tmp_path)
    succeed("hepar", "pool", "pull", "models:/hepar-tiny@champion", *remote, cwd=tmp_path, **tracking)
    assert read_manifest(tmp_path / "pool", Pool.KIND).hash == read_manifest(by_kfp / "pool", Pool.KIND).hash
    unknown = call("hepar", "pool", "pull", "models:/none@champion", *remote, "--pool", "x", cwd=tmp_path, **tracking)
    assert unknown.returncode == 2
    assert "models:/none@champion" in unknown.stderr
    shutil.rmtree(tmp_path / "pool")
