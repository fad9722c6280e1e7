"""Rigid registration of two livers by their masks, judged where both scans show the patient."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import SimpleITK as sitk

from hepar.errors import DataError
from hepar.evaluation.overlap import dice
from hepar.imaging.masks import Mask
from hepar.imaging.volumes import to_array

GRID_MM = 4.0  # of the distance maps that are registered: half of it is finer than lesions are matched
MARGIN_MM = 40.0  # around both livers
CLIPPED_MM = 30.0  # distances beyond say nothing about the surface
ITERATIONS = 200
MIN_LIVER_DICE = 0.8  # of aligned livers; below it, they may be of two patients, or resected in between
MIN_COVERED = 0.5  # of each liver in the other scan: the less surface both show, the less it fixes the alignment


@dataclass(frozen=True)
class Alignment:
    """The rigid transform from points of the follow-up to points of the baseline, and how well the livers overlap.

    `liver_dice` is that of the livers where both scans show them. `baseline_covered` is the share of the baseline's
    liver that the follow-up's scan covers, `follow_up_covered` the reverse.
    """

    transform: sitk.Transform
    liver_dice: float
    baseline_covered: float
    follow_up_covered: float
    rotation_degrees: float
    shift_mm: float

    @property
    def doubt(self) -> str:
        """Why lesions may be matched wrongly: too little overlap, or too little that both scans show; else empty."""
        if self.liver_dice < MIN_LIVER_DICE:
            return f"the aligned livers overlap too little: Dice {self.liver_dice:.2f}, below {MIN_LIVER_DICE:g}"
        names = ("baseline", "follow-up")
        for name, other, share in zip(names, names[::-1], (self.baseline_covered, self.follow_up_covered), strict=True):
            if share < MIN_COVERED:
                value = f"{share:.0%}, below {MIN_COVERED:.0%}"
                return f"the {other} covers too little of the {name}'s liver to align them: {value}"
        return ""

    def to_follow_up(self, labels: sitk.Image, grid: sitk.Image) -> sitk.Image:
        """A label map of the baseline on the grid of the follow-up: the nearest label of each voxel, 0 outside.

        A label that lies between thick slices, so that no voxel is nearest to it, has the voxels nearest to its own.
        """
        moved = sitk.Resample(labels, grid, self.transform, sitk.sitkNearestNeighbor, 0, labels.GetPixelID())
        labels_zyx, moved_zyx = to_array(labels), to_array(moved)
        back, size = self.transform.GetInverse(), grid.GetSize()
        for number in np.setdiff1d(labels_zyx, moved_zyx).tolist():
            for z, y, x in np.argwhere(labels_zyx == number).tolist():
                place = back.TransformPoint(labels.TransformIndexToPhysicalPoint((x, y, z)))
                index = grid.TransformPhysicalPointToIndex(place)
                if all(0 <= at < n for at, n in zip(index, size, strict=True)) and not moved[index]:
                    moved[index] = number
        return moved

    def covered(self, baseline: sitk.Image, follow_up: sitk.Image) -> tuple[Mask, Mask]:
        """The voxels of the baseline that the follow-up's scan covers, and the reverse, bool zyx on their own grids."""
        return _covered(baseline, follow_up, self.transform.GetInverse()), _covered(follow_up, baseline, self.transform)


def align_livers(baseline: sitk.Image, follow_up: sitk.Image) -> Alignment:
    """Register the liver masks of two scans, uint8, of any grids: rotation and shift, no deformation.

    The mean squared difference of signed distance maps is minimised, from livers whose centroids lie on each other,
    where both scans show the patient: the edge of a scan that cuts a liver is no surface. Raises DataError if a mask is
    empty or the registration fails.
    """
    for name, mask in (("baseline", baseline), ("follow-up", follow_up)):
        if not to_array(mask).any():
            raise DataError(f"the {name} has no liver, so the livers cannot be aligned")
    (fixed, in_fixed), (moving, in_moving) = _distance_map(follow_up), _distance_map(baseline)
    initial = sitk.Euler3DTransform()
    fixed_mm, moving_mm = _centroid_mm(follow_up), _centroid_mm(baseline)
    initial.SetCenter(fixed_mm)
    initial.SetTranslation((np.array(moving_mm) - fixed_mm).tolist())
    method = sitk.ImageRegistrationMethod()
    method.SetMetricAsMeanSquares()
    method.SetMetricFixedMask(in_fixed)
    method.SetMetricMovingMask(in_moving)
    method.SetInterpolator(sitk.sitkLinear)
    method.SetOptimizerAsRegularStepGradientDescent(2.0, 0.01, ITERATIONS)
    method.SetOptimizerScalesFromPhysicalShift()
    method.SetInitialTransform(initial, inPlace=False)
    try:
        found = method.Execute(fixed, moving)
    except RuntimeError as error:
        raise DataError(f"the livers cannot be aligned: {str(error).strip().splitlines()[-1]}") from None
    turn, shift_mm = _size_of(found, fixed_mm)
    return Alignment(found, *_overlap(baseline, follow_up, found), turn, shift_mm)


def _overlap(baseline: sitk.Image, follow_up: sitk.Image, transform: sitk.Transform) -> tuple[float, float, float]:
    """The Dice of two aligned livers where both scans show them, and the share of each that the other scan covers."""
    moved = sitk.Resample(baseline, follow_up, transform, sitk.sitkNearestNeighbor, 0, sitk.sitkUInt8)
    liver_zyx, other_zyx = to_array(follow_up) > 0, to_array(baseline) > 0
    covered_zyx = _covered(follow_up, baseline, transform)
    overlap = dice(liver_zyx & covered_zyx, to_array(moved) > 0)
    other_covered_zyx = _covered(baseline, follow_up, transform.GetInverse())
    shares = float(other_covered_zyx[other_zyx].mean()), float(covered_zyx[liver_zyx].mean())
    return 0.0 if overlap is None else overlap, *shares


def _everywhere(scan: sitk.Image) -> sitk.Image:
    """1 in each voxel of a scan's grid, uint8."""
    ones = sitk.Image(scan.GetSize(), sitk.sitkUInt8) + 1
    ones.CopyInformation(scan)
    return ones


def _covered(grid: sitk.Image, scan: sitk.Image, transform: sitk.Transform) -> Mask:
    """The voxels of a grid that a transform maps into another scan, bool zyx."""
    inside = sitk.Resample(_everywhere(scan), grid, transform, sitk.sitkNearestNeighbor, 0, sitk.sitkUInt8)
    return np.asarray(to_array(inside) > 0)


def _distance_map(mask: sitk.Image) -> tuple[sitk.Image, sitk.Image]:
    """Signed distance to the surface of a mask in mm, clipped, positive inside, on an isotropic grid around it.

    Beyond the scan the mask goes on as at its edge. Also returns where on that grid the scan is, uint8.
    """
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
        sitk.sitkFloat32,
        True,  # beyond the scan its nearest voxel
    )
    distance_mm = sitk.SignedMaurerDistanceMap(
        coarse >= 0.5, insideIsPositive=True, squaredDistance=False, useImageSpacing=True
    )
    inside = sitk.Resample(_everywhere(mask), coarse, sitk.Transform(), sitk.sitkNearestNeighbor, 0, sitk.sitkUInt8)
    return sitk.Clamp(distance_mm, sitk.sitkFloat32, -CLIPPED_MM, CLIPPED_MM), inside


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
