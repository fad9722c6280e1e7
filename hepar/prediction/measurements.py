"""Measurements of a segmented scan: volumes, and each lesion's size, place, contrast and confidence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from hepar.cases import Modality
from hepar.imaging.diameters import AxialDiameters, axial_diameters, slice_axis
from hepar.imaging.masks import Mask, bounding_box, dilate, enlarged, label_components
from hepar.imaging.volumes import Geometry
from hepar.inference.lesions import PredictedLesion
from hepar.prediction.liver_side import LiverHalves, Side

if TYPE_CHECKING:
    from hepar.inference.prediction import Segmentation  # imports torch, which a follow-up does not need

AROUND_LESION_MM = 10.0  # how far the liver around a lesion reaches that it is compared with
LESION_VALUES = {  # of a lesion in JSON and CSV, with the number of coordinates of each
    "number": 1,
    "volume_ml": 1,
    "longest_diameter_mm": 1,
    "perpendicular_diameter_mm": 1,
    "slice_index": 1,
    "longest_ends_lps_mm": 6,
    "perpendicular_ends_lps_mm": 6,
    "centre_lps_mm": 3,
    "centre_index_zyx": 3,
    "from_liver_centre_lps_mm": 3,
    "side_estimate": 1,
    "cantlie_plane_mm": 1,
    "capsule_mm": 1,
    "mean_intensity": 1,
    "surrounding_liver_intensity": 1,
    "contrast": 1,
    "contrast_to_noise": 1,
    "confidence": 1,
}
Voxels = npt.NDArray[Any]


@dataclass(frozen=True)
class Contrast:
    """Intensities of a lesion and of the liver around it, in HU for CT and in the scanner's own units for MR.

    `surrounding` and what is computed from it are None if no liver without tumour lies within `AROUND_LESION_MM`, and
    `to_noise`, the difference in standard deviations of that liver, also if the liver there is constant.
    """

    mean: float
    surrounding: float | None
    to_noise: float | None

    @property
    def difference(self) -> float | None:
        """The lesion's mean less that of the liver around it: negative for a lesion darker than the liver."""
        return None if self.surrounding is None else self.mean - self.surrounding


@dataclass(frozen=True)
class MeasuredLesion:
    """One lesion; `number` counts from 1 in scan order, as `label_components` numbers the tumour mask.

    `capsule_mm` is the smallest distance between the faces of the lesion's and of the nearest voxel outside the liver:
    0 if they touch, None if the liver fills the scan or was not taught. `from_liver_centre_lps_mm` leads from the
    liver's centroid to the lesion's, None without a liver. `side` is an estimate, and `cantlie_mm` the distance of the
    centroid from the estimated Cantlie plane, negative on its right; None without a liver. `slice_axis` is the axis of
    `slice_index`.
    """

    number: int
    found: PredictedLesion
    diameters: AxialDiameters
    capsule_mm: float | None
    from_liver_centre_lps_mm: tuple[float, float, float] | None
    side: Side | None
    cantlie_mm: float | None
    contrast: Contrast

    def rounded(self) -> dict[str, Any]:
        """All values by name, those of `LESION_VALUES`, as JSON and CSV have them."""
        diameters, contrast = self.diameters, self.contrast
        return {
            "number": self.number,
            "volume_ml": round(self.found.volume_ml, 3),
            "longest_diameter_mm": round(diameters.longest.length_mm, 1),
            "perpendicular_diameter_mm": round(diameters.perpendicular.length_mm, 1),
            "slice_index": diameters.slice_index,
            "longest_ends_lps_mm": _rounded(np.ravel(diameters.longest.ends_lps_mm)),
            "perpendicular_ends_lps_mm": _rounded(np.ravel(diameters.perpendicular.ends_lps_mm)),
            "centre_lps_mm": _rounded(self.found.centre_lps_mm),
            "centre_index_zyx": _rounded(self.found.centre_index_zyx),
            "from_liver_centre_lps_mm": _rounded(self.from_liver_centre_lps_mm),
            "side_estimate": None if self.side is None else str(self.side),
            "cantlie_plane_mm": _round(self.cantlie_mm, 1),
            "capsule_mm": _round(self.capsule_mm, 1),
            "mean_intensity": _round(contrast.mean, 1),
            "surrounding_liver_intensity": _round(contrast.surrounding, 1),
            "contrast": _round(contrast.difference, 1),
            "contrast_to_noise": _round(contrast.to_noise, 2),
            "confidence": round(self.found.confidence, 3),
        }


@dataclass(frozen=True)
class ScanMeasurements:
    """Measurements of a scan. A volume is None if the model was not taught that structure.

    `liver_ml` is the whole liver with its tumours; `liver_median` is the median intensity of the liver without them,
    None without such a liver.
    """

    liver_ml: float | None
    tumour_ml: float | None
    liver_median: float | None
    unit: str
    lesions: tuple[MeasuredLesion, ...] = field(repr=False)

    @property
    def burden_percent(self) -> float | None:
        """Tumour volume in percent of the whole liver's; None without a liver, or if one of both was not taught."""
        if not self.liver_ml or self.tumour_ml is None:
            return None
        return 100 * self.tumour_ml / self.liver_ml

    def rounded(self) -> dict[str, Any]:
        """The values of the whole scan by name, as JSON and CSV have them."""
        return {
            "liver_ml": _round(self.liver_ml, 1),
            "tumour_ml": _round(self.tumour_ml, 3),
            "burden_percent": _round(self.burden_percent, 2),
            "lesions": None if self.tumour_ml is None else len(self.lesions),
            "liver_median_intensity": _round(self.liver_median, 1),
            "intensity_unit": self.unit,
        }


def intensity_unit(modality: Modality) -> str:
    """The unit of a scan's intensities, for people."""
    return "HU" if modality == Modality.CT else "scanner units"


def measure(found: Segmentation, image_zyx: Voxels, modality: Modality) -> ScanMeasurements:
    """Measure a segmented scan on its own grid; `image_zyx` are its intensities, of any real type."""
    box = bounding_box(found.liver_zyx | found.tumour_zyx)
    if box is None:
        return ScanMeasurements(found.liver_ml, found.tumour_ml, None, intensity_unit(modality), ())
    grid = found.geometry
    near = enlarged(box, grid.spacing_zyx_mm, AROUND_LESION_MM)
    masks_zyx = found.liver_zyx[near], found.tumour_zyx[near]
    cropped = _Cropped(*masks_zyx, image_zyx[near], grid.cropped(near), near[slice_axis(grid)])
    healthy_n = cropped.image_zyx[cropped.healthy_zyx]
    median = float(np.median(healthy_n)) if healthy_n.size else None
    lesions = cropped.lesions(found.lesions) if found.lesions else ()
    return ScanMeasurements(found.liver_ml, found.tumour_ml, median, intensity_unit(modality), lesions)


@dataclass(frozen=True)
class _Cropped:
    """The part of a scan around liver and tumours, in which components have the same order as in the scan."""

    liver_zyx: Mask
    tumour_zyx: Mask
    image_zyx: Voxels
    geometry: Geometry
    slices: slice  # of the scan along its slice axis

    @property
    def healthy_zyx(self) -> Mask:
        return np.asarray(self.liver_zyx & ~self.tumour_zyx)

    def lesions(self, found: Sequence[PredictedLesion]) -> tuple[MeasuredLesion, ...]:
        """The measurements of the components of the tumour mask, which are `found`."""
        labels_zyx, _ = label_components(self.tumour_zyx)
        spacing_zyx_mm, healthy_zyx = self.geometry.spacing_zyx_mm, self.healthy_zyx
        capsule_mm = capsule_distances_mm(labels_zyx, len(found), self.liver_zyx, spacing_zyx_mm)
        centre_lps_mm, halves = self._liver_centre_lps_mm(), LiverHalves.of(self.liver_zyx, self.geometry)
        measured = []
        for index, (lesion, box) in enumerate(zip(found, ndimage.find_objects(labels_zyx), strict=True)):
            near = enlarged(box, spacing_zyx_mm, AROUND_LESION_MM)
            lesion_zyx = labels_zyx[near] == index + 1
            diameters = axial_diameters(lesion_zyx, self.geometry.cropped(near))
            slice_index = diameters.slice_index + near[slice_axis(self.geometry)].start + self.slices.start
            measured.append(
                MeasuredLesion(
                    number=index + 1,
                    found=lesion,
                    diameters=replace(diameters, slice_index=slice_index),
                    capsule_mm=capsule_mm[index],
                    from_liver_centre_lps_mm=centre_lps_mm and _difference(lesion.centre_lps_mm, centre_lps_mm),
                    side=None if halves is None else halves.side(lesion.centre_lps_mm),
                    cantlie_mm=None if halves is None else halves.distance_mm(lesion.centre_lps_mm),
                    contrast=measure_contrast(lesion_zyx, healthy_zyx[near], self.image_zyx[near], spacing_zyx_mm),
                )
            )
        return tuple(measured)

    def _liver_centre_lps_mm(self) -> tuple[float, float, float] | None:
        if not self.liver_zyx.any():
            return None
        z, y, x = ndimage.center_of_mass(self.liver_zyx)
        return self.geometry.to_lps_mm((float(z), float(y), float(x)))


def measure_contrast(
    lesion_zyx: Mask, healthy_zyx: Mask, image_zyx: Voxels, spacing_zyx_mm: tuple[float, float, float]
) -> Contrast:
    """Compare a lesion, not empty, with the liver without tumour within `AROUND_LESION_MM` of it."""
    mean = float(np.mean(image_zyx[lesion_zyx], dtype=np.float64))
    around_n = image_zyx[dilate(lesion_zyx, spacing_zyx_mm, AROUND_LESION_MM) & healthy_zyx].astype(np.float64)
    if around_n.size == 0:
        return Contrast(mean, None, None)
    surrounding, deviation = float(around_n.mean()), float(around_n.std())
    return Contrast(mean, surrounding, (mean - surrounding) / deviation if deviation > 0 else None)


def capsule_distances_mm(
    labels_zyx: npt.NDArray[np.int32], count: int, liver_zyx: Mask, spacing_zyx_mm: tuple[float, float, float]
) -> list[float | None]:
    """The smallest distance of each of `count` lesions to the surface of the liver that holds them.

    It lies between the faces of a lesion's voxel and the nearest one outside the liver, nearest by their centres. The
    border of the scan is no surface. None without a voxel outside the liver, or without a liver.
    """
    if not liver_zyx.any() or liver_zyx.all():
        return [None] * count
    nearest_3zyx: npt.NDArray[np.int32] = ndimage.distance_transform_edt(
        liver_zyx, sampling=spacing_zyx_mm, return_distances=False, return_indices=True
    )
    distances_mm: list[float | None] = []
    for number in range(1, count + 1):
        z_n, y_n, x_n = np.nonzero(labels_zyx == number)
        between_3n = np.maximum(np.abs(nearest_3zyx[:, z_n, y_n, x_n] - np.stack([z_n, y_n, x_n])) - 1, 0)
        squares_n = ((between_3n * np.array(spacing_zyx_mm)[:, None]) ** 2).sum(axis=0)
        distances_mm.append(float(np.sqrt(squares_n.min())))
    return distances_mm


def _difference(to: Sequence[float], start: Sequence[float]) -> tuple[float, float, float]:
    left, posterior, superior = (b - a for a, b in zip(start, to, strict=True))
    return left, posterior, superior


def _round(value: float | None, digits: int) -> float | None:
    return None if value is None else round(value, digits)


def _rounded(values: Sequence[float] | npt.NDArray[np.float64] | None) -> list[float] | None:
    return None if values is None else [round(float(value), 1) for value in values]
