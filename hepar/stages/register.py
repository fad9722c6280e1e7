"""Stage 7: register the model with its report as champion or challenger.

Writes a folder `Registration`: name, version, alias, and the reasons against a promotion.
"""

from __future__ import annotations

from pathlib import Path

from hepar.evaluation.report_folder import Report
from hepar.inference.model_folder import ModelFolder
from hepar.params import RegisterParams
from hepar.registry.model_registry import ModelVersion, RegisteredModel
from hepar.registry.promotion import decide_on
from hepar.registry.registration import Registration
from hepar.registry.tracking import as_tags, log_history, log_report, model_run
from hepar.runtime.artifacts import check_made_from, write_artifact
from hepar.runtime.progress import stage
from hepar.runtime.verification import verify_artifact


def run(model: Path, report: Path, registration: Path, params: RegisterParams, experiment: str) -> None:
    """Register the model folder `model` as a new version. The first becomes champion; later ones need the gates.

    The report and the version join the run that trained the model; one that the server does not know gets a run in the
    MLflow experiment `experiment`. Raises ArtifactError if `report` scores another model, StorageError if MLflow fails.
    """
    with stage("register"):
        manifest = verify_artifact(model, ModelFolder.KIND, deep=True)
        scored = Report.load(report)
        check_made_from(report, scored.manifest, model, manifest, "evaluate")
        facts = scored.facts()
        challenger = ModelVersion(params.model_name, "", scored.metrics(), facts[Report.TEST_SET])
        with model_run(experiment, manifest.hash) as mlflow:
            registered = RegisteredModel(mlflow, params.model_name)
            decision = decide_on(challenger, registered, params.gates)
            log_report(mlflow, scored)
            log_history(mlflow, ModelFolder(model).load_history())
            tags = as_tags({**facts, "decision": decision.summary})
            number = registered.add_version(model, decision.alias, tags, scored.prediction_settings())
        with write_artifact(registration, Registration.KIND, {ModelFolder.KIND: manifest.hash}) as folder:
            Registration(params.model_name, number, decision.alias, decision.reasons).save(folder)
