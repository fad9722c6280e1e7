"""Preprocessing of a canonical volume for a network: resampling and normalisation by a plan."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk
from pydantic import BaseModel, ConfigDict

from hepar.cases import Case, Modality, Split
from hepar.imaging.intensities import scale_ct, scale_mr
from hepar.imaging.volumes import Geometry, resample, to_array
from hepar.params import Interval, MRScale, PreprocessingParams, SpacingZYX


class PreprocessingPlan(BaseModel):
    """How volumes are preprocessed. Every model stores its plan, so that prediction preprocesses as training did."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    spacing_zyx_mm: SpacingZYX
    window_hu: Interval
    mr_percentiles: Interval
    mr_scale: MRScale = "linear"


def make_preprocessing_plan(cases: Sequence[Case], params: PreprocessingParams) -> PreprocessingPlan:
    """The plan of a cohort. Without a spacing in the params it is the median of the training and validation cases."""
    spacing = params.spacing_zyx_mm
    if spacing is None:
        z, y, x = np.median([case.spacing_mm for case in cases if case.split != Split.TEST], axis=0).round(2).tolist()
        spacing = (z, y, x)
    return PreprocessingPlan(
        spacing_zyx_mm=spacing,
        window_hu=params.window_hu,
        mr_percentiles=params.mr_percentiles,
        mr_scale=params.mr_scale,
    )


def preprocess_image(
    image: sitk.Image, modality: Modality, plan: PreprocessingPlan
) -> tuple[npt.NDArray[np.float32], Geometry]:
    """Resample a canonical volume to the plan's spacing and normalise it; returns float32 zyx and its grid."""
    geometry = Geometry.of(image).with_spacing(plan.spacing_zyx_mm)
    image_zyx = to_array(resample(image, geometry)).astype(np.float32)
    return normalise(image_zyx, modality, plan), geometry


def normalise(
    image_zyx: npt.NDArray[np.float32], modality: Modality, plan: PreprocessingPlan
) -> npt.NDArray[np.float32]:
    """Normalise a volume zyx, as float32: CT by `scale_ct`, a whole MR by `scale_mr`."""
    if modality == Modality.CT:
        return scale_ct(image_zyx, plan.window_hu)
    return scale_mr(image_zyx, plan.mr_percentiles, plan.mr_scale)
