"""The end of a run as a notification, from a registry and a store, to a server on loopback."""

from __future__ import annotations

from pathlib import Path

import pytest
from inbox import Inbox

from hepar.errors import DataError
from hepar.registry.champion import DECISION_TAG, RESULT_TAG
from hepar.registry.registration import Registration
from hepar.registry.run_news import tell_outcome
from hepar.registry.tracking import connect, tag_name
from hepar.runtime.execution import KFP_RUN, KFP_RUN_VARIABLE
from hepar.runtime.failure_record import recorded

RUNS, MLFLOW = "https://kfp/#/runs/details/", "https://mlflow"


def test_a_run_that_registered_a_version_tells_the_decision_the_scores_and_where_to_look(
    database: None, inbox: Inbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = connect().MlflowClient()
    run_id = client.create_run("0").info.run_id
    client.log_metric(run_id, "test/CT/liver_dice", 0.9534)
    client.log_metric(run_id, "train/loss", 0.1)
    client.create_registered_model("liver")
    result = Registration("liver", "1", "challenger", ("MR tumour Dice 0.61 < 0.65",))
    tags = {tag_name(KFP_RUN): "run-7", RESULT_TAG: result.to_json(), DECISION_TAG: "not promoted; MR 0.61 < 0.65"}
    client.create_model_version("liver", "somewhere", run_id, tags=tags)
    monkeypatch.setenv(KFP_RUN_VARIABLE, "run-7")
    tell_outcome("SUCCEEDED", "", MLFLOW, RUNS)
    monkeypatch.setenv(KFP_RUN_VARIABLE, "run-8")  # which registered nothing new
    tell_outcome("SUCCEEDED", "", "", "")
    told, nothing_new = inbox.bodies
    assert told == {
        "event": "run",
        "outcome": "SUCCEEDED",
        "subject": "liver version 1 is challenger",
        "details": ["against the champion: not promoted; MR 0.61 < 0.65", "CT/liver_dice 0.953"],
        "links": {"run": "https://kfp/#/runs/details/run-7", "MLflow": "https://mlflow/#/models/liver/versions/1"},
    }
    assert (nothing_new["subject"], nothing_new["details"], nothing_new["links"]) == ("hepar run run-8", [], {})


def test_a_failed_run_tells_the_step_and_where_its_log_is(
    inbox: Inbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(KFP_RUN_VARIABLE, "run-9")
    tell_outcome("FAILED", "task ingest failed\nwith code 1", "", "")  # there is no store
    monkeypatch.setenv("HEPAR_STORE", str(tmp_path / "store"))
    with pytest.raises(DataError), recorded("ingest"):
        raise DataError("5 of 8 cases are refused")
    tell_outcome("FAILED", "task ingest failed", "", RUNS)
    by_kfp, by_store = inbox.bodies
    assert (by_kfp["outcome"], by_kfp["details"]) == ("FAILED", ["task ingest failed with code 1"])
    reason, log = by_store["details"]
    assert reason == "ingest failed: 5 of 8 cases are refused"
    assert Path(log.removeprefix("log: "), "log.txt").is_file()


def test_a_registry_that_fails_is_told_and_fails_nothing(inbox: Inbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KFP_RUN_VARIABLE, "run-7")
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    monkeypatch.setenv("HEPAR_EPHEMERAL", "1")
    tell_outcome("SUCCEEDED", "", "", "")
    (detail,) = inbox.bodies[0]["details"]
    assert detail.startswith("more could not be found out: MLFLOW_TRACKING_URI is not set")


def test_without_an_address_nothing_is_sent_or_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    tell_outcome("SUCCEEDED", "", "", "")
