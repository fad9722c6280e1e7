"""Rigid registration of two livers by their masks."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import SimpleITK as sitk

from hepar.errors import DataError
from hepar.evaluation.overlap import dice
from hepar.imaging.volumes import to_array

GRID_MM = 4.0  # of the distance maps that are registered: half of it is finer than lesions are matched
MARGIN_MM = 40.0  # around both livers
CLIPPED_MM = 30.0  # distances beyond say nothing about the surface
ITERATIONS = 200
MIN_LIVER_DICE = 0.8  # of aligned livers; below it, they may be of two patients, or resected in between


@dataclass(frozen=True)
class Alignment:
    """The rigid transform from points of the follow-up to points of the baseline, and how well the livers overlap."""

    transform: sitk.Transform
    liver_dice: float
    rotation_degrees: float
    shift_mm: float

    @property
    def is_doubtful(self) -> bool:
        """Whether the livers overlap so little that lesions may be matched wrongly."""
        return self.liver_dice < MIN_LIVER_DICE

    def to_follow_up(self, labels: sitk.Image, grid: sitk.Image) -> sitk.Image:
        """A label map of the baseline on the grid of the follow-up: the nearest label of each voxel, 0 outside."""
        return sitk.Resample(labels, grid, self.transform, sitk.sitkNearestNeighbor, 0, labels.GetPixelID())


def align_livers(baseline: sitk.Image, follow_up: sitk.Image) -> Alignment:
    """Register the liver masks of two scans, uint8, of any grids: rotation and shift, no deformation.

    The mean squared difference of signed distance maps is minimised, from livers whose centroids lie on each other.
    Raises DataError if a mask is empty or the registration fails.
    """
    for name, mask in (("baseline", baseline), ("follow-up", follow_up)):
        if not to_array(mask).any():
            raise DataError(f"the {name} has no liver, so the livers cannot be aligned")
    fixed, moving = _distance_map(follow_up), _distance_map(baseline)
    initial = sitk.Euler3DTransform()
    fixed_mm, moving_mm = _centroid_mm(follow_up), _centroid_mm(baseline)
    initial.SetCenter(fixed_mm)
    initial.SetTranslation((np.array(moving_mm) - fixed_mm).tolist())
    method = sitk.ImageRegistrationMethod()
    method.SetMetricAsMeanSquares()
    method.SetInterpolator(sitk.sitkLinear)
    method.SetOptimizerAsRegularStepGradientDescent(2.0, 0.01, ITERATIONS)
    method.SetOptimizerScalesFromPhysicalShift()
    method.SetInitialTransform(initial, inPlace=False)
    try:
        found = method.Execute(fixed, moving)
    except RuntimeError as error:
        raise DataError(f"the livers cannot be aligned: {str(error).strip().splitlines()[-1]}") from None
    moved = sitk.Resample(baseline, follow_up, found, sitk.sitkNearestNeighbor, 0, sitk.sitkUInt8)
    overlap = dice(to_array(follow_up) > 0, to_array(moved) > 0)
    turn, shift_mm = _size_of(found, fixed_mm)
    return Alignment(found, 0.0 if overlap is None else overlap, turn, shift_mm)


def _distance_map(mask: sitk.Image) -> sitk.Image:
    """Signed distance to the surface of a mask in mm, clipped, positive inside, on an isotropic grid around it."""
    statistics = sitk.LabelShapeStatisticsImageFilter()
    statistics.Execute(mask)
    start, size = np.split(np.array(statistics.GetBoundingBox(1)), 2)
    spacing, direction = np.array(mask.GetSpacing()), np.array(mask.GetDirection()).reshape(3, 3)
    first_mm = mask.TransformContinuousIndexToPhysicalPoint((start - 0.5).tolist())
    voxels = np.ceil((size * spacing + 2 * MARGIN_MM) / GRID_MM).astype(int)
    origin_mm = np.array(first_mm) + direction @ np.full(3, GRID_MM / 2 - MARGIN_MM)
    coarse = sitk.Resample(
        sitk.Cast(mask, sitk.sitkFloat32),
        voxels.tolist(),
        sitk.Transform(),
        sitk.sitkLinear,
        origin_mm.tolist(),
        (GRID_MM,) * 3,
        mask.GetDirection(),
        0.0,
    )
    distance_mm = sitk.SignedMaurerDistanceMap(
        coarse >= 0.5, insideIsPositive=True, squaredDistance=False, useImageSpacing=True
    )
    return sitk.Clamp(distance_mm, sitk.sitkFloat32, -CLIPPED_MM, CLIPPED_MM)


def _centroid_mm(mask: sitk.Image) -> tuple[float, ...]:
    statistics = sitk.LabelShapeStatisticsImageFilter()
    statistics.Execute(mask)
    return tuple(statistics.GetCentroid(1))


def _size_of(transform: sitk.Transform, centre_mm: tuple[float, ...]) -> tuple[float, float]:
    """The angle of a rigid transform in degrees, and how far it moves a point."""
    there_mm = np.array(transform.TransformPoint(centre_mm))
    axes = np.stack([np.array(transform.TransformVector(axis, centre_mm)) for axis in np.eye(3).tolist()], axis=1)
    cosine = np.clip((np.trace(axes) - 1) / 2, -1, 1)
    return float(np.degrees(np.arccos(cosine))), float(np.linalg.norm(there_mm - centre_mm))
