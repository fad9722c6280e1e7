"""The scores of a registered version."""

from __future__ import annotations

from pathlib import Path

import pytest
from score_csv import scores_csv
from toy_versions import ToyRegistry, scores

from hepar.errors import ArtifactError, DataError
from hepar.evaluation.report_folder import Report
from hepar.evaluation.score_table import parse_scores
from hepar.registry.tracking import connect
from hepar.registry.version_scores import version_scores
from hepar.runtime.commit import RELEASE

pytestmark = pytest.mark.usefixtures("database")
CSV = scores_csv([{"case_id": "a", "liver_dice": 0.5}])


def register(folder: Path, name: str, csv: str | None) -> None:
    """Register a version as older releases did: its run holds one report, with this table or without one."""
    mlflow = connect()
    client = mlflow.MlflowClient()
    (folder / "report").mkdir(exist_ok=True)
    (folder / "report" / Report.METRICS).write_text("{}")
    if csv is not None:
        (folder / "report" / Report.CASES).write_text(csv)
    experiment = mlflow.create_experiment(name, artifact_location=(folder / "artifacts").as_uri())
    with mlflow.start_run(experiment_id=experiment) as run:
        mlflow.log_artifacts(str(folder / "report"), Report.KIND)
    client.create_registered_model(name)
    client.create_model_version(name, f"runs:/{run.info.run_id}/model", run.info.run_id)
    client.set_registered_model_alias(name, "champion", "1")


def test_each_version_has_the_scores_of_its_own_report(tmp_path: Path) -> None:
    registry = ToyRegistry(tmp_path)
    registry.champion(scores(0.8))
    registry.add(scores(0.9), **{RELEASE: "2.0"})
    assert version_scores(f"models:/{registry.name}/2").facts[RELEASE] == "2.0"
    for key, dice in (("/1", 0.8), ("@champion", 0.8), ("/2", 0.9)):
        table = version_scores(f"models:/{registry.name}{key}")
        assert {row.values["liver_dice"] for row in table.rows.values()} == {dice}


def test_versions_of_older_releases_are_found_by_number_and_alias(tmp_path: Path) -> None:
    register(tmp_path, "livers", CSV)
    for uri in ("models:/livers/1", "models:/livers@champion"):
        assert version_scores(uri) == parse_scores(CSV, uri)  # without a fact about the report


def test_versions_that_do_not_exist_or_have_no_scores_are_named(tmp_path: Path) -> None:
    register(tmp_path, "livers", None)
    with pytest.raises(ArtifactError, match=r"models:/livers/1 was registered without report/cases\.csv"):
        version_scores("models:/livers/1")
    for uri in ("models:/livers/2", "models:/livers@challenger", "models:/kidneys@champion"):
        with pytest.raises(DataError, match=f"{uri} is not in the registry at sqlite:///"):
            version_scores(uri)
    for uri in ("models:/livers", "models:/@champion", "models:/livers/"):
        with pytest.raises(DataError, match=f"{uri} must be models:/NAME@ALIAS or models:/NAME/VERSION"):
            version_scores(uri)
