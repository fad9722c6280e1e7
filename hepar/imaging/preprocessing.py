"""Preprocessing of a canonical volume for a network: resampling and normalisation by a plan."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk
from pydantic import BaseModel, ConfigDict
from scipy.special import ndtri

from hepar.cases import Case, Modality, Split
from hepar.imaging.masks import body_mask
from hepar.imaging.volumes import Geometry, resample, to_array
from hepar.params import Interval, MRScale, PreprocessingParams, SpacingZYX

CT_RANGE = (-1.0, 1.0)  # of a preprocessed CT
QUARTILE_LIMITS = (-3.0, 5.0)  # of an MR scaled by quartiles
LANDMARKS = 11  # of the scale by quantiles
Floats = npt.NDArray[np.floating]


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
    """Normalise a volume zyx, as float32.

    CT: the HU window becomes -1 to 1. MR: clipped at percentiles of the body, and scaled by `MR_SCALES`; a volume
    without contrast becomes 0.
    """
    if modality == Modality.CT:
        low, high = plan.window_hu
        return ((np.clip(image_zyx, low, high) - low) * (2 / (high - low)) - 1).astype(np.float32)
    body_n = image_zyx[body_mask(image_zyx, modality)]
    if body_n.size == 0:
        return np.zeros_like(image_zyx)
    low, high = np.percentile(body_n, plan.mr_percentiles)
    if low == high:
        return np.zeros_like(image_zyx)
    scaled_zyx = MR_SCALES[plan.mr_scale](
        np.clip(image_zyx, low, high), np.clip(body_n, low, high), plan.mr_percentiles
    )
    return np.asarray(scaled_zyx, np.float32)


def _scale_linearly(clipped_zyx: Floats, body_n: Floats, percentiles: Interval) -> Floats:
    """Mean 0 and SD 1 inside the body."""
    return np.asarray((clipped_zyx - body_n.mean()) / body_n.std())


def _scale_by_quartiles(clipped_zyx: Floats, body_n: Floats, percentiles: Interval) -> Floats:
    """Median 0, and the quartiles of the body as far apart as a normal distribution's of SD 1.

    Bright bowel and fluid do not move the quartiles. What lies beyond `QUARTILE_LIMITS` is clipped.
    """
    low, median, high = np.percentile(body_n, (25, 50, 75))
    scale = max(float(high - low) / 1.349, 1e-6 * float(body_n.max() - body_n.min()))
    return np.asarray(np.clip((clipped_zyx - median) / scale, *QUARTILE_LIMITS))


def _scale_to_normal(clipped_zyx: Floats, body_n: Floats, percentiles: Interval) -> Floats:
    """The body's quantiles become those of a normal distribution, linearly between `LANDMARKS` of them.

    After Nyúl and Udupa, "On standardizing the MR image intensity scale", MRM 1999, with a normal distribution as the
    standard scale.
    """
    shares = np.linspace(percentiles[0], percentiles[1], LANDMARKS) / 100
    landmarks, places = np.unique(np.quantile(body_n, shares), return_index=True)
    return np.asarray(np.interp(clipped_zyx, landmarks, ndtri(np.clip(shares, 0.001, 0.999))[places]))


MR_SCALES: dict[MRScale, Callable[[Floats, Floats, Interval], Floats]] = {
    "linear": _scale_linearly,
    "quartiles": _scale_by_quartiles,
    "quantiles": _scale_to_normal,
}
