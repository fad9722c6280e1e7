"""What a failing step in a container leaves in the store, and what it says."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from hepar.errors import DataError, Preempted
from hepar.runtime.failure_record import last_failure
from hepar.runtime.progress import stage


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A store, for a step in a container of the KFP run `run-7`."""
    variables = {"HEPAR_EPHEMERAL": "1", "HEPAR_STORE": str(tmp_path / "store"), "HEPAR_KFP_RUN": "run-7"}
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    return tmp_path / "store"


def fail(error: Exception, *lists: Path) -> None:
    with pytest.raises(type(error)):
        run_stage(error, *lists)


def run_stage(error: Exception, *lists: Path) -> None:
    with stage("ingest", *lists) as running:
        running.log("reading planted-key")
        print("on standard output")
        raise error


def test_reason_log_and_lists_are_left_and_their_place_is_said(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "planted-key")
    (tmp_path / "quarantine.csv").write_text("case_id,rule,value\n")
    stdout = sys.stdout
    fail(DataError("5 of 8 cases are refused; planted-key"), tmp_path / "quarantine.csv", tmp_path / "missing.csv")
    assert sys.stdout is stdout
    (folder,) = (store / "failures" / "run-7" / "ingest").iterdir()
    assert {file.name for file in folder.iterdir()} == {"reason.json", "log.txt", "quarantine.csv"}
    log = (folder / "log.txt").read_text()
    assert "ingest: reading …\non standard output\nTraceback" in log
    failure = last_failure("run-7")
    assert failure is not None
    assert (failure.step, failure.reason, failure.user_error) == ("ingest", "5 of 8 cases are refused; …", True)
    assert failure.place == str(folder)
    assert json.loads((folder / "reason.json").read_text())["facts"] == {"kfp run": "run-7"}
    printed = capsys.readouterr().err
    assert f"hepar: ingest: 5 of 8 cases are refused; …\nhepar: reason, log and lists are in {folder}\n" in printed
    assert not [file for file in folder.iterdir() if "planted-key" in file.read_text()]
    assert last_failure("run-8") is None


def test_what_is_no_failure_or_no_container_leaves_nothing(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fail(Preempted("stopped by SIGTERM"))
    with stage("evaluate"):
        pass
    monkeypatch.delenv("HEPAR_EPHEMERAL")
    fail(DataError("a laptop keeps its own log"))
    monkeypatch.setenv("HEPAR_EPHEMERAL", "1")
    monkeypatch.delenv("HEPAR_STORE")
    fail(DataError("no store"))
    assert not store.exists()


def test_a_store_that_fails_hides_no_reason(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store.write_text("a file where the store should be")
    fail(DataError("the reason"))
    printed = capsys.readouterr().err
    assert "hepar: ingest: the reason\nhepar: the reason could not be left in the store: " in printed
