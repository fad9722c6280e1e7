"""The jobs of the service: a bounded queue, and results that are deleted after a set time.

A job lives in a folder whose name the service draws. Whoever knows its id may see it.
"""

from __future__ import annotations

import re
import secrets
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from threading import Condition
from typing import Any

from hepar.cases import Modality
from hepar.errors import HeparError
from hepar.evaluation.research_use import RESEARCH_USE
from hepar.service.limits import ServiceLimits

ID_BYTES = 18
ID = re.compile(r"[A-Za-z0-9_-]{24}")
DISK_FULL = "the disk of the service is full: try again later"


class QueueFull(HeparError):
    """There is no room for another job now."""


class JobState(StrEnum):
    UPLOADING = "uploading"
    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"


FINISHED = (JobState.DONE, JobState.FAILED)


@dataclass(eq=False)
class Job:
    """One upload and what became of it. `scans` and `left_out` are JSON values, filled when it is done."""

    id: str
    folder: Path
    state: JobState = JobState.UPLOADING
    upload: str = ""  # name of its file
    unwritten: int = 0  # bytes of the upload that are still to come
    modality: Modality | None = None
    step: str = ""
    steps_done: int = 0
    steps: int = 0
    windows_done: int = 0  # of the scan at hand
    windows: int = 0
    percent: int = 0
    error: str = ""
    scans: tuple[Mapping[str, Any], ...] = ()
    left_out: tuple[Mapping[str, Any], ...] = ()
    finished: float = 0.0  # by the clock of `Jobs`
    deleted: bool = field(default=False)


class Jobs:
    """All jobs. Safe for threads; `closed` ends all who wait for one."""

    def __init__(self, root: Path, limits: ServiceLimits) -> None:
        self.root, self.limits = root, limits
        self.closed = False
        self._by_id: dict[str, Job] = {}
        self._queue: list[Job] = []
        self._changed = Condition()

    def reserve(self, upload_bytes: int) -> Job:
        """A place for an upload of at most `upload_bytes`, with a new folder; the oldest results may have to go for it.

        Raises QueueFull if too many jobs wait, or if the disk has no room for all uploads under way.
        """
        with self._changed:
            self._sweep()
            finished = [job for job in self._by_id.values() if job.state in FINISHED]
            open_jobs = len(self._by_id) - len(finished)
            if open_jobs >= self.limits.waiting:
                raise QueueFull(f"{open_jobs} jobs wait: try again later")
            too_many = max(0, len(self._by_id) + 1 - self.limits.kept)
            for oldest in sorted(finished, key=lambda job: job.finished)[:too_many]:
                self._remove(oldest)
            under_way = sum(job.unwritten for job in self._by_id.values())
            if shutil.disk_usage(self.root).free < self.limits.free_bytes + under_way + upload_bytes:
                raise QueueFull(DISK_FULL)
            job_id = secrets.token_urlsafe(ID_BYTES)
            job = Job(job_id, self.root / job_id, unwritten=upload_bytes)
            job.folder.mkdir()
            self._by_id[job_id] = job
            return job

    def submit(self, job: Job) -> None:
        """Queue a job whose upload is stored and checked."""
        with self._changed:
            job.state = JobState.QUEUED
            self._queue.append(job)
            self._changed.notify()

    def take(self, seconds: float | None = None) -> Job | None:
        """The next job, as soon as there is one; None once closed, or if none arrives within `seconds`."""
        with self._changed:
            self._changed.wait_for(lambda: self._queue or self.closed, seconds)
            if self.closed or not self._queue:
                return None
            job = self._queue.pop(0)
            job.state = JobState.RUNNING
            return job

    def finish(self, job: Job, state: JobState, **values: Any) -> None:
        """Note the end of a job; `values` are fields of it. The files of a failed or deleted one are removed."""
        with self._changed:
            for name, value in {**values, "state": state, "finished": time.monotonic()}.items():
                setattr(job, name, value)
            if job.deleted or state == JobState.FAILED:
                shutil.rmtree(job.folder, ignore_errors=True)

    def find(self, job_id: str) -> Job | None:
        """The job with an id; None if there is none, or not any longer."""
        with self._changed:
            self._sweep()
            return self._by_id.get(job_id) if ID.fullmatch(job_id) else None

    def delete(self, job: Job) -> None:
        """Forget a job and its files. A running one is ended by the lane that runs it."""
        with self._changed:
            self._remove(job)

    def sweep(self) -> None:
        """Delete the results whose time is over."""
        with self._changed:
            self._sweep()

    def close(self) -> None:
        """End all who wait for a job."""
        with self._changed:
            self.closed = True
            self._changed.notify_all()

    def describe(self, job: Job) -> dict[str, Any]:
        """What a user sees of a job, as JSON values."""
        with self._changed:
            ahead = self._queue.index(job) if job in self._queue else 0
            left = self.limits.kept_seconds - (time.monotonic() - job.finished)
            return {
                "id": job.id,
                "use": RESEARCH_USE,
                "state": str(job.state),
                "ahead": ahead,
                "step": job.step,
                "steps_done": job.steps_done,
                "steps": job.steps,
                "windows_done": job.windows_done,
                "windows": job.windows,
                "percent": 100 if job.state == JobState.DONE else job.percent,
                "error": job.error,
                "scans": [dict(scan) for scan in job.scans],
                "left_out": [dict(item) for item in job.left_out],
                "deleted_in_seconds": max(0, round(left)) if job.state in FINISHED else None,
            }

    def count(self, state: JobState) -> int:
        """How many jobs are in a state."""
        with self._changed:
            return sum(job.state == state for job in self._by_id.values())

    def _sweep(self) -> None:
        over = time.monotonic() - self.limits.kept_seconds
        for job in [job for job in self._by_id.values() if job.state in FINISHED and job.finished < over]:
            self._remove(job)

    def _remove(self, job: Job) -> None:
        job.deleted = True
        self._by_id.pop(job.id, None)
        if job in self._queue:
            self._queue.remove(job)
        if job.state != JobState.RUNNING:
            shutil.rmtree(job.folder, ignore_errors=True)
