"""Artifacts: complete or absent, and identified by their content."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from hepar.errors import ArtifactError, StorageError
from hepar.runtime.artifacts import (
    MANIFEST,
    Manifest,
    check_made_from,
    read_any_manifest,
    read_manifest,
    sha256_content,
    sha256_file,
    sha256_json,
    write_artifact,
    write_json,
)

KILLED_WHILE_WRITING = """
import os, signal, sys
from pathlib import Path
from hepar.runtime.artifacts import write_artifact

with write_artifact(Path(sys.argv[1]), "pool", {}) as folder:
    (folder / "incomplete.txt").write_text("incomplete")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def write_pool(folder: Path, text: str = "arrays", name: str = "a.txt", parents: dict[str, str] | None = None) -> str:
    """Write an artifact of one file; returns its hash."""
    with write_artifact(folder, "pool", parents or {}) as partial:
        (partial / name).write_text(text)
    return read_manifest(folder, "pool").hash


def fail_while_writing(folder: Path, error: type[BaseException]) -> None:
    with write_artifact(folder, "pool", {}) as partial:
        (partial / "a.txt").write_text("incomplete")
        raise error


def test_an_artifact_has_its_files_and_a_manifest(tmp_path: Path) -> None:
    write_pool(tmp_path / "deep" / "pool", parents={"cohort": "c0"})
    manifest = read_manifest(tmp_path / "deep" / "pool", "pool")
    assert (manifest.kind, manifest.parents) == ("pool", {"cohort": "c0"})
    assert (tmp_path / "deep" / "pool" / "a.txt").read_text() == "arrays"
    assert sorted(path.name for path in (tmp_path / "deep").iterdir()) == ["pool"]


def test_the_final_name_does_not_exist_while_writing(tmp_path: Path) -> None:
    with write_artifact(tmp_path / "pool", "pool", {}) as partial:
        assert not (tmp_path / "pool").exists()
        assert partial.parent == tmp_path  # a rename is atomic only within a file system


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_an_error_leaves_no_files(tmp_path: Path, error: type[BaseException]) -> None:
    with pytest.raises(error):
        fail_while_writing(tmp_path / "pool", error)
    assert list(tmp_path.iterdir()) == []


def test_an_error_leaves_the_previous_artifact_unchanged(tmp_path: Path) -> None:
    before = write_pool(tmp_path / "pool")
    with pytest.raises(RuntimeError):
        fail_while_writing(tmp_path / "pool", RuntimeError)
    assert read_manifest(tmp_path / "pool", "pool").hash == before
    assert (tmp_path / "pool" / "a.txt").read_text() == "arrays"


def test_a_file_in_the_way_is_named_and_stays(tmp_path: Path) -> None:
    in_the_way = tmp_path / "file"
    in_the_way.write_text("mine")
    for place in (in_the_way, in_the_way / "pool", in_the_way / "a" / "pool"):
        with pytest.raises(StorageError, match=rf"^{place} cannot be written: {in_the_way} is a file$"):
            write_pool(place)
    assert in_the_way.read_text() == "mine"


def test_a_second_writer_is_refused_until_the_first_has_finished(tmp_path: Path) -> None:
    with write_artifact(tmp_path / "pool", "pool", {}) as first:
        (first / "a.txt").write_text("a")
        with (
            pytest.raises(ArtifactError, match=r"^another process is writing .*/pool$"),
            write_artifact(tmp_path / "pool", "pool", {}),
        ):
            pass
    assert (tmp_path / "pool" / "a.txt").read_text() == "a"
    with write_artifact(tmp_path / "pool", "pool", {}) as second:
        (second / "a.txt").write_text("b")
    assert (tmp_path / "pool" / "a.txt").read_text() == "b"


def test_a_second_run_replaces_every_file_of_the_first(tmp_path: Path) -> None:
    write_pool(tmp_path / "pool", name="old.txt")
    write_pool(tmp_path / "pool", name="new.txt")
    assert sorted(path.name for path in (tmp_path / "pool").iterdir()) == [MANIFEST, "new.txt"]
    assert [path.name for path in tmp_path.iterdir()] == ["pool"]


def test_after_a_killed_process_the_next_run_succeeds(tmp_path: Path) -> None:
    folder = tmp_path / "pool"
    child = subprocess.run([sys.executable, "-c", KILLED_WHILE_WRITING, str(folder)], check=False)
    assert child.returncode == -signal.SIGKILL
    assert any(tmp_path.rglob("incomplete.txt"))  # it was killed while writing
    assert not folder.exists()
    write_pool(folder)
    assert not any(tmp_path.rglob("incomplete.txt"))
    assert [path.name for path in tmp_path.iterdir()] == ["pool"]


def test_the_hash_depends_on_names_bytes_and_kind_only(tmp_path: Path) -> None:
    first = write_pool(tmp_path / "a" / "pool")
    again = write_pool(tmp_path / "b" / "other-name", parents={"cohort": "c1"})
    os.utime(tmp_path / "a" / "pool" / "a.txt", (0, 0))
    assert first == again
    assert write_pool(tmp_path / "c", text="arrayz") != first
    assert write_pool(tmp_path / "d", name="b.txt") != first
    with write_artifact(tmp_path / "e", "cohort", {}) as partial:
        (partial / "a.txt").write_text("arrays")
    assert read_manifest(tmp_path / "e", "cohort").hash != first


def test_the_hash_covers_files_in_subfolders(tmp_path: Path) -> None:
    hashes = set()
    for text in ("one", "two"):
        with write_artifact(tmp_path / text, "pool", {}) as partial:
            (partial / "cases").mkdir()
            (partial / "cases" / "ct-1.npz").write_text(text)
        hashes.add(read_manifest(tmp_path / text, "pool").hash)
    assert len(hashes) == 2


def test_a_folder_without_a_manifest_is_refused(tmp_path: Path) -> None:
    message = f"^{tmp_path} is not a complete artifact of kind pool: manifest.json is missing$"
    with pytest.raises(ArtifactError, match=message):
        read_manifest(tmp_path, "pool")


def test_a_folder_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=f"^{tmp_path / 'none'} does not exist$"):
        read_manifest(tmp_path / "none", "pool")
    with pytest.raises(ArtifactError, match=f"^{tmp_path / 'none'} does not exist$"):
        read_any_manifest(tmp_path / "none")


def test_an_artifact_of_another_kind_is_refused_with_both_kinds(tmp_path: Path) -> None:
    write_pool(tmp_path / "pool")
    with pytest.raises(ArtifactError, match="is of kind pool but must be cohort"):
        read_manifest(tmp_path / "pool", "cohort")


def test_the_sha256_of_a_file_is_the_published_one(tmp_path: Path) -> None:
    path = tmp_path / "abc"
    path.write_bytes(b"abc")  # the first example of FIPS 180-2
    assert sha256_file(path) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_the_hash_of_json_ignores_the_order_of_keys() -> None:
    assert sha256_json({"a": 1, "b": [1, 2]}) == sha256_json({"b": [1, 2], "a": 1})
    assert sha256_json({"a": 1, "b": [1, 2]}) != sha256_json({"a": 1, "b": [2, 1]})


def test_json_is_written_atomically_and_without_nan(tmp_path: Path) -> None:
    path = tmp_path / "metrics.json"
    write_json(path, {"b": 1, "a": 2})
    assert list(json.loads(path.read_text())) == ["a", "b"]
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(path, {"a": float("nan")})
    assert json.loads(path.read_text()) == {"a": 2, "b": 1}
    assert [entry.name for entry in tmp_path.iterdir()] == ["metrics.json"]


def test_the_hash_of_an_npz_covers_its_arrays_but_not_their_compression(tmp_path: Path) -> None:
    array = np.arange(1000)
    np.savez(tmp_path / "plain.npz", a=array)
    np.savez_compressed(tmp_path / "small.npz", a=array)
    np.savez(tmp_path / "other.npz", a=array + 1)
    np.savez(tmp_path / "renamed.npz", b=array)
    plain = sha256_content(tmp_path / "plain.npz")
    assert sha256_file(tmp_path / "plain.npz") != sha256_file(tmp_path / "small.npz")
    assert sha256_content(tmp_path / "small.npz") == plain
    assert plain not in {sha256_content(tmp_path / "other.npz"), sha256_content(tmp_path / "renamed.npz")}


def test_an_artifact_made_from_another_one_is_refused() -> None:
    pseudo, cohort = Path("pseudo"), Path("cohort")
    found = Manifest("cohort", "a" * 64, {}, {}, {}, {})
    same = Manifest("pseudo-labels", "c" * 64, {"cohort": "a" * 64}, {}, {}, {})
    check_made_from(pseudo, same, cohort, found, "pseudo-label")
    other = Manifest("pseudo-labels", "c" * 64, {"cohort": "b" * 64}, {}, {}, {})
    message = rf"^pseudo was made from cohort {'b' * 12}, but cohort is cohort {'a' * 12}: run pseudo-label again$"
    with pytest.raises(ArtifactError, match=message):
        check_made_from(pseudo, other, cohort, found, "pseudo-label")
    imported = Manifest("model", "d" * 64, {}, {}, {}, {})
    with pytest.raises(ArtifactError, match=r"^model was made from no known cohort, but cohort is cohort "):
        check_made_from(Path("model"), imported, cohort, found, "train-liver")
