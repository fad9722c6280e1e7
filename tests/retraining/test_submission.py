"""A state is submitted once: which attempts allow another, two events at one time, a process that died."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hepar.errors import HeparError, ParamsError, Preempted, StorageError
from hepar.registry.lease import Lease
from hepar.registry.model_registry import RUN_TAG
from hepar.registry.tracking import connect
from hepar.retraining.submission import (
    ALIVE_TAG,
    DEAD_SECONDS,
    FAILED,
    FINISHED,
    KILLED,
    REASONS_TAG,
    RUNNING,
    STATE_TAG,
    Attempt,
    Submission,
    place_of,
    reasons_tag,
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


def attempts() -> list[Any]:
    found: list[Any] = connect().search_runs(
        search_all_experiments=True, filter_string=f"tags.`{STATE_TAG}` = '{GIVEN.state}'", output_format="list"
    )
    return found


def statuses() -> list[str]:
    return sorted(run.info.status for run in attempts())


@pytest.mark.usefixtures("database")
def test_how_a_training_ends_is_recorded() -> None:
    ends: list[tuple[BaseException | None, str]] = [
        (Preempted("stopped"), KILLED),
        (ParamsError("no compiled pipeline"), KILLED),
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
    assert {run.data.tags[REASONS_TAG] for run in attempts()} == {"2 new cases"}
    assert "has been trained already" in submit(GIVEN, lambda: pytest.fail("it was trained again"))
    assert submit(replace(GIVEN, state="t" * 64), lambda: None) == ""


def test_reasons_that_name_many_cases_fit_into_a_tag() -> None:
    (value,) = reasons_tag(["a case; "] * 2000).values()
    assert 1000 < len(value) <= 8000  # which MLflow allows


@pytest.mark.usefixtures("database")
def test_attempts_are_read_and_added_under_a_lease(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two events, the second reads when the first has added its attempt. A lease that ran out adds none."""
    held = list[str]()

    @contextlib.contextmanager
    def out_of_time(mlflow: Any, model: str) -> Iterator[Lease]:
        held.append(model)
        monkeypatch.setattr("hepar.retraining.submission._attempts", lambda *given: held.append("read") or [])
        yield Lease(model, 0.0, lambda: 1.0)
        held.append("released")

    monkeypatch.setattr("hepar.retraining.submission.hold_lease", out_of_time)
    with pytest.raises(StorageError, match="ran out"):
        submit(GIVEN, lambda: pytest.fail("it was trained without a lease"))
    assert held == [f"{GIVEN.model}-retraining", "read"]
    assert attempts() == []


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


def submit_and_die(**tags: str) -> None:
    """Leave the attempt of a process that has been killed."""
    client: Any = connect().MlflowClient()
    experiment = client.get_experiment_by_name("toy") or client.create_experiment("toy")
    experiment_id = getattr(experiment, "experiment_id", experiment)
    client.create_run(experiment_id, tags={STATE_TAG: GIVEN.state, "hepar.place": GIVEN.place, **tags})


@pytest.mark.usefixtures("database")
def test_an_attempt_whose_process_died_counts_as_failed_in_its_own_directory_only() -> None:
    submit_and_die()
    assert "is being trained already" in submit(replace(GIVEN, place="elsewhere"), lambda: None)
    assert statuses() == [RUNNING]
    assert submit(GIVEN, lambda: None) == ""
    assert statuses() == [FAILED, FINISHED]


@pytest.mark.usefixtures("database")
def test_a_process_that_has_been_silent_for_an_hour_is_dead_for_all() -> None:
    """A runner that is replaced has another name, so nobody looks at its directory again."""
    elsewhere = replace(GIVEN, place="elsewhere")
    submit_and_die(**{ALIVE_TAG: str(int(time.time() - DEAD_SECONDS + 600))})
    assert "is being trained already" in submit(elsewhere, lambda: None)
    (run,) = attempts()
    connect().MlflowClient().set_tag(run.info.run_id, ALIVE_TAG, str(int(time.time() - DEAD_SECONDS - 1)))
    assert submit(elsewhere, lambda: None) == ""
    assert statuses() == [FAILED, FINISHED]


@pytest.mark.usefixtures("database")
def test_a_training_shows_that_it_is_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hepar.retraining.submission.BEAT_SECONDS", 0.05)
    missed = threading.Event()

    def train() -> None:
        (run,) = attempts()
        assert abs(int(run.data.tags[ALIVE_TAG]) - time.time()) < 600
        client = connect().MlflowClient()
        client.set_tag(run.info.run_id, ALIVE_TAG, "0")
        with monkeypatch.context() as away:  # for some beats
            away.setattr(type(client), "set_tag", lambda *given: missed.set() or 1 / 0)
            assert missed.wait(60)
        end = time.monotonic() + 60
        while client.get_run(run.info.run_id).data.tags[ALIVE_TAG] == "0":
            assert time.monotonic() < end
            time.sleep(0.05)

    assert submit(GIVEN, train) == ""


@pytest.mark.usefixtures("database")
def test_a_run_that_was_only_submitted_goes_on_until_its_end_is_known() -> None:
    """Also for the working directory that has submitted it."""
    outcome = {"first": RUNNING, "second": RUNNING}
    client: Any = connect().MlflowClient()
    client.create_registered_model("m")
    client.create_model_version("m", "none:/none", tags={RUN_TAG: "of another state"})
    assert submit(GIVEN, lambda: "first", outcome.__getitem__) == ""
    assert "is being trained already" in submit(GIVEN, lambda: "other", outcome.__getitem__)
    assert "is being trained already" in submit(GIVEN, lambda: "other")
    outcome["first"] = FAILED
    assert submit(GIVEN, lambda: "second", outcome.__getitem__) == ""
    assert statuses() == [FAILED, RUNNING]
    client.create_model_version("m", "none:/none", tags={RUN_TAG: "second"})
    assert "has been trained already" in submit(GIVEN, lambda: "third", outcome.__getitem__)
    assert statuses() == [FAILED, FINISHED]
