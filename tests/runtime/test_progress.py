"""Progress: lines with the rate, and the status file for watchers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hepar.errors import DataError
from hepar.runtime import progress


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A monotonic clock under the test's control: the seconds are the only item of the list."""
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_the_rate_excludes_steps_before_a_resume(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with progress.stage("training") as running, running.counting(1000, "steps") as count:
        count.advance(500, loss=0.5)  # resumed at step 500
        for step in range(501, 561):
            clock[0] += 0.5
            count.advance(step, loss=0.25)
    first, *others = capsys.readouterr().err.splitlines()
    assert first == "training: 500/1000 steps, loss 0.5"
    assert others == [f"training: {step}/1000 steps, loss 0.25, 2.00/s" for step in (520, 540, 560)]


def test_each_counting_has_its_own_rate(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with progress.stage("ingest") as running:
        for seconds in (10.0, 1.0):
            with running.counting(3, "cases") as count:
                for _ in range(3):
                    clock[0] += seconds
                    count.advance()
    assert "ingest: 3/3 cases, 0.10/s" in (lines := capsys.readouterr().err.splitlines())
    assert lines[-1] == "ingest: 3/3 cases, 1.00/s"


def test_results_that_arrive_together_are_timed_from_the_start(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    with progress.stage("score") as running, running.counting(4, "cases") as count:
        clock[0] += 8.0
        for _ in range(4):
            clock[0] += 1e-4
            count.advance()
    assert capsys.readouterr().err.splitlines()[-1] == "score: 4/4 cases, 0.50/s"


def test_less_than_a_second_has_no_rate(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with progress.stage("score") as running, running.counting(2, "cases") as count:
        for _ in range(2):
            clock[0] += 0.4
            count.advance()
    assert capsys.readouterr().err.splitlines()[-1] == "score: 2/2 cases"


def test_facts_are_listed_with_commas(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with progress.stage("ingest") as running, running.counting(8, "cases") as count:
        count.advance(accepted="1", refused="0")
    assert capsys.readouterr().err.splitlines() == ["ingest: 1/8 cases, accepted 1, refused 0"]


def test_the_status_file_gives_the_error_and_whether_the_user_can_fix_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(progress.FOLDER_VARIABLE, str(tmp_path))
    with pytest.raises(DataError), progress.stage("ingest"):
        raise DataError("case a: no")
    status = json.loads((tmp_path / "ingest.json").read_text())
    assert (status["state"], status["message"], status["user_error"]) == ("failed", "case a: no", True)
