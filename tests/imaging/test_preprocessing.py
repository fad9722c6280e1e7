"""Preparation: intensities by hand, and the plan of a cohort."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
import SimpleITK as sitk

from hepar.cases import Case, LabelState, Modality, Split
from hepar.errors import DataError
from hepar.imaging.preprocessing import (
    PreprocessingPlan,
    guess_modality,
    make_preprocessing_plan,
    normalise,
    preprocess_image,
)
from hepar.imaging.volumes import to_array
from hepar.params import PreprocessingParams

PLAN = PreprocessingPlan(spacing_zyx_mm=(2.0, 1.0, 1.0), window_hu=(-150.0, 250.0), mr_percentiles=(2.0, 98.0))
WHOLE_RANGE = PLAN.model_copy(update={"mr_percentiles": (0.0, 100.0)})
CASE = Case(
    case_id="ct-1",
    patient_id="p1",
    source="table",
    modality=Modality.CT,
    sequence="",
    image="",
    liver="",
    tumour="",
    liver_state=LabelState.UNKNOWN,
    tumour_state=LabelState.UNKNOWN,
    split=Split.TRAIN,
    spacing_mm=(5.0, 0.7, 0.7),
    size=(40, 512, 512),
)


def line(*values: float) -> npt.NDArray[np.float32]:
    return np.array(values, np.float32).reshape(1, 1, -1)


def in_body(values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Values beside as many voxels of air."""
    return np.concatenate([np.zeros_like(values), values], axis=2)


def test_the_window_of_a_ct_becomes_minus_one_to_one() -> None:
    out = normalise(line(-1000, -150, -50, 50, 150, 250, 3000), Modality.CT, PLAN)
    assert out.ravel().tolist() == pytest.approx([-1, -1, -0.5, 0, 0.5, 1, 1])
    assert out.dtype == np.float32


def test_the_body_of_an_mr_has_mean_zero_and_deviation_one() -> None:
    body = line(*np.linspace(100, 300, 101))
    out = normalise(in_body(body), Modality.MR, WHOLE_RANGE)
    assert out[..., 101:].mean() == pytest.approx(0, abs=1e-5)
    assert out[..., 101:].std() == pytest.approx(1, abs=1e-5)
    assert out.dtype == np.float32


def test_air_neither_counts_nor_falls_below_the_darkest_tissue_of_an_mr() -> None:
    body = line(100, 300)  # mean 200, deviation 100
    assert normalise(in_body(body), Modality.MR, WHOLE_RANGE).ravel().tolist() == pytest.approx([-1, -1, -1, 1])


def test_an_mr_is_clipped_at_the_percentiles_of_its_body() -> None:
    # of 101 even values from 100 to 300 the percentiles 10 and 90 are 120 and 280
    plan = PLAN.model_copy(update={"mr_percentiles": (10.0, 90.0)})
    out = normalise(in_body(line(*np.linspace(100, 300, 101))), Modality.MR, plan)[..., 101:].ravel()
    assert (out[:11] == out[0]).all()
    assert (out[-11:] == out[-1]).all()
    assert out[11] > out[0]
    assert (out[10] + out[90]) == pytest.approx(0, abs=1e-5)  # symmetric about the mean


def test_the_scale_of_an_mr_does_not_matter() -> None:
    volume = in_body(line(*np.linspace(100, 300, 101)))
    assert normalise(volume, Modality.MR, PLAN) == pytest.approx(normalise(7 * volume, Modality.MR, PLAN), abs=1e-4)


@pytest.mark.parametrize("value", [0.0, 5.0])
def test_an_mr_without_contrast_becomes_zero(value: float) -> None:
    assert not normalise(np.full((2, 2, 2), value, np.float32), Modality.MR, PLAN).any()


def test_a_prepared_image_lies_on_the_plans_spacing() -> None:
    image = sitk.Image(6, 6, 8, sitk.sitkInt16) + 50  # 8 slices of 1 mm
    array, geometry = preprocess_image(image, Modality.CT, PLAN)
    assert array.shape == geometry.size_zyx == (4, 6, 6)
    assert geometry.spacing_zyx_mm == (2.0, 1.0, 1.0)
    assert array == pytest.approx(np.zeros((4, 6, 6)), abs=1e-6)  # 50 HU is the middle of the window


def test_the_plan_takes_the_named_spacing_whatever_the_cohort() -> None:
    params = PreprocessingParams(spacing_zyx_mm=(4.0, 3.5, 3.5), window_hu=(-1.0, 1.0), mr_percentiles=(1.0, 99.0))
    plan = make_preprocessing_plan([CASE], params)
    assert plan == PreprocessingPlan(spacing_zyx_mm=(4.0, 3.5, 3.5), window_hu=(-1.0, 1.0), mr_percentiles=(1.0, 99.0))


def test_the_plan_takes_the_median_spacing_of_each_axis_where_none_is_named() -> None:
    params = PreprocessingParams(spacing_zyx_mm=None, window_hu=(-150.0, 250.0), mr_percentiles=(2.0, 98.0))
    spacings = [(5.0, 0.7, 0.8), (1.0, 0.9, 0.6), (2.5, 0.8, 0.7)]
    cases = [replace(CASE, spacing_mm=spacing, split=Split.TRAIN) for spacing in spacings]
    unseen = [replace(CASE, spacing_mm=(9.0, 9.0, 9.0), split=Split.TEST)] * 5
    plan = make_preprocessing_plan([*cases, *unseen], params)
    assert plan.spacing_zyx_mm == (2.5, 0.8, 0.7)


def test_a_scan_with_air_in_hu_is_a_ct_and_one_without_negative_voxels_an_mr() -> None:
    z, _, x = np.indices((8, 8, 8))
    ct = np.where(x < 2, -1000, 50).astype(np.int16)
    mr = (10 * z + x).astype(np.float32)
    assert guess_modality(sitk.GetImageFromArray(ct)) == Modality.CT
    assert guess_modality(sitk.GetImageFromArray(mr)) == Modality.MR


def test_the_modality_of_no_voxels_cannot_be_told() -> None:
    empty = sitk.Image()
    assert to_array(empty).size == 0
    with pytest.raises(DataError, match="no voxels"):
        guess_modality(empty)
