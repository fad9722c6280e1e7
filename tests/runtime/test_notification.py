"""Notifications: what is posted, to whom, and that a server that fails fails nothing else."""

from __future__ import annotations

import json

import pytest
import yaml
from conftest import ROOT
from inbox import Inbox

from hepar.retraining.run_report import Failure, read_failure
from hepar.runtime.notification import FORMAT_VARIABLE, URL_VARIABLE, Notification, send

NEWS = Notification(
    "run", "SUCCEEDED", "hepar 3 is champion", ("liver Dice < 0.9 & rising",), {"MLflow": "https://mlflow/#/models"}
)


def test_news_are_posted_as_json_or_as_slack_takes_them(inbox: Inbox, monkeypatch: pytest.MonkeyPatch) -> None:
    assert send(NEWS) == ""
    monkeypatch.setenv(FORMAT_VARIABLE, "slack")
    assert send(NEWS) == ""
    plain, slack = inbox.bodies
    assert plain == {
        "event": "run",
        "outcome": "SUCCEEDED",
        "subject": "hepar 3 is champion",
        "details": ["liver Dice < 0.9 & rising"],
        "links": {"MLflow": "https://mlflow/#/models"},
    }
    assert slack == {
        "text": "*SUCCEEDED*: hepar 3 is champion\n• liver Dice &lt; 0.9 &amp; rising\n<https://mlflow/#/models|MLflow>"
    }


def test_a_workflow_on_github_is_started_by_what_it_can_read(inbox: Inbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(FORMAT_VARIABLE, "github")
    failed = Notification("run", "FAILED", "hepar-two-stage", ("evaluate: no test patients",))
    assert (send(NEWS), send(failed)) == ("", "")
    good, bad = inbox.bodies
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "report.yaml").read_text())
    assert {good["event_type"], bad["event_type"]} == set(workflow[True]["repository_dispatch"]["types"])
    assert read_failure(good) is None
    assert read_failure(bad) == Failure("FAILED", "hepar-two-stage", ("evaluate: no test patients",), {})


def test_secrets_are_left_out(inbox: Inbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "planted-key")
    send(Notification("run", "FAILED", "planted-key", ("s3: planted-key",), {"at": "https://me:pass@host/x"}))
    assert inbox.bodies[0]["subject"] == "…"
    assert "planted-key" not in json.dumps(inbox.bodies)
    assert "pass" not in json.dumps(inbox.bodies)


def test_what_cannot_be_sent_is_said_and_the_address_is_not_shown(
    inbox: Inbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    inbox.status = 500
    assert send(NEWS) == "HEPAR_NOTIFY_URL answers 500"
    monkeypatch.setenv(URL_VARIABLE, "http://127.0.0.1:9/hook/s3cret-path")
    assert send(NEWS) == "HEPAR_NOTIFY_URL does not answer (ConnectionError)"
    monkeypatch.setenv(FORMAT_VARIABLE, "fax")
    assert send(NEWS) == "HEPAR_NOTIFY_FORMAT is 'fax' but must be json, slack or github"
    monkeypatch.delenv(URL_VARIABLE)
    assert send(NEWS) == ""
