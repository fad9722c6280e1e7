"""A state is submitted once: the record of each attempt is an MLflow run, tagged with the hash of the state.

Whoever wants to train a state adds an attempt under a lease, if the attempts so far allow it; so of two events at one
time, on any machines that share the registry, one trains. An attempt whose process died stays RUNNING; whoever
submits next from the same working directory, which only one process at a time can lock, knows that it is dead, and
others know it when it has not shown for an hour that it is alive. A run that was handed to a cluster goes on without
its process: its attempt names it, and the next look asks how it ended.

SIGTERM interrupts the work, but not the record: the attempt is then one that was stopped, which has not failed. A run
that a cluster has begun meanwhile is found by its key when the state is submitted again.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hepar.errors import HeparError, ParamsError, Preempted
from hepar.registry.champion import DECISION_TAG, ROLLED_BACK
from hepar.registry.lease import hold_lease
from hepar.registry.model_registry import RUN_TAG, RegisteredModel, versions_of_run
from hepar.registry.tracking import connect, experiment_id, mlflow_errors, tag_name
from hepar.retraining.basis import Basis, Learned
from hepar.retraining.interruption import Interrupted, Interruption

STATE_TAG, PLACE_TAG, REASONS_TAG = (tag_name(name) for name in ("retrained state", "place", "reasons"))
ALIVE_TAG = tag_name("alive")  # of an attempt: seconds since 1970 when its process was last known to live
BEAT_SECONDS, DEAD_SECONDS = 300.0, 3600.0  # how often it says so, and how long it may be silent; clocks may differ
RUN_NAME = "retrain"
RUNNING, FINISHED, FAILED, KILLED = "RUNNING", "FINISHED", "FAILED", "KILLED"  # as MLflow has them
CANCELLED = "CANCELLED"  # by a person, on a cluster; in MLflow KILLED with `CANCELLED_TAG`
CANCELLED_TAG = tag_name("cancelled")
SETTINGS_TAG = tag_name("retrained settings")
LEARNED = "learned.json"  # of an attempt: what it learns from
MAX_ATTEMPTS = 1000  # that are read; there are at most a few
MAX_TAG = 4000  # characters; MLflow allows 8000
Train = Callable[[], str | None]  # the id of a run on a cluster, which may go on; None if the training has ended here
Outcome = Callable[[str], str]  # from the id of such a run to one of the statuses above


class RunCancelled(HeparError):
    """A person has cancelled the run of a training, which is not repeated without one."""


@dataclass(frozen=True)
class Attempt:
    """One attempt to train a state: its MLflow run, how that ended, and the working directory that it was begun in.

    `made` tells what became of the version that it registered; empty if none is known.
    """

    run_id: str
    status: str
    place: str
    made: str = ""


@dataclass(frozen=True)
class Submission:
    """A state to be trained, in a working directory; `reasons` and `basis` are kept with the attempt.

    With a basis, what has come since the last training of the same champion and params must be reason enough.
    """

    state: str
    model: str
    experiment: str
    place: str
    reasons: Sequence[str]
    max_resubmissions: int
    basis: Basis | None = None


def place_of(workdir: Path) -> str:
    """A working directory as attempts name it: with its machine."""
    return f"{socket.gethostname()}:{workdir.resolve()}"


def why_not(attempts: Sequence[Attempt], max_resubmissions: int) -> str:
    """Why a state with these attempts is not submitted; empty if it is. Pure.

    A run that was stopped or refused its params (`KILLED`) may be repeated any number of times; it has not failed. One
    that a person has cancelled is repeated by a person.
    """
    statuses = [attempt.status for attempt in attempts]
    for attempt in attempts:
        if attempt.status == FINISHED:
            made = f": {attempt.made}" if attempt.made else ""
            return f"this state has been trained already (MLflow run {attempt.run_id}){made}"
        if attempt.status == RUNNING:
            return f"this state is being trained already (MLflow run {attempt.run_id}, {attempt.place})"
        if attempt.status == CANCELLED:
            return (
                f"the run that trained this state was cancelled (MLflow run {attempt.run_id}); `hepar submit` with the"
                f" same params starts it again, and `hepar retrain` does once MLflow run {attempt.run_id} is deleted"
            )
    if (failed := statuses.count(FAILED)) > max_resubmissions:
        return f"training this state has failed {failed} times; at most {max_resubmissions} resubmissions are allowed"
    return ""


def reasons_tag(reasons: Sequence[str]) -> dict[str, str]:
    """The tag that tells why something was trained."""
    return {REASONS_TAG: "; ".join(reasons)[:MAX_TAG]}


def version_tags(state: str, reasons: Sequence[str]) -> dict[str, str]:
    """The tags of a version that this process has trained: by them its state finds it again."""
    return {STATE_TAG: state, **reasons_tag(reasons)}


def still_running(run: str) -> str:
    """The outcome of a run of which nothing is known but that it was begun."""
    return RUNNING


def why_not_now(submission: Submission, outcome: Outcome = still_running) -> str:
    """What `submit` would return for the attempts so far; empty if it would train. Changes nothing.

    The caller holds the lock of the working directory. Raises StorageError if the registry fails.
    """
    with mlflow_errors():
        return _why_not_yet(connect(), submission, outcome, record=False)


def submit(
    submission: Submission,
    train: Train,
    outcome: Outcome = still_running,
    stopped: Callable[[], bool] = lambda: False,
) -> str:
    """Train a state unless that has been done or is being done; returns why it is not trained, empty if it was.

    The caller holds the lock of the working directory. What `train` raises passes, after it was recorded. `outcome` is
    asked how a run ended that an earlier attempt has handed to a cluster, and `stopped` whether SIGTERM has arrived
    before. Raises Preempted if it has, or does so meanwhile, even if the state was submitted; StorageError if the
    registry fails.
    """
    mlflow = connect()
    interruption = Interruption(stopped)
    try:
        with interruption.caught():
            run_id, reason = _begun(mlflow, submission, outcome, interruption)
            if reason:
                return reason
            _carry_out(mlflow, run_id, train, interruption)
            interruption.check()
    except Interrupted:
        raise Preempted("stopped by SIGTERM: the same command goes on from there") from None
    return ""


def _begun(mlflow: Any, submission: Submission, outcome: Outcome, interruption: Interruption) -> tuple[str, str]:
    """The MLflow run of a new attempt, or why there is none."""
    with mlflow_errors(), interruption.allowed():
        experiment = experiment_id(mlflow, submission.experiment)
        with hold_lease(mlflow, f"{submission.model}-retraining") as lease:
            if reason := _why_not_yet(mlflow, submission, outcome, record=True):
                return "", reason
            tags = {STATE_TAG: submission.state, PLACE_TAG: submission.place}
            tags |= {**reasons_tag(submission.reasons), ALIVE_TAG: str(int(time.time()))}
            interruption.put_off()
            lease.check()
            run_id = str(mlflow.MlflowClient().create_run(experiment, run_name=RUN_NAME, tags=tags).info.run_id)
            if submission.basis is not None:
                _keep_basis(mlflow.MlflowClient(), run_id, submission.basis)
            return run_id, ""


def _keep_basis(client: Any, run_id: str, basis: Basis) -> None:
    """Log what an attempt learns from; if that fails, the attempt has ended before anything was trained."""
    try:
        client.log_dict(run_id, basis.as_json(), LEARNED)
        client.set_tag(run_id, SETTINGS_TAG, basis.settings)
    except BaseException:
        client.set_terminated(run_id, KILLED)
        raise


def _why_not_yet(mlflow: Any, submission: Submission, outcome: Outcome, record: bool) -> str:
    """Why a state is not trained: by its own attempts, or since too little has come since the last other training."""
    own = _attempts(mlflow, submission, {STATE_TAG: submission.state}, outcome, record)
    if (reason := why_not(own, submission.max_resubmissions)) or (basis := submission.basis) is None:
        return reason
    others = _attempts(mlflow, submission, {SETTINGS_TAG: basis.settings}, outcome, record)
    last = next((attempt for attempt in others if attempt.status in (FINISHED, RUNNING)), None)
    if last is None:
        return ""
    before = Learned.from_json(mlflow.artifacts.load_dict(f"runs:/{last.run_id}/{LEARNED}"))
    if not (few := basis.too_few_since(before)):
        return ""
    how = "has ended" if last.status == FINISHED else "goes on"
    return f"a training with the same champion and params {how} (MLflow run {last.run_id}): {few}"


def _carry_out(mlflow: Any, run_id: str, train: Train, interruption: Interruption) -> None:
    """Train, and record how that ended or where it goes on: a run that has registered a version has ended."""
    client, status, elsewhere = mlflow.MlflowClient(), FAILED, None
    try:
        with _heartbeat(client, run_id), interruption.allowed():
            elsewhere = train()
        status = FINISHED
    except (Interrupted, Preempted, KeyboardInterrupt, ParamsError):  # the last: refused before anything was trained
        status = KILLED
        raise
    except RunCancelled:
        status = CANCELLED
        raise
    finally:
        with mlflow_errors():
            if elsewhere:
                client.set_tag(run_id, RUN_TAG, elsewhere)
            if not elsewhere or versions_of_run(mlflow, elsewhere):
                _end(client, run_id, status)


def _end(client: Any, run_id: str, status: str) -> None:
    """Record how an attempt has ended."""
    if status == CANCELLED:
        client.set_tag(run_id, CANCELLED_TAG, "true")
    client.set_terminated(run_id, KILLED if status == CANCELLED else status)


@contextlib.contextmanager
def _heartbeat(client: Any, run_id: str) -> Iterator[None]:
    """Tag an attempt again and again, as long as the context lasts. A server that does not answer is asked later."""
    ended = threading.Event()

    def beat() -> None:
        while not ended.wait(BEAT_SECONDS):
            with contextlib.suppress(Exception):
                client.set_tag(run_id, ALIVE_TAG, str(int(time.time())))

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _is_silent(tags: Mapping[str, str]) -> bool:
    """Whether an attempt has not shown for too long that its process lives; unknown, so false, without the tag."""
    alive = tags.get(ALIVE_TAG, "")
    return alive.isdecimal() and time.time() - int(alive) > DEAD_SECONDS


def _attempts(
    mlflow: Any, submission: Submission, tags: Mapping[str, str], outcome: Outcome, record: bool
) -> list[Attempt]:
    """The attempts with these tags, the last first. Those that seem to run, but have ended, are marked so; in MLflow by
    `record`."""
    found = mlflow.search_runs(
        search_all_experiments=True,
        filter_string=" and ".join(f"tags.`{key}` = '{value}'" for key, value in tags.items()),
        order_by=["attributes.start_time DESC"],
        max_results=MAX_ATTEMPTS,
        output_format="list",
    )
    attempts = []
    for run in found:
        run_id, status, place = run.info.run_id, run.info.status, run.data.tags.get(PLACE_TAG, "")
        elsewhere = run.data.tags.get(RUN_TAG, "")
        if status == RUNNING:
            if elsewhere:
                status = FINISHED if versions_of_run(mlflow, elsewhere) else outcome(elsewhere)
            elif place == submission.place or _is_silent(run.data.tags):  # its process is dead
                status = FAILED
            if status != RUNNING and record:
                _end(mlflow.MlflowClient(), run_id, status)
        elif CANCELLED_TAG in run.data.tags:
            status = CANCELLED
        of_version = {RUN_TAG: elsewhere} if elsewhere else {STATE_TAG: run.data.tags[STATE_TAG]}
        made = _describe_version(mlflow, submission.model, of_version) if status == FINISHED else ""
        attempts.append(Attempt(run_id, status, place, made))
    return attempts


def registered_by(model: str, run: str) -> str:
    """The version of a model that a run on a cluster has registered, and the last decision on it; empty if none.

    Raises StorageError if the registry fails.
    """
    with mlflow_errors():
        found = RegisteredModel(connect(), model).find_version({RUN_TAG: run})
    return "" if found is None else _summary(model, *found)


def _summary(model: str, number: str, tags: Mapping[str, str]) -> str:
    return f"{model} version {number}, {tags.get(DECISION_TAG, 'no decision is recorded')}"


def _describe_version(mlflow: Any, model: str, tags: Mapping[str, str]) -> str:
    """The version with these tags, the last decision on it, and what can be done; empty if there is none.

    To promote a version that was rolled back would undo that.
    """
    if (found := RegisteredModel(mlflow, model).find_version(tags)) is None:
        return ""
    number, known = found
    text = f"{_summary(model, number, known)}; new scans, labels, reviews or params would make another state"
    if known.get(DECISION_TAG, "").startswith(ROLLED_BACK):
        return text
    return f"{text}; `hepar promote {number}` decides again, and with --force overrules the gates"
