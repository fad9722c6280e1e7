"""A state is submitted once: which attempts allow another, two events at one time, a process that died."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hepar.errors import HeparError, Preempted
from hepar.registry.tracking import connect
from hepar.retraining.submission import (
    FAILED,
    FINISHED,
    KILLED,
    RUNNING,
    STATE_TAG,
    Attempt,
    Submission,
    place_of,
    submit,
    why_not,
)

GIVEN = Submission("s" * 64, "hepar-toy", "toy", "here", ("2 new cases",), max_resubmissions=2)


@pytest.mark.parametrize(
    ("statuses", "expected"),
    [
        ((), ""),
        ((FAILED,), ""),
        ((FAILED, FAILED), ""),
        ((FAILED, FAILED, FAILED), "failed 3 times"),
        ((KILLED,) * 5, ""),
        ((KILLED, FAILED, RUNNING), "being trained already"),
        ((FAILED, FINISHED), "has been trained already"),
    ],
)
def test_which_attempts_allow_another(statuses: tuple[str, ...], expected: str) -> None:
    reason = why_not([Attempt("r", status, "there") for status in statuses], max_resubmissions=2)
    assert (reason == "") == (expected == "")
    assert expected in reason


def test_a_working_directory_is_named_with_its_machine(tmp_path: Path) -> None:
    machine, _, folder = place_of(tmp_path).partition(":")
    assert machine
    assert folder == str(tmp_path.resolve())


def statuses() -> list[str]:
    found = connect().search_runs(
        search_all_experiments=True, filter_string=f"tags.`{STATE_TAG}` = '{GIVEN.state}'", output_format="list"
    )
    return sorted(run.info.status for run in found)


@pytest.mark.usefixtures("database")
def test_how_a_training_ends_is_recorded() -> None:
    ends: list[tuple[BaseException | None, str]] = [
        (Preempted("stopped"), KILLED),
        (KeyboardInterrupt(), KILLED),
        (HeparError("no"), FAILED),
        (SystemExit(1), FAILED),
        (None, FINISHED),
    ]
    recorded = []
    for error, status in ends:

        def train(error: BaseException | None = error) -> None:
            assert RUNNING in statuses()
            if error is not None:
                raise error

        if error is None:
            assert submit(GIVEN, train) == ""
        else:
            with pytest.raises(type(error)):
                submit(GIVEN, train)
        recorded.append(status)
        assert statuses() == sorted(recorded)
    assert "has been trained already" in submit(GIVEN, lambda: pytest.fail("it was trained again"))
    assert submit(replace(GIVEN, state="t" * 64), lambda: None) == ""


@pytest.mark.usefixtures("database")
def test_of_two_events_at_one_time_one_trains() -> None:
    """From two working directories. The training ends after both have asked."""
    trained, asked, answers = [], threading.Barrier(2), dict[str, str]()

    def train(place: str) -> None:
        trained.append(place)
        asked.wait(60)

    def event(place: str) -> None:
        answers[place] = submit(replace(GIVEN, place=place), lambda: train(place))
        if answers[place]:
            asked.wait(60)

    threads = [threading.Thread(target=event, args=(place,)) for place in ("one", "other")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(trained) == 1
    (refused,) = [reason for reason in answers.values() if reason]
    assert "is being trained already" in refused
    assert trained[0] in refused


@pytest.mark.usefixtures("database")
def test_an_attempt_whose_process_died_counts_as_failed_in_its_own_directory_only() -> None:
    def submit_and_die() -> None:
        client: Any = connect().MlflowClient()
        experiment = client.get_experiment_by_name("toy") or client.create_experiment("toy")
        experiment_id = getattr(experiment, "experiment_id", experiment)
        tags = {STATE_TAG: GIVEN.state, "hepar.place": GIVEN.place}
        client.create_run(experiment_id, tags=tags)

    submit_and_die()
    assert "is being trained already" in submit(replace(GIVEN, place="elsewhere"), lambda: None)
    assert statuses() == [RUNNING]
    assert submit(GIVEN, lambda: None) == ""
    assert statuses() == [FAILED, FINISHED]
