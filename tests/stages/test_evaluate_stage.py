"""The evaluation of a model on a toy case: all members, recorded settings, lesions, and what was not taught."""

from __future__ import annotations

import base64
import io
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from toy_case import box, volume, write_case, write_noise
from toy_model import constant_weights, write_model

import hepar.stages.evaluate
from hepar.cases import STRUCTURES, Case, Cohort, LabelState, Modality, Split
from hepar.errors import DataError
from hepar.evaluation.held_out import given_settings
from hepar.evaluation.report_folder import Report
from hepar.imaging.volumes import read_image, to_array, write_image
from hepar.inference.model_folder import ModelFolder
from hepar.inference.settings import Axis, PredictionSettings
from hepar.params import Params
from hepar.runtime.artifacts import sha256_file, write_artifact

VOLUME_ML = 16**3 * 0.008  # of the whole scan


@pytest.fixture
def cohort(tmp_path: Path) -> Path:
    """A cohort of one test case, which has a liver with a tumour."""
    case = replace(write_case(tmp_path), split=Split.TEST)
    write_noise(tmp_path / "cohort" / case.image)
    return seal(tmp_path, case)


def seal(folder: Path, case: Case) -> Path:
    """A cohort of this case, whose files are in `folder/cohort`."""
    with write_artifact(folder / "sealed", Cohort.KIND, {}) as sealed:
        shutil.copytree(folder / "cohort", sealed, dirs_exist_ok=True)
        Cohort(sealed, (case,)).save()
    return folder / "sealed"


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
    reference, lesion = report.lesions().to_dict("records")
    assert (lesion["case_id"], lesion["kind"], lesion["lesion"], lesion["matched"]) == ("a", "predicted", 1, True)
    assert lesion["volume_ml"] == pytest.approx(VOLUME_ML)
    assert lesion["iou"] == reference["iou"] == 8 / 16**3
    assert lesion["confidence"] == reference["confidence"] == pytest.approx(0.55, abs=1e-5)
    assert report.cases()["tumour_prediction_volume_ml"].tolist() == pytest.approx([VOLUME_ML])
    kept = {name: set(to_array(read_image(report.probability("a", name))).ravel()) for name in STRUCTURES}
    assert kept == {"liver": {140}, "tumour": {140}}  # 0.55 of 255
    tumour = report.metrics()["CT"]["tumour"]
    assert (tumour["froc"]["mean"]["value"], tumour["average_precision"]["iou>0"]["value"]) == (1, 1)
    assert tumour["average_precision"]["iou>0.1"]["value"] == 0
    assert tumour["reliability"]["voxels"]["bins"][5]["count"] == 16**3
    assert tumour["reliability"]["voxels"]["ece"]["value"] == pytest.approx(0.55 - 8 / 16**3)
    assert Report.NOT_SCORED not in report.facts()
    assert report.facts()[Report.SOURCES] == "s (licence not stated): 1"


def test_the_report_records_how_its_masks_were_predicted(cohort: Path, tiny: Params) -> None:
    params = {"variants": 2, "mirror_axes": ("x",), "min_lesion_ml": 0.3, "tumour_threshold": None}
    report = evaluate(cohort, tiny, params, tumour_threshold=0.6)
    recorded = PredictionSettings.from_facts(report.prediction_settings())
    assert recorded == PredictionSettings(tiny.evaluate.overlap, 2, (Axis.X,), 0.6, 0.3)
    assert given_settings(report.facts()) == PredictionSettings(tiny.evaluate.overlap, 2, (Axis.X,), None, 0.3)
    (missed,) = report.lesions().to_dict("records")  # 0.55 does not exceed the model's threshold
    assert (missed["kind"], missed["matched"]) == ("reference", False)
    assert missed["confidence"] == pytest.approx(0.55, abs=1e-5)


def test_a_structure_that_was_not_taught_is_not_scored(cohort: Path, tiny: Params) -> None:
    report = evaluate(cohort, tiny, {}, taught=("tumour",))
    metrics = report.metrics()["CT"]
    assert (metrics["liver"]["dice"]["n"], metrics["liver"]["counts"]["unknown"]) == (0, 1)
    assert metrics["tumour"]["dice"]["mean"] == pytest.approx(2 * 8 / (8 + 16**3))
    assert report.facts()[Report.NOT_SCORED] == "liver: not taught to the model"
    row = "Everything about the liver</th><td>not taught to the model</td>"
    assert report.page.read_text().count(row) == 1


def test_a_liver_teacher_is_scored_on_livers_alone(cohort: Path, tiny: Params) -> None:
    report = evaluate(cohort, tiny, {}, taught=("liver",))
    metrics = report.metrics()["CT"]
    assert metrics["liver"]["dice"]["mean"] == pytest.approx(2 * 8**3 / (8**3 + 16**3))
    assert (metrics["tumour"]["dice"]["n"], metrics["tumour"]["counts"]["unknown"]) == (0, 1)
    assert len(report.lesions()) == 0


def test_slices_of_mr_are_windowed_around_the_reference_liver(cohort: Path, tiny: Params) -> None:
    """A bright organ fills the rest of the scan, and the model predicts liver everywhere."""
    rng = np.random.default_rng(0)
    bright_zyx = np.where(box(4, 12), rng.integers(90, 111, (16, 16, 16)), 5000).astype(np.int16)
    write_image(volume(bright_zyx), cohort.parent / "cohort" / "image.nii.gz")
    (case,) = Cohort.load(cohort)
    changed = sha256_file(cohort.parent / "cohort" / "image.nii.gz")
    sealed = seal(cohort.parent, replace(case, modality=Modality.MR, image_sha256=changed))
    page = evaluate(sealed, tiny, {}, modalities=(Modality.MR,)).page.read_text()
    (png,) = re.findall(r"data:image/png;base64,([^\"]+)", page)
    with Image.open(io.BytesIO(base64.b64decode(png))) as picture:
        shown_yx = np.asarray(picture.convert("L"))
    assert shown_yx.shape == (16, 16)
    assert shown_yx[4:12, 4:12].mean() == pytest.approx(128, abs=5)


NO_TUMOUR = {"tumour": "", "tumour_sha256": ""}


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({**NO_TUMOUR, "tumour_state": LabelState.UNKNOWN}, {**NO_TUMOUR, "tumour_state": LabelState.ABSENT}),
        ({"patient_id": "p"}, {"patient_id": "q"}),
        ({"distances_known": True}, {"distances_known": False}),
    ],
)
def test_what_is_known_of_a_case_belongs_to_the_test_set(
    before: dict[str, Any], after: dict[str, Any], cohort: Path, tiny: Params
) -> None:
    """The files are the same, the scores are not."""
    (case,) = Cohort.load(cohort)
    sets = [
        evaluate(seal(cohort.parent, replace(case, **known)), tiny, {}).facts()[Report.TEST_SET]
        for known in (before, before, after)
    ]
    assert sets[0] == sets[1]
    assert sets[0] != sets[2]


def test_prediction_settings_belong_to_the_test_set_but_not_those_of_the_model(cohort: Path, tiny: Params) -> None:
    def test_set(params: dict[str, Any], **spec: Any) -> str:
        return evaluate(cohort, tiny, params, **spec).facts()[Report.TEST_SET]

    own: dict[str, Any] = {"tumour_threshold": None, "min_lesion_ml": None}
    default = test_set(own)
    assert test_set(own, tumour_threshold=0.7, min_lesion_ml=0.5) == default
    changes: list[dict[str, Any]] = [{"min_lesion_ml": 0.3}, {"tumour_threshold": 0.7}, {"overlap": 0.25}]
    changes += [{"variants": 2}, {"mirror_axes": ("x",)}]
    assert len({default, *(test_set(own | change) for change in changes)}) == 1 + len(changes)


def test_a_model_that_has_seen_a_test_patient_is_not_scored(cohort: Path, tiny: Params) -> None:
    write_model(cohort.parent / "model", tiny, patients=("p", "another"))
    message = r"^case a: the model has seen a label of test patient p \(1 of 1 test cases are affected\)"
    with pytest.raises(DataError, match=message):
        hepar.stages.evaluate.run(cohort, cohort.parent / "model", cohort.parent / "report", tiny.evaluate)
    assert not (cohort.parent / "report").exists()


def test_a_model_without_a_list_of_patients_is_scored(cohort: Path, tiny: Params) -> None:
    """Nobody knows whom an imported checkpoint has seen."""
    model = write_model(cohort.parent / "listed", tiny, patients=("p",)).folder
    with write_artifact(cohort.parent / "model", ModelFolder.KIND, {}) as folder:
        shutil.copytree(model, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns(ModelFolder.PATIENTS))
    hepar.stages.evaluate.run(cohort, cohort.parent / "model", cohort.parent / "report", tiny.evaluate)
    assert len(Report.load(cohort.parent / "report").cases()) == 1
