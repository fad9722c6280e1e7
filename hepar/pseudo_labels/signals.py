"""The quality signals of a pseudo-liver, each measured by one pure function.

Arrays are z, y, x on one grid in the canonical orientation: x grows to the patient's left.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import reduce
from itertools import combinations

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from hepar.evaluation.overlap import dice
from hepar.imaging.masks import Mask, bounding_box, voxel_mm3

SMOOTHING_MM = 5.0  # sigma of the Gaussian that a liver's surface is compared with
Float32Array = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Evidence:
    """What a pseudo-liver is measured on: bool or float32 arrays zyx of one shape.

    `probability_zyx` is the mean of all predictions, `votes_zyx` holds each prediction thresholded at 0.5, the one
    without augmentation first. `raw_zyx` is the mean thresholded at 0.5 and `liver_zyx` the post-processed mask.
    `tumour_zyx` is the manual tumour, None without one. `body_zyx` is False in air. `intensity_n` holds the
    preprocessed image's values inside the liver.
    """

    probability_zyx: Float32Array
    votes_zyx: Sequence[Mask]
    raw_zyx: Mask
    liver_zyx: Mask
    tumour_zyx: Mask | None
    body_zyx: Mask
    intensity_n: Float32Array
    spacing_zyx_mm: tuple[float, float, float]


@dataclass(frozen=True)
class Signals:
    """The quality signals of one pseudo-liver."""

    volume_ml: float
    component_share: float  # fraction of the raw prediction in the component that is the liver; 0 if empty
    hole_share: float  # fraction of the liver filled in by post-processing
    roughness: float  # surface area divided by that of the smoothed liver; 1 is smooth
    right_share: float  # fraction of the liver on the patient's right of the body's centre
    cut_share: float  # fraction of the liver on the border of the field of view
    agreement: float  # lowest Dice between the plain prediction and any other; 1 with a single prediction
    entropy: float  # of the mean probability, in bits per liver voxel
    tumour_inside: float  # fraction of the manual tumour inside the predicted liver; 1 without a tumour
    intensity_distance: float  # from the median intensity of manual livers, in standard deviations; 0 if unknown

    @classmethod
    def names(cls) -> tuple[str, ...]:
        return tuple(item.name for item in fields(cls))


def measure(evidence: Evidence, manual_intensity: tuple[float, float] | None) -> Signals:
    """All signals of one pseudo-liver.

    `manual_intensity` is the mean and standard deviation of the median intensity of manual livers, None if unknown.
    """
    plain_zyx = evidence.votes_zyx[0]
    return Signals(
        volume_ml=float(evidence.liver_zyx.sum() * voxel_mm3(evidence.spacing_zyx_mm) / 1000),
        component_share=component_share(evidence.raw_zyx, evidence.liver_zyx),
        hole_share=hole_share(evidence.raw_zyx, evidence.liver_zyx),
        roughness=roughness(evidence.liver_zyx, evidence.spacing_zyx_mm),
        right_share=right_share(evidence.liver_zyx, evidence.body_zyx),
        cut_share=cut_share(evidence.liver_zyx),
        agreement=min((agreement(plain_zyx, vote_zyx) for vote_zyx in evidence.votes_zyx[1:]), default=1.0),
        entropy=entropy(evidence.probability_zyx, evidence.liver_zyx),
        tumour_inside=tumour_inside(evidence.liver_zyx, evidence.tumour_zyx),
        intensity_distance=intensity_distance(evidence.intensity_n, manual_intensity),
    )


def component_share(raw_zyx: Mask, liver_zyx: Mask) -> float:
    """Fraction of the raw prediction that is the liver, a component with its holes filled; 0 if it is empty."""
    total = int(raw_zyx.sum())
    return float((raw_zyx & liver_zyx).sum() / total) if total else 0.0


def hole_share(raw_zyx: Mask, liver_zyx: Mask) -> float:
    """Fraction of the liver that is missing from the raw prediction; 0 if the liver is empty."""
    total = int(liver_zyx.sum())
    return float((liver_zyx & ~raw_zyx).sum() / total) if total else 0.0


def roughness(liver_zyx: Mask, spacing_zyx_mm: tuple[float, float, float]) -> float:
    """Surface area of the mask divided by that of the mask smoothed with a Gaussian of `SMOOTHING_MM`, at least 1.

    1 for an empty mask, infinity for a mask that smoothing removes.
    """
    if (box := bounding_box(liver_zyx)) is None:
        return 1.0
    margin = [int(np.ceil(3 * SMOOTHING_MM / mm)) for mm in spacing_zyx_mm]
    mask_zyx = np.pad(liver_zyx[box], [(m, m) for m in margin])
    sigma = [SMOOTHING_MM / mm for mm in spacing_zyx_mm]
    smooth_zyx = ndimage.gaussian_filter(mask_zyx.astype(np.float32), sigma, truncate=3.0) > 0.5
    smooth_mm2 = surface_mm2(smooth_zyx, spacing_zyx_mm)
    return max(1.0, surface_mm2(mask_zyx, spacing_zyx_mm) / smooth_mm2) if smooth_mm2 else float("inf")


def surface_mm2(mask_zyx: Mask, spacing_zyx_mm: tuple[float, float, float]) -> float:
    """Area of the voxel faces between mask and background, in mm²; outside the array is background. 0 if empty."""
    area_mm2 = 0.0
    for axis in range(3):
        face_mm2 = float(np.prod([mm for other, mm in enumerate(spacing_zyx_mm) if other != axis]))
        padded_zyx = np.pad(mask_zyx, [(1, 1) if other == axis else (0, 0) for other in range(3)])
        area_mm2 += face_mm2 * int(np.count_nonzero(np.diff(padded_zyx, axis=axis)))
    return area_mm2


def right_share(liver_zyx: Mask, body_zyx: Mask) -> float:
    """Fraction of the liver on the patient's right of the body's centre, or of the volume's if there is no body.

    0 if the liver is empty.
    """
    total = int(liver_zyx.sum())
    if total == 0:
        return 0.0
    body_x = body_zyx.sum(axis=(0, 1)).astype(float)
    if not body_x.any():
        body_x = np.ones(body_zyx.shape[2])
    centre = float(np.average(np.arange(body_zyx.shape[2]), weights=body_x))
    left_edge_x = np.arange(body_zyx.shape[2]) - 0.5
    right_of_centre_x = np.clip(centre - left_edge_x, 0, 1)  # fraction of each voxel column
    return float((liver_zyx.sum(axis=(0, 1)) * right_of_centre_x).sum() / total)


def cut_share(liver_zyx: Mask) -> float:
    """Fraction of the liver in the outermost voxel layer of the volume; 0 if the liver is empty."""
    total = int(liver_zyx.sum())
    if total == 0:
        return 0.0
    inner_zyx = liver_zyx[1:-1, 1:-1, 1:-1]
    return (total - int(inner_zyx.sum())) / total


def agreement(reference_zyx: Mask, prediction_zyx: Mask) -> float:
    """Dice of two masks, and 0 if both are empty, where `evaluation.overlap.dice` is None: neither shows a liver."""
    return dice(reference_zyx, prediction_zyx) or 0.0


def mean_pairwise_dice(votes_zyx: Sequence[Mask]) -> float:
    """Mean of `agreement` over all pairs of predictions; 1 with a single prediction.

    The usual estimate of the quality of an ensemble's mask (Roy et al., NeuroImage 2019; Zenk et al., Medical Image
    Analysis 2025); no gate uses it.
    """
    if len(votes_zyx) == 1:
        return 1.0
    box = bounding_box(reduce(np.logical_or, votes_zyx)) or ()  # for speed: outside, all are empty
    return float(np.mean([agreement(one[box], other[box]) for one, other in combinations(votes_zyx, 2)]))


def entropy(probability_zyx: Float32Array, liver_zyx: Mask) -> float:
    """Binary entropy of the probability summed over all voxels, in bits per liver voxel.

    For an empty liver 0 if every probability is 0 or 1, infinity otherwise.
    """
    uncertain_n = probability_zyx[(probability_zyx > 0) & (probability_zyx < 1)].astype(np.float64)
    bits = float(-(uncertain_n * np.log2(uncertain_n) + (1 - uncertain_n) * np.log2(1 - uncertain_n)).sum())
    total = int(liver_zyx.sum())
    return bits / total if total else (float("inf") if bits else 0.0)


def tumour_inside(liver_zyx: Mask, tumour_zyx: Mask | None) -> float:
    """Fraction of the manual tumour inside the liver; 1 if there is no tumour or its mask is empty."""
    if tumour_zyx is None or not tumour_zyx.any():
        return 1.0
    return float(liver_zyx[tumour_zyx].mean())


def intensity_distance(intensity_n: Float32Array, manual: tuple[float, float] | None) -> float:
    """Distance of the median from that of manual livers, in standard deviations; 0 without values or if unknown."""
    if manual is None or intensity_n.size == 0:
        return 0.0
    mean, deviation = manual
    return abs(float(np.median(intensity_n)) - mean) / deviation
