"""Stage 7: register the model with its report as champion or challenger.

Writes a folder `Registration`: name, version, alias, and the reasons against a promotion.
"""

from __future__ import annotations

from pathlib import Path

from hepar.cases import Cohort
from hepar.evaluation.report_folder import Report
from hepar.inference.model_folder import ModelFolder
from hepar.params import RegisterParams
from hepar.registry.champion import RESULT_TAG, Judge, settle
from hepar.registry.lease import hold_lease
from hepar.registry.model_registry import COHORT_VERSION, REPORT_TAG, RegisteredModel
from hepar.registry.registration import Registration
from hepar.registry.tracking import MODEL_TAG, as_tags, log_history, log_report, model_run
from hepar.runtime.artifacts import check_made_from, read_manifest, write_artifact
from hepar.runtime.execution import execution_facts
from hepar.runtime.fetching import stored_version
from hepar.runtime.progress import stage
from hepar.runtime.verification import verify_artifact


def run(
    model: Path,
    report: Path,
    registration: Path,
    params: RegisterParams,
    experiment: str,
    cohort: Path | None = None,
) -> None:
    """Register the model folder `model` as a version. It becomes champion if it passes the gates, else challenger.

    The report and the version join the run that trained the model; one that the server does not know gets a run in the
    MLflow experiment `experiment`. The same model with the same report is one version: a repeated registration adds and
    decides nothing, one that was cut short is completed, and two at once make one version. A champion that was scored
    on another test set is scored anew on the test cases in `cohort`, that of the report; without it the champion stays.
    Raises ArtifactError if `report` scores another model or cohort, StorageError if MLflow fails.
    """
    with stage("register"):
        manifest = verify_artifact(model, ModelFolder.KIND, deep=True)
        scored = Report.load(report)
        check_made_from(report, scored.manifest, model, manifest, "evaluate")
        if cohort is not None:
            check_made_from(report, scored.manifest, cohort, read_manifest(cohort, Cohort.KIND), "evaluate")
        with model_run(experiment, manifest.hash) as mlflow:
            judge = Judge(RegisteredModel(mlflow, params.model_name), params.gates, cohort)
            result = _register(model, scored, judge)
        with write_artifact(registration, Registration.KIND, {ModelFolder.KIND: manifest.hash}) as folder:
            result.save(folder)


def _register(model: Path, report: Report, judge: Judge) -> Registration:
    """The version of this model and report, which is added unless it is there."""
    registered = judge.model
    version = stored_version(judge.cohort) if judge.cohort is not None else ""
    stored = {COHORT_VERSION: version} if version else {}
    tags = as_tags({**execution_facts(), **report.facts(), **stored, Report.KIND: report.manifest.hash})
    same = {name: tags[name] for name in (MODEL_TAG, REPORT_TAG)}
    if (found := registered.find_version(same)) is None:
        log_report(registered.mlflow, report)
        log_history(registered.mlflow, ModelFolder(model).load_history())
        logged = registered.log_model(model, report.prediction_settings())
        with hold_lease(registered.mlflow, registered.name) as lease:  # another attempt may have logged it meanwhile
            if (found := registered.find_version(same)) is None:
                lease.check()
                found = registered.add_version(logged, tags), tags
    number, kept = found
    return Registration.from_json(kept[RESULT_TAG]) if RESULT_TAG in kept else settle(number, judge)
