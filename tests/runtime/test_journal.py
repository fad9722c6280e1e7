"""Journals: an artifact, or several at once, is replaced whole, wherever the process dies."""

from __future__ import annotations

import json
import os
import shutil
import threading
import time
from pathlib import Path

import pytest
from kill_points import is_finished, tree

from hepar.errors import ArtifactError
from hepar.runtime.artifacts import read_any_manifest, read_manifest, write_artifact
from hepar.runtime.journal import RESULTS, Journal, finish_replacing
from hepar.runtime.locks import try_lock

KIND = "toy"


def write(folder: Path, text: str) -> None:
    with write_artifact(folder, KIND, {}) as partial:
        for number in range(3):
            (partial / f"{text}-{number}.txt").write_text(text)


@pytest.mark.parametrize("reread", [True, False])
def test_an_artifact_is_the_old_or_the_new_one_wherever_its_writer_dies(tmp_path: Path, reread: bool) -> None:
    write(tmp_path / "old", "old")
    write(tmp_path / "new", "new")
    expected = {name: {f"toy/{path}": text for path, text in tree(tmp_path / name).items()} for name in ("old", "new")}
    finished, points, seen = False, 0, []
    while not finished:
        points += 1
        root = tmp_path / f"at-{points}"
        root.mkdir()
        shutil.copytree(tmp_path / "old", root / "toy")
        finished = is_finished(lambda root=root: write(root / "toy", "new"), points)  # type: ignore[misc]
        if reread:  # by whoever reads next
            read_manifest(root / "toy", KIND)
            found = tree(root)
            assert found in expected.values(), f"killed before change {points}: {sorted(found)}"
            seen.append("new" if found == expected["new"] else "old")
        else:  # by whoever writes next, who is killed at once or fails
            with pytest.raises(RuntimeError), write_artifact(root / "toy", KIND, {}):
                raise RuntimeError
            assert tree(root) in expected.values()
            assert [path.name for path in root.iterdir()] == ["toy"]  # nothing is left behind
    assert points > 15
    assert seen == sorted(seen, reverse=True)  # old up to a point, new from there on
    assert not reread or {"old", "new"} <= set(seen)


def half_replaced(root: Path) -> Journal:
    """A folder in which a process died between the two renames that replace `a`; `b` is untouched."""
    for name in ("a", "b"):
        for place in (root / name, root / ".new" / name):
            place.mkdir(parents=True)
            (place / "text.txt").write_text("new" if ".new" in place.parts else "old")
    journal = Journal(root / RESULTS)
    journal.path.write_text(json.dumps({".new/a": "a", ".new/b": "b"}))
    (root / "a").rename(root / ".a.old")
    return journal


def test_the_renames_of_a_dead_process_are_finished(tmp_path: Path) -> None:
    half_replaced(tmp_path)
    finish_replacing(tmp_path / "b")
    assert tree(tmp_path) == {"a/text.txt": "new", "b/text.txt": "new"}
    assert sorted(path.name for path in tmp_path.iterdir()) == [".new", "a", "b"]


def test_the_manifest_of_any_kind_is_found_behind_the_renames_of_a_dead_process(tmp_path: Path) -> None:
    write(tmp_path / ".toy.partial", "new")
    Journal.of_artifact(tmp_path / "toy").path.write_text(json.dumps({".toy.partial": "toy"}))
    assert read_any_manifest(tmp_path / "toy").kind == KIND


def test_whoever_finishes_may_die_too(tmp_path: Path) -> None:
    points = 0
    finished = False
    while not finished:
        points += 1
        root = tmp_path / str(points)
        root.mkdir()
        journal = half_replaced(root)
        finished = is_finished(journal.finish, points)
        journal.finish()
        assert tree(root) == {"a/text.txt": "new", "b/text.txt": "new"}
        assert sorted(path.name for path in root.iterdir()) == [".new", "a", "b"]
    assert points > 5


def test_the_renames_of_a_living_process_are_waited_for(tmp_path: Path) -> None:
    journal = half_replaced(tmp_path)
    with journal.path.open() as stream:
        assert try_lock(stream.fileno())
        waiting = threading.Thread(target=finish_replacing, args=(tmp_path / "a",))
        waiting.start()
        time.sleep(0.2)
        assert waiting.is_alive()
        assert not (tmp_path / "a").exists()
    waiting.join(timeout=10)
    assert tree(tmp_path) == {"a/text.txt": "new", "b/text.txt": "new"}


@pytest.mark.parametrize("name", ["../outside", "/outside", "link/a", ""])
def test_a_journal_that_leaves_its_folder_is_refused(tmp_path: Path, name: str) -> None:
    root, outside = tmp_path / "root", tmp_path / "outside"
    (root / ".new").mkdir(parents=True)
    outside.mkdir()
    (outside / "kept.txt").touch()
    (root / "link").symlink_to(outside)
    for planned in ({".new": name}, {name: "a"}):
        (root / RESULTS).write_text(json.dumps(planned))
        with pytest.raises(ArtifactError, match=r"is not inside|is a symbolic link"):
            finish_replacing(root / "a")
        assert sorted(path.name for path in tmp_path.iterdir()) == ["outside", "root"]
        assert [path.name for path in outside.iterdir()] == ["kept.txt"]
        assert (root / ".new").is_dir()


@pytest.mark.parametrize("content", ["", "[1]", "{", "\x00"])
def test_a_file_that_is_no_journal_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / RESULTS).write_text(content)
    with pytest.raises(ArtifactError, match=rf"^{tmp_path}/{RESULTS} is not a journal of renames.*; remove it$"):
        finish_replacing(tmp_path / "a")


def test_a_rename_that_fails_leaves_everything_as_it_was(tmp_path: Path) -> None:
    for place in ("a", "locked/b", ".new/a", ".new/b"):
        (tmp_path / place).mkdir(parents=True)
        (tmp_path / place / "text.txt").write_text(place)
    before = tree(tmp_path)
    (tmp_path / "locked").chmod(0o555)
    if os.access(tmp_path / "locked", os.W_OK):
        (tmp_path / "locked").chmod(0o755)
        shutil.rmtree(tmp_path / "locked")
        (tmp_path / "locked").write_text("root may write anywhere, but not below a file")
        before = tree(tmp_path)
    moves = {tmp_path / ".new" / "a": tmp_path / "a", tmp_path / ".new" / "b": tmp_path / "locked" / "b"}
    with pytest.raises(ArtifactError, match=rf"^{tmp_path}/locked/b cannot be replaced: "):
        Journal(tmp_path / RESULTS).replace(moves, scratch=tmp_path / ".new")
    (tmp_path / "locked").chmod(0o755)
    assert tree(tmp_path) == before
    assert (tmp_path / ".new" / "a" / "text.txt").read_text() == ".new/a"
    assert not (tmp_path / RESULTS).exists()
