"""The evaluation of a model on a toy case: all members, recorded settings, lesions, and what was not taught."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from toy_case import write_case, write_noise
from toy_model import constant_weights, write_model

import hepar.stages.evaluate
from hepar.cases import Cohort, Split
from hepar.evaluation.report_folder import Report
from hepar.inference.settings import Axis, PredictionSettings
from hepar.params import Params
from hepar.runtime.artifacts import write_artifact

VOLUME_ML = 16**3 * 0.008  # of the whole scan


@pytest.fixture
def cohort(tmp_path: Path) -> Path:
    """A cohort of one test case, which has a liver with a tumour."""
    case = replace(write_case(tmp_path), split=Split.TEST)
    write_noise(tmp_path / "cohort" / case.image)
    with write_artifact(tmp_path / "sealed", Cohort.KIND, {}) as folder:
        shutil.copytree(tmp_path / "cohort", folder, dirs_exist_ok=True)
        Cohort(folder, (case,)).save()
    return tmp_path / "sealed"


def evaluate(cohort: Path, tiny: Params, params: dict[str, Any], **spec: Any) -> Report:
    """The report of two members, of which one finds liver everywhere and the other tumour everywhere."""
    liver, tumour = constant_weights(tiny, 0.9, 0.2), constant_weights(tiny, 0.2, 0.9)
    folder = cohort.parent
    write_model(folder / "model", tiny, liver, members=[tumour], **spec)
    changed = tiny.evaluate.model_copy(update=params)
    hepar.stages.evaluate.run(cohort, folder / "model", folder / "report", changed)
    return Report.load(folder / "report")


def test_all_members_are_averaged_and_each_lesion_is_listed(cohort: Path, tiny: Params) -> None:
    report = evaluate(cohort, tiny, {"min_lesion_ml": 0.0})
    (lesion,) = report.lesions().to_dict("records")
    assert (lesion["case_id"], lesion["lesion"], lesion["overlaps_reference"]) == ("a", 1, True)
    assert lesion["volume_ml"] == pytest.approx(VOLUME_ML)
    assert lesion["confidence"] == pytest.approx(0.55, abs=1e-5)
    assert report.cases()["tumour_prediction_volume_ml"].tolist() == pytest.approx([VOLUME_ML])
    assert Report.NOT_SCORED not in report.facts()


def test_the_report_records_how_its_masks_were_predicted(cohort: Path, tiny: Params) -> None:
    params = {"variants": 2, "mirror_axes": ("x",), "min_lesion_ml": 0.3, "tumour_threshold": None}
    report = evaluate(cohort, tiny, params, tumour_threshold=0.6)
    recorded = PredictionSettings.from_facts(report.prediction_settings())
    assert recorded == PredictionSettings(tiny.evaluate.overlap, 2, (Axis.X,), 0.6, 0.3)
    assert len(report.lesions()) == 0  # 0.55 does not exceed the model's threshold
    assert "confidence" in report.lesions().columns


def test_a_structure_that_was_not_taught_is_not_scored(cohort: Path, tiny: Params) -> None:
    report = evaluate(cohort, tiny, {}, taught=("tumour",))
    metrics = report.metrics()["CT"]
    assert (metrics["liver"]["dice"]["n"], metrics["liver"]["counts"]["unknown"]) == (0, 1)
    assert metrics["tumour"]["dice"]["mean"] == pytest.approx(2 * 8 / (8 + 16**3))
    assert report.facts()[Report.NOT_SCORED] == "liver: not taught to the model"
    assert report.page.read_text().count("liver: not taught to the model") == 1


def test_a_liver_teacher_is_scored_on_livers_alone(cohort: Path, tiny: Params) -> None:
    report = evaluate(cohort, tiny, {}, taught=("liver",))
    metrics = report.metrics()["CT"]
    assert metrics["liver"]["dice"]["mean"] == pytest.approx(2 * 8**3 / (8**3 + 16**3))
    assert (metrics["tumour"]["dice"]["n"], metrics["tumour"]["counts"]["unknown"]) == (0, 1)
    assert len(report.lesions()) == 0
