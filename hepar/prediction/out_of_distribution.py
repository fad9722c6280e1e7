"""Signs that a scan is unlike those that a model learned from, or that its result cannot be right.

Each check compares one number with a bound. The bounds are rules of thumb about scanners and livers, but for those of
the model's own plan and training; none was tuned on a data set.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk

from hepar.cases import LIVER, STRUCTURES, TUMOUR, Modality
from hepar.imaging.diameters import slice_axis
from hepar.imaging.masks import Mask
from hepar.imaging.modality import find_contradiction
from hepar.imaging.preprocessing import PreprocessingPlan, normalise
from hepar.imaging.volumes import Geometry, to_array
from hepar.inference.model_folder import ModelSpec
from hepar.ingest.checks import LIVER_ML
from hepar.prediction.measurements import ScanMeasurements

if TYPE_CHECKING:
    from hepar.inference.prediction import Segmentation  # imports torch, which a follow-up does not need

MAX_COARSER = 2.0  # times the spacing of the model
MIN_EXTENT_MM = 100.0  # along the slice axis: a liver is some 150 mm high
LIVER_HU = (-10.0, 200.0)  # medians from a steatotic liver without contrast to a bright one in a portal-venous phase
FIELD_OF_VIEW = "field of view"  # the rule that a liver cut by the edge of the scan breaks
MAX_CUT_CM2 = 1.0  # of liver on a face of the scan; less may be a voxel or two too many
MAX_BURDEN_PERCENT = 60.0
MIN_AGREEMENT = {STRUCTURES[LIVER]: 0.9, STRUCTURES[TUMOUR]: 0.5}
MAX_DEVIATIONS = 3.0  # of the livers that the model learned from
_AXIS_OF = {"L": "x", "R": "x", "P": "y", "A": "y", "S": "z", "I": "z"}  # by the side that it leads to
DIRECTIONS = (("right", "left"), ("front", "back"), ("foot", "head"))  # of the patient along LPS axes, low to high


@dataclass(frozen=True)
class ScanWarning:
    """A rule that a scan or its result breaks, the number that breaks it, and the bound that it should keep."""

    rule: str
    value: float
    bound: float
    unit: str
    message: str

    def rounded(self) -> dict[str, Any]:
        """All fields by name, the value to three digits."""
        return asdict(self) | {"value": round(self.value, 3)}


def check_scan(
    image: sitk.Image, modality: Modality, found: Segmentation, measured: ScanMeasurements, spec: ModelSpec
) -> tuple[ScanWarning, ...]:
    """The warnings about a scan and what was found in it; () if every check passes."""
    return (
        *_check_grid(Geometry.of(image), spec),
        *_check_intensities(image, modality, measured),
        *_check_against_learned(image, modality, found, spec),
        *_check_volumes(measured),
        *_check_field_of_view(found),
        *_check_agreement(found),
    )


def _check_grid(grid: Geometry, spec: ModelSpec) -> Iterator[ScanWarning]:
    for axis, own_mm, learned_mm in zip("zyx", _canonical_spacing_zyx_mm(grid), spec.plan.spacing_zyx_mm, strict=True):
        bound_mm = MAX_COARSER * learned_mm
        if own_mm > bound_mm * 1.001:  # headers round
            message = f"voxels of {own_mm:.3g} mm along {axis} (bound {bound_mm:.3g} mm: twice those of the model)"
            yield ScanWarning("spacing", own_mm, bound_mm, "mm", message)
    axis_number = slice_axis(grid)
    extent_mm = grid.size_zyx[axis_number] * grid.spacing_zyx_mm[axis_number]
    if extent_mm < MIN_EXTENT_MM:
        message = f"the scan is {extent_mm:.0f} mm high (bound {MIN_EXTENT_MM:.0f} mm): a whole liver does not fit"
        yield ScanWarning("extent", extent_mm, MIN_EXTENT_MM, "mm", message)


def _canonical_spacing_zyx_mm(grid: Geometry) -> list[float]:
    """The spacing of a grid along the patient's axes that its own are nearest to, z y x."""
    orientation = sitk.DICOMOrientImageFilter.GetOrientationFromDirectionCosines(grid.direction)
    spacing_xyz_mm = grid.spacing_zyx_mm[::-1]
    along = {_AXIS_OF[letter]: mm for letter, mm in zip(orientation, spacing_xyz_mm, strict=True)}
    return [along[axis] for axis in "zyx"]


def _check_intensities(image: sitk.Image, modality: Modality, measured: ScanMeasurements) -> Iterator[ScanWarning]:
    if contradiction := find_contradiction(image, modality):
        lowest = float(sitk.GetArrayViewFromImage(image).min())
        message = f"the intensities are not those of {modality}: {contradiction}"
        yield ScanWarning("intensities", lowest, 0.0, measured.unit, message)
    median = measured.liver_median
    if modality == Modality.CT and median is not None:
        low, high = LIVER_HU
        if not low <= median <= high:
            bound = low if median < low else high
            message = f"the liver has a median of {median:.0f} HU, outside {low:g} to {high:g} HU"
            yield ScanWarning("liver intensity", median, bound, "HU", message)


def _check_against_learned(
    image: sitk.Image, modality: Modality, found: Segmentation, spec: ModelSpec
) -> Iterator[ScanWarning]:
    """Compare the liver with those of the modality that the model learned from, if it knows them."""
    healthy_zyx = found.liver_zyx & ~found.tumour_zyx
    if modality not in spec.liver_intensity or not healthy_zyx.any():
        return
    mean, deviation = spec.liver_intensity[modality]
    away = abs(float(np.median(_preprocessed(image, healthy_zyx, modality, spec.plan))) - mean) / deviation
    if away > MAX_DEVIATIONS:
        bound = f"bound {MAX_DEVIATIONS:g} SD"
        message = f"the liver's brightness is {away:.1f} SD from the {modality} livers learned from ({bound})"
        yield ScanWarning("liver unlike those learned from", away, MAX_DEVIATIONS, "SD", message)


def _preprocessed(
    image: sitk.Image, mask_zyx: Mask, modality: Modality, plan: PreprocessingPlan
) -> npt.NDArray[np.float32]:
    """The preprocessed intensities of a mask. Those of MR depend on the whole scan, those of CT on each voxel alone."""
    image_zyx = to_array(image)
    if modality == Modality.CT:
        return normalise(image_zyx[mask_zyx].astype(np.float32), modality, plan)
    return normalise(image_zyx.astype(np.float32), modality, plan)[mask_zyx]


def _check_volumes(measured: ScanMeasurements) -> Iterator[ScanWarning]:
    liver_ml, (low_ml, high_ml) = measured.liver_ml, LIVER_ML
    if liver_ml == 0:
        yield ScanWarning("no liver", 0.0, low_ml, "ml", "no liver was found")
    elif liver_ml is not None and not low_ml <= liver_ml <= high_ml:
        bound_ml = low_ml if liver_ml < low_ml else high_ml
        message = f"a liver of {liver_ml:.0f} ml, outside {low_ml:g} to {high_ml:g} ml"
        yield ScanWarning("liver volume", liver_ml, bound_ml, "ml", message)
    burden = measured.burden_percent
    if burden is not None and burden > MAX_BURDEN_PERCENT:
        message = f"tumours fill {burden:.0f} % of the liver, more than {MAX_BURDEN_PERCENT:g} %"
        yield ScanWarning("tumour burden", burden, MAX_BURDEN_PERCENT, "%", message)


def _check_field_of_view(found: Segmentation) -> Iterator[ScanWarning]:
    """A liver that touches a face of the scan goes on outside it."""
    for axis in range(3):
        area_cm2 = found.geometry.voxel_ml * 10 / found.geometry.spacing_zyx_mm[axis]
        for index in (0, -1):
            value = float(np.take(found.liver_zyx, index, axis).sum() * area_cm2)
            if value > MAX_CUT_CM2:
                side = _side(found.geometry, axis, index)
                face = f"{side} {'end' if side in DIRECTIONS[2] else 'edge'}"
                message = f"{value:.1f} cm² of the liver lie on the {face} of the scan (bound {MAX_CUT_CM2:g} cm²)"
                yield ScanWarning(FIELD_OF_VIEW, value, MAX_CUT_CM2, "cm²", message)


def _side(grid: Geometry, axis: int, index: int) -> str:
    """The side of the patient at which a face of a grid lies."""
    toward_lps = np.array(grid.direction).reshape(3, 3)[:, 2 - axis] * (1 if index else -1)
    nearest = int(np.abs(toward_lps).argmax())
    return DIRECTIONS[nearest][1 if toward_lps[nearest] > 0 else 0]


def _check_agreement(found: Segmentation) -> Iterator[ScanWarning]:
    for structure, value in found.agreement.items():
        if value < MIN_AGREEMENT[structure]:
            message = (
                f"the members of the ensemble disagree about the {structure}: Dice {value:.2f} with their mean, below"
                f" {MIN_AGREEMENT[structure]:g}"
            )
            yield ScanWarning("agreement", value, MIN_AGREEMENT[structure], "Dice", message)
