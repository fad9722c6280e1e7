"""The folder `report/`."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from hepar.errors import ArtifactError
from hepar.evaluation.report_folder import Report
from hepar.inference.settings import Axis, PredictionSettings
from hepar.runtime.artifacts import write_artifact

METRICS = {"CT": {"cases": 2}}
FACTS = {Report.TEST_SET: "ab12", "model": "cd34"}
CASES = pd.DataFrame({"case_id": ["a", "b"], "tumour_dice": [0.5, None]})
LESIONS = pd.DataFrame({"case_id": ["a"], "lesion": [1], "confidence": [0.75]})


def test_a_report_survives_a_round_trip(tmp_path: Path) -> None:
    with write_artifact(tmp_path / "report", Report.KIND, {"model": "cd34"}) as folder:
        Report(folder).save(METRICS, FACTS, CASES, LESIONS)
    report = Report.load(tmp_path / "report")
    assert (report.metrics(), report.facts()) == (METRICS, FACTS)
    pd.testing.assert_frame_equal(report.cases(), CASES)
    pd.testing.assert_frame_equal(report.lesions(), LESIONS)
    assert report.manifest.parents == {"model": "cd34"}


def test_an_unfinished_report_or_another_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"report: manifest\.json is missing"):
        Report.load(tmp_path)
    with write_artifact(tmp_path / "pool", "pool", {}) as folder:
        Report(folder).save(METRICS, FACTS, CASES, LESIONS)
    with pytest.raises(ArtifactError, match="pool but must be report"):
        Report.load(tmp_path / "pool")


@pytest.mark.parametrize("content", [None, "{", "[]"])
def test_missing_or_damaged_metrics_are_refused(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / Report.METRICS).write_text(content)
    with pytest.raises(ArtifactError, match=r"metrics\.json"):
        Report(tmp_path).metrics()


def test_a_report_names_the_settings_of_its_prediction(tmp_path: Path) -> None:
    settings = PredictionSettings(0.25, 3, (Axis.Z, Axis.X), 0.6, 0.2)
    Report(tmp_path).save(METRICS, {**FACTS, **settings.facts()}, CASES, LESIONS)
    assert PredictionSettings.from_facts(Report(tmp_path).prediction_settings()) == settings
    Report(tmp_path).save(METRICS, FACTS, CASES, LESIONS)  # an older report
    assert Report(tmp_path).prediction_settings() == {}
