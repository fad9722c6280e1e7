"""A state is submitted once: the record of each attempt is an MLflow run, tagged with the hash of the state.

Whoever wants to train a state adds an attempt under a lease, if the attempts so far allow it; so of two events at one
time, on any machines that share the registry, one trains. An attempt whose process died stays RUNNING; whoever
submits next from the same working directory, which only one process at a time can lock, knows that it is dead, and
others know it when it has not shown for an hour that it is alive. A run that was handed to a cluster goes on without
its process: its attempt names it, and the next look asks how it ended.
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

from hepar.errors import ParamsError, Preempted
from hepar.registry.lease import hold_lease
from hepar.registry.model_registry import RUN_TAG, versions_of_run
from hepar.registry.tracking import connect, experiment_id, storage_errors, tag_name

STATE_TAG, PLACE_TAG, REASONS_TAG = (tag_name(name) for name in ("retrained state", "place", "reasons"))
ALIVE_TAG = tag_name("alive")  # of an attempt: seconds since 1970 when its process was last known to live
BEAT_SECONDS, DEAD_SECONDS = 300.0, 3600.0  # how often it says so, and how long it may be silent; clocks may differ
RUN_NAME = "retrain"
RUNNING, FINISHED, FAILED, KILLED = "RUNNING", "FINISHED", "FAILED", "KILLED"  # as MLflow has them
MAX_ATTEMPTS = 1000  # that are read; there are at most a few
MAX_TAG = 4000  # characters; MLflow allows 8000
Train = Callable[[], str | None]  # the id of a run that goes on elsewhere; None if the training has ended
Outcome = Callable[[str], str]  # from the id of such a run to a status as MLflow has them


@dataclass(frozen=True)
class Attempt:
    """One attempt to train a state: its MLflow run, how that ended, and the working directory that it was begun in."""

    run_id: str
    status: str
    place: str


@dataclass(frozen=True)
class Submission:
    """A state to be trained, in a working directory; `reasons` are kept with the attempt."""

    state: str
    model: str
    experiment: str
    place: str
    reasons: Sequence[str]
    max_resubmissions: int


def place_of(workdir: Path) -> str:
    """A working directory as attempts name it: with its machine."""
    return f"{socket.gethostname()}:{workdir.resolve()}"


def why_not(attempts: Sequence[Attempt], max_resubmissions: int) -> str:
    """Why a state with these attempts is not submitted; empty if it is. Pure.

    A run that was stopped or refused its params (`KILLED`) may be repeated any number of times; it has not failed.
    """
    statuses = [attempt.status for attempt in attempts]
    for attempt in attempts:
        if attempt.status == FINISHED:
            return f"this state has been trained already (MLflow run {attempt.run_id})"
        if attempt.status == RUNNING:
            return f"this state is being trained already (MLflow run {attempt.run_id}, {attempt.place})"
    if (failed := statuses.count(FAILED)) > max_resubmissions:
        return f"training this state has failed {failed} times; at most {max_resubmissions} resubmissions are allowed"
    return ""


def reasons_tag(reasons: Sequence[str]) -> dict[str, str]:
    """The tag that tells why something was trained."""
    return {REASONS_TAG: "; ".join(reasons)[:MAX_TAG]}


def still_running(run: str) -> str:
    """The outcome of a run of which nothing is known but that it was begun."""
    return RUNNING


def submit(submission: Submission, train: Train, outcome: Outcome = still_running) -> str:
    """Train a state unless that has been done or is being done; returns why it is not trained, empty if it was.

    The caller holds the lock of the working directory. What `train` raises passes, after it was recorded. `outcome` is
    asked how a run ended that an earlier attempt has handed to a cluster. Raises StorageError if the registry fails.
    """
    mlflow = connect()
    with storage_errors():
        client, experiment = mlflow.MlflowClient(), experiment_id(mlflow, submission.experiment)
        with hold_lease(mlflow, f"{submission.model}-retraining") as lease:
            attempts = _attempts(mlflow, submission, outcome)
            if reason := why_not(attempts, submission.max_resubmissions):
                return reason
            tags = {STATE_TAG: submission.state, PLACE_TAG: submission.place}
            tags |= {**reasons_tag(submission.reasons), ALIVE_TAG: str(int(time.time()))}
            lease.check()
            run_id = client.create_run(experiment, run_name=RUN_NAME, tags=tags).info.run_id
    status = FAILED
    try:
        with _heartbeat(client, run_id):
            elsewhere = train()
        status = RUNNING if elsewhere else FINISHED
    except (Preempted, KeyboardInterrupt, ParamsError):  # refused before anything was trained: no failure of the state
        status = KILLED
        raise
    finally:
        with storage_errors():
            if status == RUNNING:
                client.set_tag(run_id, RUN_TAG, elsewhere)
            else:
                client.set_terminated(run_id, status)
    return ""


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


def _attempts(mlflow: Any, submission: Submission, outcome: Outcome) -> list[Attempt]:
    """The attempts at a state so far. Those that seem to run, but have ended, are marked so."""
    found = mlflow.search_runs(
        search_all_experiments=True,
        filter_string=f"tags.`{STATE_TAG}` = '{submission.state}'",
        max_results=MAX_ATTEMPTS,
        output_format="list",
    )
    attempts = []
    for run in found:
        run_id, status, place = run.info.run_id, run.info.status, run.data.tags.get(PLACE_TAG, "")
        if status == RUNNING:
            if elsewhere := run.data.tags.get(RUN_TAG, ""):
                status = FINISHED if versions_of_run(mlflow, elsewhere) else outcome(elsewhere)
            elif place == submission.place or _is_silent(run.data.tags):  # its process is dead
                status = FAILED
            if status != RUNNING:
                mlflow.MlflowClient().set_terminated(run_id, status)
        attempts.append(Attempt(run_id, status, place))
    return attempts
