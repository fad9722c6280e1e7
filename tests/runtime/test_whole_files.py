"""Files that appear whole or not at all, on a disk that gets full at any moment."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from full_disk import FULL, SmallDisk

from hepar.errors import DiskFull, StorageError
from hepar.runtime.artifacts import link_or_copy, write_artifact, write_json
from hepar.runtime.chunked import write_chunked
from hepar.runtime.whole_files import whole_file, write_bytes, write_text


def fail_after_writing(path: Path, content: bytes, error: BaseException) -> None:
    with whole_file(path) as partial:
        partial.write_bytes(content)
        raise error


def test_a_file_appears_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "a.txt"
    with whole_file(path) as partial:
        partial.write_text("half")
        assert not path.exists()
        assert partial.name == path.name
    assert path.read_text() == "half"
    assert [found.name for found in path.parent.iterdir()] == ["a.txt"]


def test_files_written_beside_it_come_along_before_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    renamed: list[str] = []
    replace = Path.replace
    monkeypatch.setattr(Path, "replace", lambda path, place: (renamed.append(path.name), replace(path, place))[1])
    with whole_file(tmp_path / "a.mhd") as partial:
        partial.write_text("header")
        partial.with_name("b.zraw").write_text("voxels")
    assert renamed == ["b.zraw", "a.mhd"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.mhd", "b.zraw"]


@pytest.mark.parametrize("error", [ValueError("a bug"), KeyboardInterrupt()])
def test_an_error_of_another_cause_passes_and_leaves_the_older_file(tmp_path: Path, error: BaseException) -> None:
    write_text(tmp_path / "a.txt", "older")
    with pytest.raises(type(error)):
        fail_after_writing(tmp_path / "a.txt", b"newer", error)
    assert (tmp_path / "a.txt").read_text() == "older"
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_a_link_is_followed(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "a.txt").symlink_to(tmp_path / "elsewhere" / "a.txt")
    write_text(tmp_path / "a.txt", "here")
    assert (tmp_path / "a.txt").is_symlink()
    assert (tmp_path / "elsewhere" / "a.txt").read_text() == "here"


def test_a_hard_link_to_the_older_file_keeps_its_content(tmp_path: Path) -> None:
    write_text(tmp_path / "a.txt", "older")
    link_or_copy(tmp_path / "a.txt", tmp_path / "b.txt")
    write_text(tmp_path / "a.txt", "newer")
    assert (tmp_path / "b.txt").read_text() == "older"


def test_a_place_that_is_a_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.txt" / "full").mkdir(parents=True)
    with pytest.raises(StorageError, match=r"a\.txt cannot be written: Is a directory$"):
        write_text(tmp_path / "a.txt", "text")
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match=r"file/a\.txt cannot be written: (Not a directory|File exists)$"):
        write_text(tmp_path / "file" / "a.txt", "text")


def test_on_a_full_disk_the_path_and_the_reason_are_named_and_nothing_is_left(disk: SmallDisk) -> None:
    path = disk.folder / "a.bin"
    for kib in (0, 4, 60):
        with disk.room(kib), pytest.raises(DiskFull, match=f"^{path} cannot be written: {FULL}$"):
            write_bytes(path, bytes(64 * 1024))
    assert disk.left_behind() == []


def test_a_full_disk_is_the_reason_whatever_a_library_reports(disk: SmallDisk) -> None:
    path = disk.folder / "a.bin"
    with disk.room(16), pytest.raises(DiskFull, match=f"^{path} cannot be written: {FULL}$"):
        fail_after_writing(path, bytes(16 * 1024), RuntimeError("unexpected pos 64 vs 0"))
    assert disk.left_behind() == []


def test_json_arrays_and_copies_on_a_full_disk(disk: SmallDisk, tmp_path: Path) -> None:
    noise_zyx = np.random.default_rng(0).integers(0, 250, (32, 32, 32)).astype(np.uint8)
    (tmp_path / "large").write_bytes(os.urandom(32 * 1024))
    writers = {
        "a.json": lambda path: write_json(path, list(range(10_000))),
        "a.b2nd": lambda path: write_chunked(path, noise_zyx),
    }
    if disk.mounted:  # else the file can be linked, which takes no room
        writers["a.copy"] = lambda path: link_or_copy(tmp_path / "large", path)
    for name, write in writers.items():
        with disk.room(8), pytest.raises(StorageError, match=f"^{disk.folder / name} cannot be written: {FULL}$"):
            write(disk.folder / name)
    assert disk.left_behind() == []


def test_an_artifact_on_a_full_disk_is_one_sentence_and_leaves_nothing(disk: SmallDisk) -> None:
    with (
        disk.room(16),
        pytest.raises(StorageError, match=f"^{disk.folder / 'pool'} cannot be written: {FULL}$"),
        write_artifact(disk.folder / "pool", "pool", {}) as folder,
    ):
        (folder / "a.bin").write_bytes(bytes(64 * 1024))
    assert disk.left_behind() == []
