"""The scores of the test cases of a registered version, as its report holds them."""

from __future__ import annotations

from pathlib import Path

from hepar.errors import ArtifactError
from hepar.evaluation.report_folder import Report
from hepar.evaluation.score_table import ScoreTable, parse_scores
from hepar.registry.model_registry import REPORT_TAG, facts_of, files_of_run, find_registered
from hepar.registry.tracking import check_server, connect, mlflow_errors, report_place
from hepar.runtime.scratch import scratch_folder


def version_scores(uri: str) -> ScoreTable:
    """The table `cases.csv` in the report of a version, given as `models:/NAME@ALIAS` or `models:/NAME/VERSION`.

    Raises DataError if there is no registry or no such version or the table breaks a rule, ArtifactError if it was
    registered without this table, StorageError if the registry fails.
    """
    check_server()
    with mlflow_errors(), scratch_folder("scores") as scratch:
        mlflow = connect()
        version = find_registered(mlflow, uri)
        report_hash = version.tags.get(REPORT_TAG)  # missing in versions of older releases
        folder = report_place(report_hash) if report_hash else Report.KIND
        path = f"{folder}/{Report.CASES}"
        if path not in files_of_run(mlflow, version.run_id, folder):
            raise ArtifactError(f"{uri} was registered without {path}: evaluate the model and register it again")
        place = mlflow.artifacts.download_artifacts(run_id=version.run_id, artifact_path=path, dst_path=str(scratch))
        return parse_scores(Path(place).read_text(), uri, facts_of(version))
