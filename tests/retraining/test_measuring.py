"""What drift is measured in: spacing, lesions and livers of a case made of boxes, whose numbers are known by hand."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from toy_case import volume, write_case

from hepar.cases import Case, Cohort, LabelState, Modality, Split
from hepar.evaluation.bootstrap import Estimate
from hepar.imaging.preprocessing import make_preprocessing_plan
from hepar.imaging.volumes import write_image
from hepar.params import Params, PreprocessingParams, RetrainParams
from hepar.retraining.case_changes import CaseChanges
from hepar.retraining.drift import Drift
from hepar.retraining.folder import RetrainingFolder
from hepar.retraining.measuring import IN_PLANE, INTENSITY, LESIONS, MEASURES, SLICE, DriftMeter, measure_case
from hepar.runtime.progress import stage

TUMOUR_MM = (6 * 2**3 * 2**3 / math.pi) ** (1 / 3)  # the diameter of a sphere of 2³ voxels of 2³ mm³


@pytest.fixture
def preprocessing(tiny: Params) -> PreprocessingParams:
    return tiny.preprocessing.model_copy(update={"window_hu": (0.0, 120.0)})  # the liver, at 60, is its middle


@pytest.fixture
def params(tiny: Params) -> RetrainParams:
    return tiny.retrain.model_copy(update={"min_drift_patients": 3})


@pytest.fixture
def folder(tmp_path: Path) -> RetrainingFolder:
    return RetrainingFolder(tmp_path)


def measured(case: Case, folder: RetrainingFolder, preprocessing: PreprocessingParams) -> dict[str, list[float]]:
    plan = make_preprocessing_plan([case], preprocessing)
    return measure_case(Cohort(folder.cohort, (case,)), case, plan)


def test_a_case_is_measured(case: Case, folder: RetrainingFolder, preprocessing: PreprocessingParams) -> None:
    """Slices of 4 mm in the record of the case, whatever its files say: the axes must not be mixed up."""
    found = measured(replace(case, spacing_mm=(4.0, 2.0, 2.0)), folder, preprocessing)
    assert set(found) == set(MEASURES)
    assert (found[SLICE], found[IN_PLANE]) == ([2.0], [1.0])  # logarithms to base 2
    assert found[LESIONS] == pytest.approx([math.log2(TUMOUR_MM)])
    assert found[INTENSITY] == pytest.approx([0.0])


def test_the_intensity_is_the_median_in_the_liver_alone(
    case: Case, folder: RetrainingFolder, preprocessing: PreprocessingParams
) -> None:
    """Around the liver, and in a minority of its voxels, the scan is as bright as the window ends."""
    image_zyx = np.full((16, 16, 16), 120, np.int16)
    image_zyx[4:12, 4:12, 4:12] = 60
    image_zyx[4:12, 4:12, 4:7] = 120
    write_image(volume(image_zyx), folder.cohort / case.image)
    assert measured(case, folder, preprocessing)[INTENSITY] == pytest.approx([0.0])
    image_zyx[4:12, 4:12, 4:9] = 120
    write_image(volume(image_zyx), folder.cohort / case.image)
    brighter = measured(case, folder, preprocessing)[INTENSITY]
    assert brighter[0] > 0.5


@pytest.mark.parametrize("state", [LabelState.UNKNOWN, LabelState.ABSENT])
def test_what_is_not_drawn_is_not_measured(
    case: Case, folder: RetrainingFolder, preprocessing: PreprocessingParams, state: LabelState
) -> None:
    found = measured(replace(case, tumour="", tumour_state=state), folder, preprocessing)
    assert (found[LESIONS], len(found[INTENSITY])) == ([], 1)
    found = measured(replace(case, liver="", liver_state=state), folder, preprocessing)
    assert (found[INTENSITY], len(found[LESIONS])) == ([], 1)


def test_nominal_spacing_gives_no_lengths(
    case: Case, folder: RetrainingFolder, preprocessing: PreprocessingParams
) -> None:
    found = measured(replace(case, distances_known=False), folder, preprocessing)
    assert (found[SLICE], found[IN_PLANE], found[LESIONS]) == ([], [], [])
    assert found[INTENSITY] == pytest.approx([0.0])


def copies(case: Case, prefix: str, count: int, **changed: object) -> tuple[Case, ...]:
    """Cases of patients of their own that have the files of a case."""
    return tuple(
        replace(case, case_id=f"{prefix}{n}", patient_id=f"{prefix}{n}", image_sha256=f"{prefix}{n}", **changed)  # type: ignore[arg-type]
        for n in range(count)
    )


def drifts(
    changes: CaseChanges, folder: RetrainingFolder, preprocessing: PreprocessingParams, params: RetrainParams
) -> dict[str, Drift]:
    cohort = Cohort(folder.cohort, (*changes.new, *changes.known))
    with stage("retrain"):
        found = DriftMeter(cohort, preprocessing, folder).drifts(changes, params)
    assert {drift.modality for drift in found} <= {"CT"}
    return {drift.measure: drift for drift in found}


def test_new_patients_are_compared_with_known_ones(
    case: Case, folder: RetrainingFolder, preprocessing: PreprocessingParams, params: RetrainParams
) -> None:
    """Two points are 2 apart; what is equal is not. Test patients, and a modality with too few, are left out."""
    new = copies(case, "n", 3, spacing_mm=(4.0, 2.0, 2.0))
    few = copies(case, "m", 2, modality=Modality.MR)
    known = (*copies(case, "k", 4), *copies(case, "t", 5, split=Split.TEST, spacing_mm=(9.0, 9.0, 9.0)))
    found = drifts(CaseChanges(new=(*new, *few), known=known), folder, preprocessing, params)
    assert set(found) == set(MEASURES)
    assert found[SLICE].estimate.value == pytest.approx(2.0)
    assert [found[name].estimate.value for name in (IN_PLANE, INTENSITY, LESIONS)] == [0.0, 0.0, 0.0]
    assert {(drift.new_patients, drift.known_patients) for drift in found.values()} == {(3, 4)}


def test_scans_of_one_patient_do_not_count_as_patients(
    case: Case, folder: RetrainingFolder, preprocessing: PreprocessingParams, params: RetrainParams
) -> None:
    known, same = copies(case, "k", 3), tuple(replace(one, patient_id="p") for one in copies(case, "n", 3))
    assert drifts(CaseChanges(new=same, known=known), folder, preprocessing, params) == {}
    assert drifts(CaseChanges(new=known, known=same), folder, preprocessing, params) == {}


def test_a_case_is_measured_once_for_the_same_files_and_preprocessing(
    case: Case, folder: RetrainingFolder, preprocessing: PreprocessingParams, params: RetrainParams
) -> None:
    changes = CaseChanges(new=copies(case, "n", 3), known=copies(case, "k", 3))
    first = drifts(changes, folder, preprocessing, params)
    for path in folder.cohort.iterdir():
        path.unlink()
    assert drifts(changes, folder, preprocessing, params) == first
    other = preprocessing.model_copy(update={"spacing_zyx_mm": (1.0, 1.0, 1.0)})  # nothing is resampled
    assert drifts(changes, folder, other, params) == first
    write_case(folder.folder)
    brighter = preprocessing.model_copy(update={"window_hu": (0.0, 60.0)})
    kept = len(folder.measurements())
    drifts(changes, folder, brighter, params)
    assert len(folder.measurements()) == 2 * kept == 12


@pytest.mark.parametrize(
    "changed",
    [
        {"liver_sha256": "redrawn"},
        {"tumour_sha256": "redrawn"},
        {"modality": Modality.MR},
        {"distances_known": False},
        {"tumour": "", "tumour_state": LabelState.ABSENT},
    ],
)
def test_a_case_that_is_another_is_measured_anew(
    case: Case,
    folder: RetrainingFolder,
    preprocessing: PreprocessingParams,
    params: RetrainParams,
    changed: dict[str, object],
) -> None:
    for now in ({}, changed):
        new, known = (copies(case, prefix, 3, **now) for prefix in "nk")
        cohort = Cohort(folder.cohort, (*new, *known))
        with stage("retrain"):
            DriftMeter(cohort, preprocessing, folder).drifts(CaseChanges(new=new, known=known), params)
    assert len(folder.measurements()) == 2 * 6


def test_a_measure_that_no_case_has_is_undefined(
    case: Case, folder: RetrainingFolder, preprocessing: PreprocessingParams, params: RetrainParams
) -> None:
    bare = replace(case, tumour="", tumour_state=LabelState.UNKNOWN)
    changes = CaseChanges(new=copies(bare, "n", 3), known=copies(bare, "k", 3))
    found = drifts(changes, folder, preprocessing, params)[LESIONS]
    assert (found.estimate, found.new_patients, found.known_patients) == (Estimate(None, None, 0, 0), 0, 0)
