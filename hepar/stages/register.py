"""Stage 7: register the model with its report as champion or challenger.

Writes a folder `Registration`: name, version, alias, and the reasons against a promotion.
"""

from __future__ import annotations

from pathlib import Path

from hepar.errors import ArtifactError
from hepar.evaluation.report_folder import Report
from hepar.inference.model_folder import ModelFolder
from hepar.params import RegisterParams
from hepar.registry.model_registry import CHALLENGER, CHAMPION, RegisteredModel
from hepar.registry.promotion import decide_against
from hepar.registry.registration import Registration
from hepar.registry.tracking import as_tags, log_history, log_report, model_run
from hepar.runtime.artifacts import read_manifest, write_artifact
from hepar.runtime.progress import stage


def run(model: Path, report: Path, registration: Path, params: RegisterParams) -> None:
    """Register the model folder `model` as a new version. The first becomes champion; later ones need the gates.

    Raises ArtifactError if `report` scores another model.
    """
    with stage("register"):
        model_hash = read_manifest(model, ModelFolder.KIND).hash
        scored = Report.load(report)
        if (scored_hash := scored.manifest.parents["model"]) != model_hash:
            raise ArtifactError(f"{report} scores model {scored_hash}, but {model} is {model_hash}")
        facts = scored.facts()
        with model_run(params.experiment, model_hash) as mlflow:
            registered = RegisteredModel(mlflow, params.model_name)
            champion = registered.version_by_alias(CHAMPION)
            decision = decide_against(champion, scored.metrics(), facts[Report.TEST_SET], params.gates)
            log_report(mlflow, scored)
            log_history(mlflow, ModelFolder(model).load_history())
            number = registered.add_version(model)
            outcome = "promoted" if decision.promote else "; ".join(decision.reasons)
            registered.tag_version(number, as_tags({**facts, "decision": outcome}))
            alias = CHAMPION if decision.promote else CHALLENGER
            registered.set_alias(alias, number)
        with write_artifact(registration, Registration.KIND, {"model": model_hash}) as folder:
            Registration(params.model_name, number, alias, decision.reasons).save(folder)
