"""Artifacts by reference: written to a store, opened again, fetched file by file, and damaged."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from hepar.errors import DataError, StorageError
from hepar.runtime import remote_cache
from hepar.runtime.artifacts import MANIFEST, dvc_version, md5_bytes, read_manifest, write_artifact
from hepar.runtime.environment import EPHEMERAL_VARIABLE, STORE_VARIABLE
from hepar.runtime.fetching import carry, complete, fetched, stored_version, whole
from hepar.runtime.object_store import Store
from hepar.runtime.plain_names import broken_rule
from hepar.runtime.stored_files import REFERENCE, StoredFile, read_stored, write_stored
from hepar.runtime.stored_versions import open_version, publish
from hepar.runtime.verification import verify_artifact

KIND, BULK = "toy", ("volumes", "masks")
VOLUMES = {
    "volumes/a/image": b"image a",
    "volumes/a/mask": b"mask a",
    "volumes/b/image": b"image b",
    "masks/a": b"predicted mask a",
}


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """An empty store, which the environment names, and an empty cache."""
    monkeypatch.setenv(STORE_VARIABLE, str(tmp_path / "store"))
    monkeypatch.setenv(remote_cache.FOLDER_VARIABLE, str(tmp_path / "cache"))
    return Store(str(tmp_path / "store"))


def write_toy(folder: Path, files: dict[str, bytes]) -> Path:
    with write_artifact(folder, KIND, {}) as partial:
        for name, content in {"table": b"rows", **files}.items():
            (partial / name).parent.mkdir(parents=True, exist_ok=True)
            (partial / name).write_bytes(content)
    return folder


def object_of(store: Store, content: bytes) -> Path:
    md5 = md5_bytes(content)
    return Path(store.url) / "files" / "md5" / md5[:2] / md5[2:]


def test_a_folder_by_reference_is_the_same_artifact(store: Store, tmp_path: Path) -> None:
    in_folder, artifact = write_toy(tmp_path / "whole", VOLUMES), write_toy(tmp_path / "artifact", VOLUMES)
    version = publish(artifact, BULK, store)
    assert version == stored_version(artifact) == dvc_version(artifact) == dvc_version(in_folder)
    assert sorted(path.name for path in artifact.iterdir()) == [MANIFEST, REFERENCE, "table"]
    assert verify_artifact(artifact, KIND).hash == read_manifest(in_folder, KIND).hash
    paths = [artifact / name for name in VOLUMES]
    with fetched(*paths, None, artifact / "table") as here:
        assert [here[path].read_bytes() for path in paths] == list(VOLUMES.values())
        assert here[paths[0]].parent == here[paths[1]].parent, "files of one folder stay together"
    assert not any(path.exists() for path in (*here.values(), *paths) if path.name != "table")
    with whole(artifact) as folder:
        assert verify_artifact(folder, KIND, deep=True).hash == read_manifest(in_folder, KIND).hash
        assert not (folder / REFERENCE).exists()
    assert complete(artifact) == len(VOLUMES)
    with whole(artifact) as folder:
        assert folder == artifact
    assert dvc_version(artifact) == version
    verify_artifact(artifact, KIND, deep=True)


def test_a_version_is_opened_and_only_what_is_new_is_sent(store: Store, tmp_path: Path) -> None:
    version = publish(write_toy(tmp_path / "first", VOLUMES), BULK, store)
    open_version(version, KIND, BULK, tmp_path / "opened", store)
    assert stored_version(tmp_path / "opened") == version
    before = {path for path in Path(store.url).rglob("*") if path.is_file()}
    carried: dict[str, StoredFile] = {}
    with write_artifact(tmp_path / "second", KIND, {}) as partial:
        for name in VOLUMES:
            carry(tmp_path / "opened", name, partial, name, carried)
        write_stored(partial, "", carried)
        (partial / "table").write_bytes(b"more rows")
        (partial / "volumes" / "c").mkdir(parents=True)
        (partial / "volumes" / "c" / "image").write_bytes(b"image c")
    unsent = dvc_version(tmp_path / "second")
    second = publish(tmp_path / "second", BULK, store)
    sent = {path for path in Path(store.url).rglob("*") if path.is_file()} - before
    assert {object_of(store, b"image c"), object_of(store, b"more rows")} <= sent
    assert len(sent) == 4, "the volume, the table, the manifest and the list of files"
    more = {**VOLUMES, "volumes/c/image": b"image c", "table": b"more rows"}
    assert unsent == second == dvc_version(write_toy(tmp_path / "whole", more))


def test_what_arrives_damaged_is_refused(store: Store, tmp_path: Path) -> None:
    artifact = write_toy(tmp_path / "artifact", VOLUMES)
    version = publish(artifact, BULK, store)
    damaged, path = object_of(store, VOLUMES["volumes/a/image"]), artifact / "volumes/a/image"
    damaged.write_bytes(b"another")
    with pytest.raises(StorageError, match="is damaged: its MD5 is"), fetched(path):
        pass
    damaged.write_bytes(VOLUMES["volumes/a/image"])
    files = dict(read_stored(artifact).files)
    files["volumes/a/image"] = StoredFile(files["volumes/a/image"].md5, 7, "0" * 64)
    write_stored(artifact, version, files)
    with pytest.raises(StorageError, match="has another SHA-256 than its manifest says"), fetched(path):
        pass
    damaged.unlink()
    (tmp_path / "cache").rename(tmp_path / "forgotten")
    with pytest.raises(StorageError, match="is in no store that is given"), fetched(path):
        pass


def test_what_is_damaged_in_the_cache_is_fetched_again(store: Store, tmp_path: Path) -> None:
    artifact = write_toy(tmp_path / "artifact", VOLUMES)
    publish(artifact, BULK, store)
    path, content = artifact / "volumes/a/image", VOLUMES["volumes/a/image"]
    with fetched(path):
        pass
    kept = remote_cache.Cache.of_user()._kept(store.object(md5_bytes(content)))
    kept.write_bytes(content[:-1])
    with fetched(path) as here:
        assert here[path].read_bytes() == kept.read_bytes() == content


def test_without_the_store_the_variable_is_named(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    artifact = write_toy(tmp_path / "artifact", VOLUMES)
    publish(artifact, BULK, store)
    monkeypatch.delenv(STORE_VARIABLE)
    with pytest.raises(DataError, match="is in a store: set HEPAR_STORE"), fetched(artifact / "volumes/a/image"):
        pass
    for url, problem in (("gs://bucket", "must be a folder or s3://"), ("s3://key:secret@bucket", "must not hold")):
        monkeypatch.setenv(STORE_VARIABLE, url)
        with pytest.raises(DataError, match=problem):
            Store.of_environment()


def test_a_version_of_something_else_is_refused(store: Store, tmp_path: Path) -> None:
    version = publish(write_toy(tmp_path / "artifact", VOLUMES), BULK, store)
    with pytest.raises(DataError, match="does not exist"):
        open_version(f"{'0' * 32}.dir", KIND, BULK, tmp_path / "opened", store)
    with pytest.raises(Exception, match="is of kind toy but must be pool"):
        open_version(version, "pool", BULK, tmp_path / "opened", store)
    for listing, problem in (
        (b'[{"md5": "1", "relpath": "../out"}]', "which is not a plain path"),
        (b"[1]", "is not a list of files"),
    ):
        md5 = md5_bytes(listing)
        place = Path(store.url) / "files" / "md5" / md5[:2] / f"{md5[2:]}.dir"
        place.parent.mkdir(exist_ok=True)
        place.write_bytes(listing)
        with pytest.raises(StorageError, match=problem):
            store.listing(f"{md5}.dir")
    assert not (tmp_path / "opened").exists()


def test_a_store_that_fails_leaves_the_folder_whole(store: Store, tmp_path: Path) -> None:
    artifact = write_toy(tmp_path / "artifact", VOLUMES)
    Path(store.url).write_text("not a folder")
    with pytest.raises(StorageError):
        publish(artifact, BULK, store)
    assert not (artifact / REFERENCE).exists()
    verify_artifact(artifact, KIND, deep=True)


def test_plain_names() -> None:
    check: Callable[[str], str] = broken_rule
    assert [check(name) for name in ("a", "a/b.nii.gz", "ä/b")] == ["", "", ""]
    assert all(check(name) for name in ("", "/a", "a/../b", "./a", "a//b", "a\\b", "a\n", ".a", "a/.b", "x" * 256))


def test_a_container_has_its_cache_beside_its_temporary_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv(EPHEMERAL_VARIABLE, "1")
    assert remote_cache.Cache.of_user().folder.parent == tmp_path
    monkeypatch.setenv(remote_cache.FOLDER_VARIABLE, str(tmp_path / "given"))
    assert remote_cache.Cache.of_user().folder == tmp_path / "given"


def test_a_small_object_is_read_as_it_was_written_last(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "store"))
    assert store.get_text("notes/a") is None
    for text in ("first\n", "Lebergröße, zweite Zeile\r\n"):
        store.put_text("notes/a", text)
    assert store.get_text("notes/b") is None
    assert store.get_text("notes/a") == "Lebergröße, zweite Zeile\r\n"
