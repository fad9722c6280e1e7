"""A state is submitted once: which attempts allow another, two events at one time, a process that died."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hepar.errors import HeparError, ParamsError, Preempted, StorageError
from hepar.params import Params
from hepar.registry.champion import DECISION_TAG, rollback
from hepar.registry.lease import Lease
from hepar.registry.model_registry import RUN_TAG, RegisteredModel
from hepar.registry.tracking import connect
from hepar.retraining.interruption import Interrupted, Interruption
from hepar.retraining.submission import (
    ALIVE_TAG,
    CANCELLED,
    DEAD_SECONDS,
    FAILED,
    FINISHED,
    KILLED,
    REASONS_TAG,
    RUNNING,
    STATE_TAG,
    Attempt,
    RunCancelled,
    Submission,
    place_of,
    reasons_tag,
    submit,
    version_tags,
    why_not,
    why_not_now,
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
        ((FAILED, CANCELLED), "was cancelled"),
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


@pytest.mark.usefixtures("database")
def test_a_training_that_somebody_has_cancelled_is_remembered_as_such() -> None:
    def train() -> None:
        raise RunCancelled("run 7 ended with CANCELED")

    with pytest.raises(RunCancelled):
        submit(GIVEN, train)
    assert statuses() == [KILLED]
    assert "was cancelled" in submit(GIVEN, lambda: pytest.fail("it was trained again"))


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
def test_to_ask_for_the_attempts_answers_as_a_submission_and_changes_nothing() -> None:
    assert why_not_now(GIVEN) == ""
    assert attempts() == []
    submit_and_die()
    once = replace(GIVEN, max_resubmissions=0)
    assert why_not_now(GIVEN) == ""
    assert "has failed 1 times" in why_not_now(once)
    assert "is being trained already" in why_not_now(replace(GIVEN, place="elsewhere"))
    assert statuses() == [RUNNING]
    assert submit(GIVEN, lambda: None) == ""
    assert "has been trained already" in why_not_now(GIVEN)
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


def sigterm() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def before_the_attempt(patch: pytest.MonkeyPatch) -> None:
    patch.setattr("hepar.retraining.submission._attempts", lambda *given: [sigterm()][:0])


def after_the_attempt(patch: pytest.MonkeyPatch) -> None:
    """The answer of the server arrives after the signal."""
    client = type(connect().MlflowClient())
    create = client.create_run
    patch.setattr(client, "create_run", lambda *given, **more: (create(*given, **more), sigterm())[0])


@pytest.mark.usefixtures("database")
@pytest.mark.parametrize(
    ("arrange", "recorded"), [(before_the_attempt, []), (after_the_attempt, [KILLED])], ids=["before", "after"]
)
def test_sigterm_before_anything_is_submitted_is_no_failure(
    arrange: Callable[[pytest.MonkeyPatch], None], recorded: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether the attempt has been added or not."""
    once = replace(GIVEN, max_resubmissions=0)
    with monkeypatch.context() as patch:
        arrange(patch)
        with pytest.raises(Preempted, match="stopped by SIGTERM"):
            submit(once, lambda: pytest.fail("it was trained"))
    assert statuses() == recorded
    assert submit(once, lambda: None) == ""
    assert statuses() == sorted([*recorded, FINISHED])


@pytest.mark.usefixtures("database")
@pytest.mark.parametrize("arrives", ["before the run", "after the run", "while it is recorded"])
def test_a_run_that_was_submitted_before_sigterm_is_found_again(arrives: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that retries whatever fails does not hide the signal, and the runner has one run for one key."""
    once, runs = replace(GIVEN, max_resubmissions=0), list[str]()

    def train(signalled: str) -> str:
        if signalled == "before the run":
            with contextlib.suppress(Exception):
                sigterm()
        if not runs:
            runs.append("first")
        if signalled == "after the run":
            sigterm()
        return runs[0]

    with monkeypatch.context() as patch:
        client = type(connect().MlflowClient())
        set_tag = client.set_tag
        if arrives == "while it is recorded":
            patch.setattr(client, "set_tag", lambda *given: (sigterm(), set_tag(*given)))
        with pytest.raises(Preempted, match="stopped by SIGTERM"):
            submit(once, lambda: train(arrives))
    known = arrives == "while it is recorded"
    assert runs == ([] if arrives == "before the run" else ["first"])
    assert statuses() == [RUNNING if known else KILLED]
    reason = submit(once, lambda: train(""))
    assert ("is being trained already" in reason) if known else reason == ""
    assert statuses() == ([RUNNING] if known else [KILLED, RUNNING])
    assert [run.data.tags[RUN_TAG] for run in attempts() if run.info.status == RUNNING] == runs == ["first"]


@pytest.mark.usefixtures("database")
def test_sigterm_that_the_caller_has_caught_submits_nothing() -> None:
    with pytest.raises(Preempted):
        submit(GIVEN, lambda: pytest.fail("it was trained"), stopped=lambda: True)
    assert attempts() == []


def test_what_cleans_up_after_sigterm_is_not_interrupted() -> None:
    """A scheduler may send the signal twice; the handler from before comes back."""
    before, cleaned = signal.getsignal(signal.SIGTERM), []
    interruption = Interruption(lambda: False)

    def clean_up() -> None:
        sigterm()
        cleaned.append(True)

    with interruption.caught():
        with pytest.raises(Interrupted), interruption.allowed(), contextlib.ExitStack() as stack:  # noqa: PT012
            stack.callback(clean_up)
            sigterm()
        with pytest.raises(Interrupted), interruption.allowed():
            pytest.fail("it has arrived already")
    assert cleaned
    assert signal.getsignal(signal.SIGTERM) == before


@pytest.mark.usefixtures("database")
@pytest.mark.parametrize("elsewhere", [None, "run-1"])
def test_a_state_that_was_trained_names_its_version_and_the_decision(elsewhere: str | None) -> None:
    client: Any = connect().MlflowClient()
    client.create_registered_model(GIVEN.model)

    def train() -> str | None:
        tags = {RUN_TAG: elsewhere} if elsewhere else version_tags(GIVEN.state, ("2 new cases",))
        client.create_model_version(GIVEN.model, "none:/none")
        client.create_model_version(GIVEN.model, "none:/none", tags=tags)
        return elsewhere

    assert submit(GIVEN, train) == ""
    assert ": hepar-toy version 2, no decision is recorded; " in submit(GIVEN, train)
    refused = "not promoted; CT liver Dice: change -0.1"
    RegisteredModel(connect(), GIVEN.model).tag_version("2", {DECISION_TAG: refused})
    again = submit(GIVEN, lambda: pytest.fail("it was trained again"))
    assert again == (
        f"this state has been trained already (MLflow run {attempts()[0].info.run_id}): hepar-toy version 2, {refused};"
        " new scans, labels, reviews or params would make another state; `hepar promote 2` decides again, and with"
        " --force overrules the gates"
    )


@pytest.mark.usefixtures("database")
def test_a_version_that_was_rolled_back_is_not_proposed_for_promotion(tiny: Params) -> None:
    """That would undo the rollback."""
    client: Any = connect().MlflowClient()
    client.create_registered_model(GIVEN.model)
    tags = version_tags(GIVEN.state, ("2 new cases",))
    for number in (1, 2):
        client.create_model_version(GIVEN.model, "none:/none", tags=tags if number == 2 else {})
        RegisteredModel(connect(), GIVEN.model).make_champion(str(number))
    assert submit(GIVEN, lambda: None) == ""
    assert "`hepar promote 2`" in why_not_now(GIVEN)
    rollback(tiny.register_model.model_copy(update={"model_name": GIVEN.model}))
    assert why_not_now(GIVEN) == (
        f"this state has been trained already (MLflow run {attempts()[0].info.run_id}): hepar-toy version 2,"
        " rolled back to version 1; new scans, labels, reviews or params would make another state"
    )
