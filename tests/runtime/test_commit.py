"""The commit and the release that results are labelled with."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

import hepar.runtime.commit
from hepar.runtime.commit import COMMIT_VARIABLE, git_commit, release

WHO = ("-c", "user.name=a", "-c", "user.email=a@example.org")


def git(folder: Path, *words: str) -> str:
    return subprocess.run(["git", *WHO, *words], cwd=folder, capture_output=True, text=True, check=True).stdout.strip()


def committed(folder: Path, *names: str) -> str:
    """The commit of a new repository with these files."""
    git(folder, "init", "--quiet")
    for name in names:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("")
        git(folder, "add", name)
    git(folder, "commit", "--quiet", "-m", "first")
    return git(folder, "rev-parse", "HEAD")


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package in a repository, and a working directory in another repository."""
    monkeypatch.delenv(COMMIT_VARIABLE, raising=False)
    folder, elsewhere = tmp_path / "code" / "package", tmp_path / "elsewhere"
    folder.mkdir(parents=True)
    elsewhere.mkdir()
    committed(elsewhere, "data.csv")
    monkeypatch.chdir(elsewhere)
    monkeypatch.setattr(hepar.runtime.commit, "PACKAGE", folder)
    return folder


def test_the_commit_is_that_of_the_code_and_not_of_the_working_directory(package: Path) -> None:
    commit = committed(package.parent, "package/__init__.py")
    assert git_commit() == commit
    (package.parent / "dvc.lock").write_text("")
    assert git_commit() == commit
    (package / "new.py").write_text("")
    assert git_commit() == f"{commit}-dirty"


def test_an_installed_package_has_no_commit_even_below_a_repository(package: Path) -> None:
    committed(package.parent, "params.yaml")
    (package / "__init__.py").write_text("")
    assert git_commit() == ""


def test_a_container_names_its_commit(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(COMMIT_VARIABLE, "c0ffee")
    assert git_commit() == "c0ffee"


def test_the_release_changes_with_a_library_but_not_with_its_build(monkeypatch: pytest.MonkeyPatch) -> None:
    def release_with(torch: str) -> str:
        monkeypatch.setattr(hepar.runtime.commit, "version", lambda name: torch if name == "torch" else "1.0")
        return release.__wrapped__()

    assert release_with("2.13.0+cpu") == release_with("2.13.0+cu130") != release_with("2.14.0+cpu")
