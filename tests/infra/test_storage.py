"""infra/services/storage.py on folders, or with S3 alone; tests/infra/test_site.py runs it on a site."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import boto3
import pytest
import services
import yaml
from infra.deployment_files import INFRA, STORAGE, container, load_script, rendered

storage = load_script(STORAGE)


def write_snapshot(folder: Path, name: str, sizes: tuple[int, ...], dump_bytes: int = 1000) -> None:
    """A snapshot with one object of each size, whose contents are not there."""
    place = folder / "snapshots" / name
    place.mkdir(parents=True)
    storage.dump_file(place).write_bytes(b"x" * dump_bytes)
    found = [storage.StoredObject(f"k{i}", size, "e", f"{i:064}") for i, size in enumerate(sizes)]
    values = {"dump_sha256": "0" * 64, "buckets": {"mlflow": [asdict(one) for one in found]}}
    storage.list_file(place).write_text(json.dumps(values))


def restore(folder: Path, monkeypatch: pytest.MonkeyPatch, *options: str) -> int:
    monkeypatch.setattr(sys, "argv", ["hepar-storage", "restore", str(folder), *options])
    return int(storage.main())


FULL = (10, 10, 10, 10)
EMPTY_SITE = {"fewer objects": ((30,), 1000), "fewer bytes": ((1, 1, 1, 1), 1000), "a smaller dump": (FULL, 100)}


@pytest.mark.parametrize(("sizes", "dump_bytes"), EMPTY_SITE.values(), ids=EMPTY_SITE)
def test_the_snapshot_of_an_emptied_site_is_restored_by_name_only(
    sizes: tuple[int, ...],
    dump_bytes: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write_snapshot(tmp_path, "night-1", FULL)
    for name in ("night-2", "night-3"):  # also after a second night
        write_snapshot(tmp_path, name, sizes, dump_bytes)
    assert restore(tmp_path, monkeypatch) == 1
    said = capsys.readouterr().err
    assert f"night-3 ({len(sizes)} objects with {sum(sizes)} bytes, a dump of {dump_bytes:,} bytes)" in said
    assert "is far smaller than night-1 (4 objects with 40 bytes, a dump of 1,000 bytes)" in said
    assert said.endswith("choose one of them with --snapshot NAME\n")
    for name in ("night-1", "night-3"):
        assert storage.snapshot_to_restore(tmp_path, name).folder.name == name


def test_a_snapshot_of_half_the_size_is_restored_without_its_name(tmp_path: Path) -> None:
    write_snapshot(tmp_path, "night-1", FULL)
    write_snapshot(tmp_path, "night-2", FULL[:2], 500)
    assert storage.snapshot_to_restore(tmp_path, "").folder.name == "night-2"


def test_the_job_that_restores_has_a_place_for_the_name_of_a_snapshot() -> None:
    job = rendered(INFRA / "kubernetes" / "overlays" / "restore")
    words = container(list(yaml.safe_load_all(job)), "Job", "restore")["command"]
    assert storage.parse(words[1:]).snapshot == ""
    assert storage.parse([*words[1:-1], f"{words[-1]}night-1"]).snapshot == "night-1"


def test_snapshots_of_before_a_disaster_outlive_the_nights_after_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_snapshot(tmp_path, "night-1", FULL[:1])  # smaller than the newest
    write_snapshot(tmp_path, "night-2", FULL)
    for number in (3, 4, 5):
        write_snapshot(tmp_path, f"night-{number}", FULL[:1])
    content = storage.object_file(tmp_path, f"{3:064}")  # that night-2 alone has
    content.parent.mkdir(parents=True)
    content.touch()
    storage.prune(tmp_path, 2)
    assert [path.name for path in storage.snapshots(tmp_path)] == ["night-2", "night-4", "night-5"]
    assert content.exists()
    assert "snapshot night-2 (4 objects with 40 bytes" in capsys.readouterr().err

    write_snapshot(tmp_path, "night-6", FULL)  # the site is restored
    storage.prune(tmp_path, 1)
    assert [path.name for path in storage.snapshots(tmp_path)] == ["night-6"]


@pytest.fixture
def s3_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A client of S3 with the bucket `mlflow` for the tool, to which a dump is an empty file."""
    with services.s3_server(tmp_path / "s3", buckets=("mlflow",)) as variables:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)
        monkeypatch.setattr(storage, "run_client", lambda *command: Path(command[-1].partition("=")[2]).touch())
        monkeypatch.setattr(storage, "CONNECTIONS", 1)  # objects arrive in the order of their keys
        yield services.s3_client(variables)


def test_a_backup_goes_on_from_one_that_was_killed(
    s3_alone: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for key in ("a", "b", "c"):
        s3_alone.put_object(Bucket="mlflow", Key=key, Body=key.encode())
    store, folder = storage.store, tmp_path / "backup"
    arrived: list[Any] = []

    def store_two(body: Any, place: Path) -> Any:
        if len(arrived) == 2:
            raise storage.StorageFailure("killed")
        arrived.append(store(body, place))
        return arrived[-1]

    monkeypatch.setattr(storage, "store", store_two)
    with pytest.raises(storage.StorageFailure, match="killed"):
        storage.backup(folder, ["mlflow"], 1)
    with (folder / "unfinished.jsonl").open("a") as stream:
        stream.write('\n["mlflow", {"key"')  # killed while it wrote
    s3_alone.put_object(Bucket="mlflow", Key="b", Body=b"changed since")

    arrived.clear()  # two more may arrive: what changed, and what is new
    name = storage.backup(folder, ["mlflow"], 1)
    found = storage.find_snapshot(folder, name)
    storage.verify(folder, found)
    assert [(one.key, one.size) for one in found.objects()] == [("a", 1), ("b", 13), ("c", 1)]
    assert len(arrived) == 2
    assert not (folder / "unfinished.jsonl").exists()
