"""Stage 7: register the model with its report, and let the gates decide on its alias.

The first version becomes `champion`, since there is nothing to protect; a later one becomes `challenger`, and
`champion` if the gates let it. Writes `registration.json`: name, version, alias, reasons.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from hepar.errors import ArtifactError, DataError
from hepar.params import RegisterParams
from hepar.registry import tracking
from hepar.registry.promotion import Decision, decide
from hepar.runtime.artifacts import read_manifest, write_json, writing
from hepar.runtime.progress import stage

KIND = "registration"
FILE = "registration.json"
HISTORY_COLUMNS = ["step", "split", "modality", "metric", "value"]


def run(model: Path, report: Path, registration: Path, params: RegisterParams) -> None:
    """Register the model folder `model` as a new version, with what `report` says of it."""
    with stage("register"):
        model_hash = read_manifest(model, "model").hash
        scored = read_manifest(report, "report").parents
        if scored["model"] != model_hash:
            raise ArtifactError(f"{report} scores model {scored['model']}, but {model} is {model_hash}")
        metrics = json.loads((report / "metrics.json").read_text())
        facts = json.loads((report / "facts.json").read_text())
        with tracking.model_run(params.experiment, model_hash) as mlflow:
            champion = tracking.version_by_alias(mlflow, params.model_name, tracking.CHAMPION)
            decision = _decide(metrics, facts["test set"], champion, params)
            _log(mlflow, model, report, metrics)
            number = tracking.log_model(mlflow, model, params.model_name)
            tags = {f"hepar.{key.replace(' ', '_')}": value for key, value in facts.items()}
            tags["hepar.decision"] = "promoted" if decision.promote else "; ".join(decision.reasons)
            tracking.tag_version(mlflow, params.model_name, number, tags)
            alias = tracking.CHAMPION if decision.promote else tracking.CHALLENGER
            tracking.set_alias(mlflow, params.model_name, alias, number)
        result = {"name": params.model_name, "version": number, "alias": alias, "reasons": list(decision.reasons)}
        with writing(registration, KIND, {"model": model_hash}) as folder:
            write_json(folder / FILE, result)


def _decide(
    metrics: Mapping[str, Any], test_set: str, champion: tracking.Version | None, params: RegisterParams
) -> Decision:
    """The gates' decision; numbers from another test set are not comparable, so that keeps the champion."""
    if champion is not None and champion.test_set != test_set:
        return Decision(False, (f"version {champion.number} was scored on another test set",))
    return decide(metrics, champion.metrics if champion is not None else None, params.gates)


def _log(mlflow: Any, model: Path, report: Path, metrics: dict[str, Any]) -> None:
    """Attach the report, the scores and, where the training was tracked elsewhere, its history."""
    mlflow.log_artifacts(str(report), "report")
    for modality, structures in metrics.items():
        for structure in ("liver", "tumour"):
            if (value := structures[structure]["dice"]["mean"]) is not None:
                mlflow.log_metric(f"test/{modality}/{structure}_dice", value)
    if not mlflow.MlflowClient().get_run(mlflow.active_run().info.run_id).data.metrics.get("train/loss"):
        history = pd.read_csv(model / "history.csv", keep_default_na=False)
        for step, split, modality, metric, value in history[HISTORY_COLUMNS].values.tolist():
            mlflow.log_metric("/".join(filter(None, (split, modality, metric))), value, step=step)


def promote(number: str, params: RegisterParams, force: bool) -> Decision:
    """Make a registered version the champion if the gates let it, or in any case with `force`.

    Raises DataError for a version that is not registered.
    """
    mlflow = tracking.connect(params.experiment)
    challenger = tracking.registered_version(mlflow, params.model_name, number)
    if challenger is None:
        raise DataError(f"model {params.model_name} has no version {number} at {tracking.tracking_uri()}")
    champion = tracking.version_by_alias(mlflow, params.model_name, tracking.CHAMPION)
    if champion is not None and champion.number == number:
        return Decision(True, ("it is the champion already",))
    decision = _decide(challenger.metrics, challenger.test_set, champion, params)
    if decision.promote or force:
        tracking.set_alias(mlflow, params.model_name, tracking.CHAMPION, number)
        return Decision(True, decision.reasons)
    return decision
