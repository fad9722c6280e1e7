"""The end of a run as a notification: its outcome, what was registered and why, or which step failed and why."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from typing import Any

from hepar.errors import HeparError, one_line
from hepar.registry.champion import DECISION_TAG, RESULT_TAG
from hepar.registry.model_registry import versions_of_run
from hepar.registry.registration import Registration
from hepar.registry.tracking import TEST_SCORES, connect, mlflow_errors
from hepar.runtime.execution import KFP_RUN_VARIABLE
from hepar.runtime.failure_record import last_failure
from hepar.runtime.notification import MAX_MESSAGE, SUCCEEDED, URL_VARIABLE, Notification, send
from hepar.runtime.redaction import redact


def tell_outcome(state: str, message: str, mlflow_url: str, runs_url: str) -> None:
    """Send how a run ended to HEPAR_NOTIFY_URL, if that is set; whatever fails is printed, and fails nothing else.

    `mlflow_url` and `runs_url` are the addresses of MLflow and of KFP's runs in a browser; empty: no link.
    """
    if not os.environ.get(URL_VARIABLE):
        return
    run = os.environ.get(KFP_RUN_VARIABLE, "")
    details: list[str] = []
    links = {"run": f"{runs_url.rstrip('/')}/{run}"} if runs_url and run else {}
    subject = f"hepar run {run}".strip()
    try:
        if state == SUCCEEDED:
            if (found := _registered(run)) is not None:
                subject, details = found.subject, list(found.details)
                links |= _version_link(found, mlflow_url)
        elif (failure := last_failure(run)) is not None:
            details = [f"{failure.step} failed: {failure.reason}", f"log: {failure.place}"]
        elif message:
            details = [one_line(message)[:MAX_MESSAGE]]
    except (HeparError, ValueError, TypeError) as error:
        details.append(f"more could not be found out: {one_line(error)}")
    if problem := send(Notification("run", state, subject, tuple(details), links)):
        print(redact(f"hepar: notify: {problem}"), file=sys.stderr)


class _RegisteredBy:
    """A version that a run registered: its result, and the scores that it was judged by."""

    def __init__(self, version: Any, scores: Mapping[str, float]) -> None:
        self.result = Registration.from_json(version.tags[RESULT_TAG])
        self._decision, self._scores = version.tags.get(DECISION_TAG, ""), scores

    @property
    def subject(self) -> str:
        return f"{self.result.name} version {self.result.version} is {self.result.alias}"

    @property
    def details(self) -> tuple[str, ...]:
        scores = (f"{name.removeprefix(TEST_SCORES)} {value:.3f}" for name, value in sorted(self._scores.items()))
        return tuple(filter(None, (f"against the champion: {self._decision}" if self._decision else "", *scores)))


def _registered(run: str) -> _RegisteredBy | None:
    """The version that a KFP run registered; None if it has no id, or registered nothing new."""
    if not run:
        return None
    with mlflow_errors():
        mlflow = connect()
        for version in versions_of_run(mlflow, run):
            if RESULT_TAG in version.tags:
                metrics = mlflow.MlflowClient().get_run(version.run_id).data.metrics
                return _RegisteredBy(
                    version, {name: value for name, value in metrics.items() if name.startswith(TEST_SCORES)}
                )
    return None


def _version_link(found: _RegisteredBy, mlflow_url: str) -> dict[str, str]:
    """The page of a version in MLflow; the tracking server itself is not one that a browser reaches."""
    if not mlflow_url:
        return {}
    return {"MLflow": f"{mlflow_url.rstrip('/')}/#/models/{found.result.name}/versions/{found.result.version}"}
