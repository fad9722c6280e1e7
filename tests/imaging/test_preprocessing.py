"""Preprocessing: intensities worked out by hand, and the plan of a cohort."""

from __future__ import annotations

from dataclasses import replace
from statistics import NormalDist

import numpy as np
import numpy.typing as npt
import pytest
import SimpleITK as sitk

from hepar.cases import Case, LabelState, Modality, Split
from hepar.imaging.intensities import MR_SCALES
from hepar.imaging.preprocessing import (
    PreprocessingPlan,
    make_preprocessing_plan,
    normalise,
    preprocess_image,
)
from hepar.params import MRScale, PreprocessingParams

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
    """The values, next to as many voxels of air."""
    return np.concatenate([np.zeros_like(values), values], axis=2)


def test_the_ct_window_maps_to_minus_one_to_one() -> None:
    normalised_zyx = normalise(line(-1000, -150, -50, 50, 150, 250, 3000), Modality.CT, PLAN)
    assert normalised_zyx.ravel().tolist() == pytest.approx([-1, -1, -0.5, 0, 0.5, 1, 1])
    assert normalised_zyx.dtype == np.float32


def test_the_body_in_mr_has_mean_zero_and_standard_deviation_one() -> None:
    body_zyx = line(*np.linspace(100, 300, 101))
    normalised_zyx = normalise(in_body(body_zyx), Modality.MR, WHOLE_RANGE)
    assert normalised_zyx[..., 101:].mean() == pytest.approx(0, abs=1e-5)
    assert normalised_zyx[..., 101:].std() == pytest.approx(1, abs=1e-5)
    assert normalised_zyx.dtype == np.float32


def test_air_in_mr_is_ignored_and_clipped_to_the_darkest_tissue() -> None:
    body_zyx = line(100, 300)  # mean 200, deviation 100
    assert normalise(in_body(body_zyx), Modality.MR, WHOLE_RANGE).ravel().tolist() == pytest.approx([-1, -1, -1, 1])


def test_mr_is_clipped_at_percentiles_of_the_body() -> None:
    # the 10th and 90th percentile of 101 values evenly spaced from 100 to 300 are 120 and 280
    plan = PLAN.model_copy(update={"mr_percentiles": (10.0, 90.0)})
    normalised_zyx = normalise(in_body(line(*np.linspace(100, 300, 101))), Modality.MR, plan)[..., 101:].ravel()
    assert (normalised_zyx[:11] == normalised_zyx[0]).all()
    assert (normalised_zyx[-11:] == normalised_zyx[-1]).all()
    assert normalised_zyx[11] > normalised_zyx[0]
    assert (normalised_zyx[10] + normalised_zyx[90]) == pytest.approx(0, abs=1e-5)  # symmetric about the mean


def body_and_bowel(bowel: float = 0.0) -> npt.NDArray[np.float32]:
    """Air, a body from 100 to 300 of 1000 voxels in ascending order, and bowel brighter by up to `bowel`."""
    body_n = np.linspace(100, 300, 1000)
    body_n[-80:] += np.linspace(0, bowel, 80)
    return in_body(line(*body_n))


@pytest.mark.parametrize("scale", MR_SCALES)
def test_mr_normalisation_is_invariant_to_scale_and_shift(scale: MRScale) -> None:
    plan, image_zyx = PLAN.model_copy(update={"mr_scale": scale}), body_and_bowel(100)
    normalised_zyx = normalise(image_zyx, Modality.MR, plan)
    for other_zyx in (7 * image_zyx, image_zyx - 1000, (image_zyx - image_zyx.mean()) / image_zyx.std()):
        assert normalise(other_zyx, Modality.MR, plan) == pytest.approx(normalised_zyx, abs=1e-3)


@pytest.mark.parametrize("scale", MR_SCALES)
def test_mr_normalisation_keeps_the_order_of_intensities(scale: MRScale) -> None:
    plan = PLAN.model_copy(update={"mr_scale": scale})
    body_n = normalise(body_and_bowel(100), Modality.MR, plan)[0, 0, 1000:]
    assert (np.diff(body_n) >= 0).all()
    assert (np.diff(body_n[20:980]) > 0).all()  # between the percentiles
    assert np.ptp(body_n) < 10


@pytest.mark.parametrize("scale", MR_SCALES)
@pytest.mark.parametrize("value", [0.0, 5.0])
def test_mr_without_contrast_becomes_zero(value: float, scale: MRScale) -> None:
    plan = PLAN.model_copy(update={"mr_scale": scale})
    assert not normalise(np.full((2, 2, 2), value, np.float32), Modality.MR, plan).any()


@pytest.mark.parametrize("scale", MR_SCALES)
def test_a_body_of_one_value_and_some_specks_stays_finite(scale: MRScale) -> None:
    body_n = np.full(1000, 200.0)
    body_n[:50], body_n[-50:] = 100.0, 300.0  # the quartiles coincide
    plan = PLAN.model_copy(update={"mr_scale": scale})
    normalised_n = normalise(in_body(line(*body_n)), Modality.MR, plan)[0, 0, 1000:]
    assert np.isfinite(normalised_n).all()
    assert np.abs(normalised_n).max() <= 10
    assert normalised_n[0] < normalised_n[500] < normalised_n[-1]


def test_quartiles_have_median_zero_and_the_spread_of_a_normal_distribution() -> None:
    plan = WHOLE_RANGE.model_copy(update={"mr_scale": "quartiles"})
    body_n = np.random.default_rng(1).normal(1000, 50, 20001)
    body_n[0] = 5000.0
    normalised_n = normalise(in_body(line(*body_n)), Modality.MR, plan)[0, 0, 20001:]
    assert np.median(normalised_n) == pytest.approx(0, abs=1e-4)
    assert normalised_n[1:].std() == pytest.approx(1, abs=0.03)
    assert normalised_n[0] == 5  # clipped


def test_quantiles_become_those_of_a_normal_distribution() -> None:
    plan = PLAN.model_copy(update={"mr_scale": "quantiles"})
    body_n = np.random.default_rng(1).exponential(100, 20001) + 200  # far from normal
    normalised_n = normalise(in_body(line(*body_n)), Modality.MR, plan)[0, 0, 20001:]
    for share in (0.212, 0.5, 0.788):  # landmarks, at equal distances from 2 to 98 %
        assert np.quantile(normalised_n, share) == pytest.approx(NormalDist().inv_cdf(share), abs=0.01)
    assert normalised_n.min() == pytest.approx(NormalDist().inv_cdf(0.02), abs=1e-3)
    assert normalised_n.max() == pytest.approx(NormalDist().inv_cdf(0.98), abs=1e-3)


@pytest.mark.parametrize("scale", [name for name in MR_SCALES if name != "linear"])
def test_bright_bowel_moves_the_liver_less_than_under_the_linear_scale(scale: MRScale) -> None:
    def shift_of_liver(name: MRScale) -> float:
        """By how much a voxel of 220 changes if 8 % of the body become up to three times as bright."""
        plan = PLAN.model_copy(update={"mr_scale": name})
        plain, bright = (normalise(body_and_bowel(bowel), Modality.MR, plan) for bowel in (0, 600))
        return abs(float(bright[0, 0, 1600] - plain[0, 0, 1600]))

    assert shift_of_liver("linear") > 0.3
    assert shift_of_liver(scale) < 0.2 * shift_of_liver("linear")


def test_a_preprocessed_image_has_the_spacing_of_the_plan() -> None:
    image = sitk.Image(6, 6, 8, sitk.sitkInt16) + 50  # 8 slices of 1 mm
    image_zyx, geometry = preprocess_image(image, Modality.CT, PLAN)
    assert image_zyx.shape == geometry.size_zyx == (4, 6, 6)
    assert geometry.spacing_zyx_mm == (2.0, 1.0, 1.0)
    assert image_zyx == pytest.approx(np.zeros((4, 6, 6)), abs=1e-6)  # 50 HU is the middle of the window


@pytest.mark.parametrize("scale", MR_SCALES)
def test_the_plan_takes_spacing_and_scale_of_the_params(scale: MRScale) -> None:
    values = {"spacing_zyx_mm": (4.0, 3.5, 3.5), "window_hu": (-1.0, 1.0), "mr_percentiles": (1.0, 99.0)}
    params = PreprocessingParams.model_validate(values | {"mr_scale": scale})
    plan = make_preprocessing_plan([CASE], params)
    assert plan == PreprocessingPlan.model_validate(values | {"mr_scale": scale})
    assert plan.mr_scale == scale


def test_without_a_spacing_in_the_params_the_plan_takes_the_median_of_each_axis() -> None:
    params = PreprocessingParams(
        spacing_zyx_mm=None, window_hu=(-150.0, 250.0), mr_percentiles=(2.0, 98.0), mr_scale="linear"
    )
    spacings = [(5.0, 0.7, 0.8), (1.0, 0.9, 0.6), (2.5, 0.8, 0.7)]
    cases = [replace(CASE, spacing_mm=spacing, split=Split.TRAIN) for spacing in spacings]
    unseen = [replace(CASE, spacing_mm=(9.0, 9.0, 9.0), split=Split.TEST)] * 5
    plan = make_preprocessing_plan([*cases, *unseen], params)
    assert plan.spacing_zyx_mm == (2.5, 0.8, 0.7)
