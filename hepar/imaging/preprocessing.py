"""From a canonical volume to the array that a network reads: plan, resampling, normalisation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk
from pydantic import BaseModel, ConfigDict

from hepar.cases import Case, Modality, Split
from hepar.errors import DataError
from hepar.imaging.masks import body_mask
from hepar.imaging.volumes import Geometry, resample, to_array
from hepar.params import Interval, PreprocessingParams, SpacingZYX

CT_GUESS_HU = -20.0  # MR magnitudes are not negative; in a CT at least a few voxels in a hundred are fat or air


class PreprocessingPlan(BaseModel):
    """How every volume is brought before the network. Stored in each model, so that predictions prepare alike."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    spacing_zyx_mm: SpacingZYX
    window_hu: Interval
    mr_percentiles: Interval


def make_preprocessing_plan(cases: Sequence[Case], params: PreprocessingParams) -> PreprocessingPlan:
    """The plan for a cohort: the median spacing of its training and validation cases where the parameters name none."""
    spacing = params.spacing_zyx_mm
    if spacing is None:
        z, y, x = np.median([case.spacing_mm for case in cases if case.split != Split.TEST], axis=0).round(2).tolist()
        spacing = (z, y, x)
    return PreprocessingPlan(spacing_zyx_mm=spacing, window_hu=params.window_hu, mr_percentiles=params.mr_percentiles)


def preprocess_image(
    image: sitk.Image, modality: Modality, plan: PreprocessingPlan
) -> tuple[npt.NDArray[np.float32], Geometry]:
    """A canonical volume on the plan's spacing, normalised: array zyx and its grid."""
    geometry = Geometry.of(image).with_spacing(plan.spacing_zyx_mm)
    array_zyx = to_array(resample(image, geometry)).astype(np.float32)
    return normalise(array_zyx, modality, plan), geometry


def normalise(
    array_zyx: npt.NDArray[np.float32], modality: Modality, plan: PreprocessingPlan
) -> npt.NDArray[np.float32]:
    """CT: the HU window to -1..1. MR: clip at percentiles inside the body, then z-score there.

    An MR volume without any contrast becomes all zero.
    """
    if modality == Modality.CT:
        low, high = plan.window_hu
        return ((np.clip(array_zyx, low, high) - low) * (2 / (high - low)) - 1).astype(np.float32)
    inside = array_zyx[body_mask(array_zyx, modality)]
    if inside.size == 0:
        return np.zeros_like(array_zyx)
    low, high = np.percentile(inside, plan.mr_percentiles)
    clipped = np.clip(inside, low, high)
    spread = float(clipped.std())
    if spread == 0:
        return np.zeros_like(array_zyx)
    return np.asarray((np.clip(array_zyx, low, high) - clipped.mean()) / spread, np.float32)


def guess_modality(image: sitk.Image) -> Modality:
    """CT or MR by the sign of the voxels, for a scan whose modality nobody declared."""
    array: npt.NDArray[Any] = to_array(image)
    if array.size == 0:
        raise DataError("the image has no voxels")
    return Modality.CT if float(np.mean(array < CT_GUESS_HU)) > 0.02 else Modality.MR
