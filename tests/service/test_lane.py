"""A lane ends every job that it takes, whatever happens to the process that predicts."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
import requests
from served_jobs import served_jobs
from waiting import wait_until

from hepar.errors import DataError
from hepar.service import lane
from hepar.service.jobs import FINISHED, Job, Jobs, JobState
from hepar.service.lane import Lane, PredictionProcess
from hepar.service.limits import ServiceLimits
from hepar.service.predicting import FAILED_SENTENCE, UNPACKED, NotPredicted, Predicted, PredictionStep, Served


class Scripted(PredictionProcess):
    """A process that answers an order as a test wants."""

    def __init__(self, script: Callable[[Connection], Any]) -> None:
        super().__init__(Served("model"))
        self.script, self.ended, self.runs = script, 0, False

    @property
    def alive(self) -> bool:
        return self.runs

    def start(self) -> Connection:
        self.connection, self.theirs = Pipe()
        self.script(self.theirs)
        self.runs = True
        return self.connection

    def end(self) -> str:
        self.ended, self.runs = self.ended + 1, False
        return "signal 11"


def ended(
    root: Path, script: Callable[[Connection], Any], seconds: float = 60.0
) -> tuple[Job, Scripted, list[JobState]]:
    """A job that a lane has worked on, the process, and what the metrics were told."""
    jobs, told = Jobs(root, replace(ServiceLimits(), prediction_seconds=seconds, free_bytes=0)), []
    job, process = jobs.reserve(0), Scripted(script)
    jobs.submit(job)
    worker = Lane(jobs, process, lambda state, _: told.append(state))
    worker.start()
    while not told:
        worker.join(0.01)
    jobs.close()
    worker.join()
    return job, process, told


@pytest.fixture(autouse=True)
def looks_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lane, "LOOK_SECONDS", 0.01)


def test_a_job_is_done_or_fails_with_what_the_process_says(tmp_path: Path) -> None:
    def succeed(theirs: Connection) -> None:
        theirs.send(PredictionStep("predicting", 1, 2, 30, 40))
        theirs.send(PredictionStep("predicting", 1, 2, 40, 80))  # more windows are known now
        theirs.send(Predicted(({"number": 1},), ()))

    job, _, told = ended(tmp_path, succeed)
    assert (job.state, job.scans, job.step, told) == (JobState.DONE, ({"number": 1},), "predicting", [JobState.DONE])
    assert (job.windows_done, job.windows, job.percent) == (40, 80, 87)
    job, _, told = ended(tmp_path, lambda theirs: theirs.send(NotPredicted("no liver")))
    assert (job.state, job.error, told) == (JobState.FAILED, "no liver", [JobState.FAILED])


def test_a_process_that_dies_hangs_or_cannot_start_fails_its_job_and_is_replaced(tmp_path: Path) -> None:
    job, process, _ = ended(tmp_path, lambda theirs: theirs.close())
    assert (job.state, job.error) == (JobState.FAILED, "the process that read the scan died of signal 11")
    job, process, _ = ended(tmp_path, lambda _: None, seconds=0.05)
    assert (job.error, process.ended > 0) == ("the prediction takes longer than 0 s", True)

    def refuse(_: Connection) -> None:
        raise DataError("no model")

    job, process, _ = ended(tmp_path, refuse)
    assert (job.state, job.error) == (JobState.FAILED, "the model cannot be loaded at the moment")


def test_a_bug_is_not_taken_for_a_model_that_cannot_be_loaded(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def fail(_: Connection) -> None:
        raise KeyError("a name")

    job, process, _ = ended(tmp_path, fail)
    assert (job.state, job.error, process.ended > 0) == (JobState.FAILED, FAILED_SENTENCE, True)
    assert "Traceback" in caplog.text


@contextmanager
def working(root: Path, process: PredictionProcess) -> Iterator[tuple[Jobs, Lane]]:
    """A lane at work on new jobs."""
    jobs = Jobs(root, replace(ServiceLimits(), free_bytes=0))
    worker = Lane(jobs, process, lambda *_: None)
    worker.start()
    try:
        yield jobs, worker
    finally:
        jobs.close()
        worker.join()


def submit(jobs: Jobs) -> Job:
    job = jobs.reserve(0)
    jobs.submit(job)
    return job


def test_the_service_is_ready_again_after_a_cancelled_job_though_no_other_arrives(tmp_path: Path) -> None:
    process = Scripted(lambda _: None)
    with working(tmp_path, process) as (jobs, worker):
        job = submit(jobs)
        wait_until(lambda: job.state == JobState.RUNNING and process.alive)
        jobs.delete(job)
        wait_until(lambda: job.state == JobState.FAILED and process.alive)
        assert process.ended == 1
        with served_jobs(jobs, "a-token", [worker]) as address:
            assert requests.get(f"{address}/readyz", timeout=60).status_code == 200
    assert not process.alive


def test_a_lane_that_lost_its_process_predicts_the_next_job(tmp_path: Path) -> None:
    def first_dies(theirs: Connection) -> None:
        if process.ended:
            theirs.send(Predicted(({"number": 1},), ()))
        else:
            theirs.close()

    process = Scripted(first_dies)
    with working(tmp_path, process) as (jobs, _):
        states = []
        for _ in range(2):
            job = submit(jobs)
            wait_until(lambda job=job: job.state in FINISHED)  # type: ignore[misc]
            states.append(job.state)
    assert states == [JobState.FAILED, JobState.DONE]


def test_a_process_that_cannot_start_is_tried_again_from_time_to_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lane, "RESTART_SECONDS", 0.05)
    problems: list[Exception] = [DataError("the registry does not answer"), OSError("no memory"), DataError("again")]
    starts: list[float] = []

    def start_at_last(_: Connection) -> None:
        starts.append(time.monotonic())
        if problems:
            raise problems.pop(0)

    process = Scripted(start_at_last)
    with working(tmp_path, process):
        wait_until(lambda: process.alive)
    assert len(starts) == 4
    assert min(later - earlier for earlier, later in pairwise(starts)) > 0.04


def test_a_job_whose_process_dies_leaves_no_files_behind(tmp_path: Path) -> None:
    with working(tmp_path, Scripted(lambda theirs: theirs.close())) as (jobs, _):
        job = jobs.reserve(0)
        (job.folder / UNPACKED).mkdir()
        for name in ("upload.zip", f"{UNPACKED}/000001"):
            (job.folder / name).write_text("voxels")
        jobs.submit(job)
        wait_until(lambda: job.state == JobState.FAILED)
        assert jobs.find(job.id) is job  # so that its uploader learns why
        assert list(tmp_path.iterdir()) == []
