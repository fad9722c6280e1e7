"""A lane takes one job after the other and has it predicted by a process of its own, which it replaces if it dies."""

from __future__ import annotations

import logging
import multiprocessing
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from threading import Thread

from hepar.errors import DataError, HeparError
from hepar.runtime.redaction import redact
from hepar.service.jobs import Job, Jobs, JobState
from hepar.service.predicting import (
    FAILED_SENTENCE,
    NotPredicted,
    Order,
    Predicted,
    PredictionStep,
    Ready,
    Served,
    run_predictions,
)

START_SECONDS = 600.0  # to load a model, perhaps from a registry
LOOK_SECONDS = 0.5  # between two looks whether a running job was deleted
RESTART_SECONDS = 30.0  # between two starts of the process, if one fails and no job arrives
LOG = logging.getLogger("hepar.service")
Ended = Callable[[JobState, float], None]  # state of a job, and how long its prediction took


class PredictionProcess:
    """The process that predicts. `start` may be called again after `end`."""

    def __init__(self, served: Served, device: str = "") -> None:
        """`device` is the one that it sees, of CUDA_VISIBLE_DEVICES; all if it is empty."""
        self.served, self.device = served, device
        self._process: multiprocessing.process.BaseProcess | None = None
        self.connection: Connection | None = None

    @property
    def alive(self) -> bool:
        return self._process is not None and self._process.is_alive()

    def start(self) -> Connection:
        """Start it unless it runs, and return what to talk to it by. Raises DataError if the model cannot be loaded."""
        if self.alive and self.connection is not None:
            return self.connection
        self.end()
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        arguments = (theirs, self.served, self.device)
        self._process = context.Process(target=run_predictions, args=arguments, daemon=True)
        self._process.start()
        theirs.close()
        answer: object = None
        with suppress(EOFError, OSError):
            answer = self.connection.recv() if self.connection.poll(START_SECONDS) else None
        if isinstance(answer, Ready):
            return self.connection
        self.end()
        raise DataError(answer.sentence if isinstance(answer, NotPredicted) else "the process that predicts died")

    def end(self) -> str:
        """Kill it, and say how it ended."""
        if self._process is None:
            return ""
        self._process.join(0.1)
        code = self._process.exitcode
        self._process.kill()
        self._process.join()
        if self.connection is not None:
            self.connection.close()
        self._process = self.connection = None
        return "" if code is None else f"signal {-code}" if code < 0 else f"exit code {code}"


class Lane(Thread):
    """The thread of one device. Every job that it takes is finished by it, whatever happens."""

    def __init__(self, jobs: Jobs, process: PredictionProcess, ended: Ended) -> None:
        super().__init__(daemon=True)
        self.jobs, self.process, self.ended = jobs, process, ended

    def run(self) -> None:
        while not self.jobs.closed:
            if (job := self.jobs.take(RESTART_SECONDS)) is not None:
                self._work_on(job)
            self._restart()
        self.process.end()

    def _work_on(self, job: Job) -> None:
        began = time.monotonic()
        try:
            outcome = self._predict(job, began + self.jobs.limits.prediction_seconds)
        except Exception:  # a bug: the job fails, the lane goes on
            outcome = NotPredicted(FAILED_SENTENCE, traceback.format_exc())
            self.process.end()
        self._finish(job, outcome, time.monotonic() - began)

    def _restart(self) -> None:
        """Start the process if it is gone, so that the service is ready again before the next job arrives."""
        if self.process.alive or self.jobs.closed:
            return
        try:
            self.process.start()
        except HeparError as error:
            LOG.error("%s", redact(str(error)))
        except Exception:  # of the system, such as no memory for another process: the lane goes on
            LOG.error("%s", redact(traceback.format_exc()))
            self.process.end()

    def _finish(self, job: Job, outcome: Predicted | NotPredicted, seconds: float) -> None:
        if isinstance(outcome, Predicted):
            self.jobs.finish(job, JobState.DONE, scans=outcome.scans, left_out=outcome.left_out)
        else:
            if outcome.trace:
                LOG.error("%s", redact(outcome.trace))
            self.jobs.finish(job, JobState.FAILED, error=outcome.sentence)
        self.ended(job.state, seconds)

    def _predict(self, job: Job, deadline: float) -> Predicted | NotPredicted:
        try:
            connection = self.process.start()
        except HeparError as error:
            LOG.error("%s", redact(str(error)))
            return NotPredicted("the model cannot be loaded at the moment")
        try:
            connection.send(Order(job.folder, job.upload, job.modality))
            return self._follow(connection, job, deadline)
        except (EOFError, OSError):
            return NotPredicted(f"the process that read the scan died of {self.process.end()}")

    def _follow(self, connection: Connection, job: Job, deadline: float) -> Predicted | NotPredicted:
        """Note the steps of a job until its end, which comes at once if it is deleted or out of time."""
        while True:
            if job.deleted or self.jobs.closed:
                self.process.end()
                return NotPredicted("the job was deleted")
            if time.monotonic() > deadline:
                self.process.end()
                return NotPredicted(f"the prediction takes longer than {self.jobs.limits.prediction_seconds:.0f} s")
            if not connection.poll(LOOK_SECONDS):
                continue
            answer = connection.recv()
            if not isinstance(answer, PredictionStep):
                return answer  # type: ignore[no-any-return]
            job.step, job.steps_done, job.steps = answer.text, answer.done, answer.total
            job.windows_done, job.windows = answer.windows_done, answer.windows
            job.percent = max(job.percent, answer.percent)  # more windows may become known
