"""Metrics of the service in the text format of Prometheus. They count jobs and seconds, and name no scan."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from hepar.service.jobs import Jobs, JobState

SECONDS = (1, 2, 5, 10, 20, 60, 120, 300, 600, 1200, float("inf"))


class ServiceMetrics:
    """The metrics of one service, in a registry of their own."""

    def __init__(self, jobs: Jobs) -> None:
        self.registry = CollectorRegistry()
        self._jobs = Counter("hepar_jobs", "Jobs that ended.", ["outcome"], registry=self.registry)
        self._refused = Counter("hepar_uploads_refused", "Uploads refused.", ["status"], registry=self.registry)
        self._bytes = Counter("hepar_upload_bytes", "Bytes of accepted uploads.", registry=self.registry)
        self._seconds = Histogram(
            "hepar_prediction_seconds", "Duration of a job in the lane.", registry=self.registry, buckets=SECONDS
        )
        for state in (JobState.UPLOADING, JobState.QUEUED, JobState.RUNNING):
            gauge = Gauge(f"hepar_jobs_{state}", f"Jobs that are {state} now.", registry=self.registry)
            gauge.set_function(lambda state=state: jobs.count(state))  # type: ignore[misc]
        for state in (JobState.DONE, JobState.FAILED):
            self._jobs.labels(outcome=state)  # so that a rate is 0 and not absent

    def ended(self, state: JobState, seconds: float) -> None:
        """Count a job that ended."""
        self._jobs.labels(outcome=state).inc()
        self._seconds.observe(seconds)

    def accepted(self, size_bytes: int) -> None:
        """Count an accepted upload."""
        self._bytes.inc(size_bytes)

    def refused(self, status: int) -> None:
        """Count a refused upload by its HTTP status."""
        self._refused.labels(status=str(status)).inc()

    def text(self) -> bytes:
        """All metrics."""
        return generate_latest(self.registry)
