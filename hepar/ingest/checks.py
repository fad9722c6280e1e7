"""What a case must satisfy to enter a cohort. A failed check refuses the case, naming rule and value."""

from __future__ import annotations

import numpy as np
import SimpleITK as sitk

from hepar.cases import Modality
from hepar.errors import Refusal
from hepar.imaging.grid_rules import size_text
from hepar.imaging.masks import Mask, body_mask, dilate, values_beside_0_and_1
from hepar.imaging.modality import find_contradiction
from hepar.imaging.volumes import Array, Geometry, to_array

MIN_VOXELS, MAX_VOXELS = 8, 32767  # along each axis; NIfTI, in which volumes are stored, counts no further
MIN_IN_BODY = 0.5  # share of a structure's voxels that lie in the body
CT_RANGE_HU = (-32768, 32767)
LIVER_ML = (300.0, 6000.0)
TUMOUR_MARGIN_MM = 15.0  # around the liver
MIN_TUMOUR_NEAR_LIVER = 0.9
MISPLACED = 0.6  # of the mask's own intensity spread: below it, a mirrored or shifted copy is taken for the right place
SHIFT_MM = 40.0
COARSE_MM = 6.0  # grid on which copies of a mask are compared
MIN_COMPARED = 50  # voxels of that grid


def check_image(image: sitk.Image, modality: Modality) -> None:
    """Raise Refusal if an image is too small, not finite, constant, or its values do not fit its modality."""
    size_zyx, image_zyx = Geometry.of(image).size_zyx, to_array(image)
    if min(size_zyx) < MIN_VOXELS:
        raise Refusal(f"the image has at least {MIN_VOXELS} voxels along each axis", size_text(size_zyx))
    if max(size_zyx) > MAX_VOXELS:
        raise Refusal(f"the image has at most {MAX_VOXELS} voxels along each axis", size_text(size_zyx))
    check_finite(image_zyx)
    low, high = image_zyx.min(), image_zyx.max()
    if low == high:
        raise Refusal("the image has contrast", f"every voxel is {low}")
    if modality == Modality.CT and (low < CT_RANGE_HU[0] or high > CT_RANGE_HU[1]):
        raise Refusal("CT values in HU fit 16 bits", f"values from {low:g} to {high:g}")
    if contradiction := find_contradiction(image, modality):
        raise Refusal(f"image values match the modality, {modality}", contradiction)


def check_finite(image_zyx: Array) -> None:
    """Raise Refusal if a voxel of an image is NaN or infinite."""
    if bad := int(np.size(image_zyx) - np.isfinite(image_zyx).sum()):
        raise Refusal("all voxels of the image are finite", f"{bad} voxels are NaN or infinite")


def check_mask(name: str, mask: sitk.Image, image: sitk.Image, modality: Modality) -> None:
    """Raise Refusal if a manual mask is on another grid, has a value other than 0 and 1, is empty or outside the body.

    `name` is the structure's, for the message.
    """
    own, wanted = Geometry.of(mask), Geometry.of(image)
    if own.size_zyx != wanted.size_zyx:
        raise Refusal(
            f"the {name} mask has the image's size",
            f"{size_text(own.size_zyx)} but the image is {size_text(wanted.size_zyx)}",
        )
    if not own.agrees_with(wanted):
        raise Refusal(
            f"the {name} mask lies on the image's grid",
            f"origin {_mm(own.origin_xyz_mm)}, spacing {_mm(own.spacing_zyx_mm)}"
            f" but the image has {_mm(wanted.origin_xyz_mm)}, {_mm(wanted.spacing_zyx_mm)}",
        )
    values_zyx = to_array(mask)
    if strange := values_beside_0_and_1(values_zyx):
        raise Refusal(f"the {name} mask contains only 0 and 1", f"value {strange[0]:g}")
    mask_zyx = values_zyx > 0
    if not mask_zyx.any():
        raise Refusal(f"a manual {name} mask is not empty (if there is no {name}, {name}_state is absent)", "0 voxels")
    share = float(body_mask(to_array(image), modality)[mask_zyx].mean())
    if share < MIN_IN_BODY:
        raise Refusal(f"at least {MIN_IN_BODY:.0%} of the {name} lies in the body", f"{share:.0%}")


def check_volume(liver_zyx: Mask, geometry: Geometry) -> None:
    """Raise Refusal if no patient has a liver of that volume. Meaningless where the spacing is nominal."""
    volume_ml, (low_ml, high_ml) = float(liver_zyx.sum()) * geometry.voxel_ml, LIVER_ML
    if not low_ml <= volume_ml <= high_ml:
        raise Refusal(f"the liver volume is {low_ml:g} to {high_ml:g} ml", f"{volume_ml:.0f} ml")


def check_tumour_in_liver(tumour_zyx: Mask, liver_zyx: Mask, spacing_zyx_mm: tuple[float, float, float]) -> None:
    """Raise Refusal if a tumour lies away from the liver. Neither mask is empty."""
    share = float(dilate(liver_zyx, spacing_zyx_mm, TUMOUR_MARGIN_MM)[tumour_zyx].mean())
    if share < MIN_TUMOUR_NEAR_LIVER:
        rule = f"at least {MIN_TUMOUR_NEAR_LIVER:.0%} of the tumour lies within {TUMOUR_MARGIN_MM:g} mm of the liver"
        raise Refusal(rule, f"{share:.0%}")


def check_placement(liver_zyx: Mask, image_zyx: Array, spacing_zyx_mm: tuple[float, float, float]) -> None:
    """Raise Refusal if a mirrored or shifted copy of a liver mask covers far more uniform intensities than the mask.

    A mask too small to compare, or empty, passes.
    """
    step = tuple(max(1, round(COARSE_MM / mm)) for mm in spacing_zyx_mm)
    coarse = (slice(None, None, step[0]), slice(None, None, step[1]), slice(None, None, step[2]))
    image_zyx = np.clip(image_zyx[coarse], *np.percentile(image_zyx, (1, 99)))
    mask_zyx = liver_zyx[coarse]
    if mask_zyx.sum() < MIN_COMPARED:
        return
    own, best, how = _spread(image_zyx, mask_zyx), np.inf, ""
    for axis, name in enumerate("zyx"):
        spread = _spread(image_zyx, np.flip(mask_zyx, axis))
        best, how = min((best, how), (spread, f"mirrored along {name}"))
        reach = round(SHIFT_MM / (spacing_zyx_mm[axis] * step[axis]))
        for by in {-reach, reach, -(reach // 2), reach // 2} - {0}:
            spread = _spread(image_zyx, _shifted(mask_zyx, axis, by))
            shift_mm = by * step[axis] * spacing_zyx_mm[axis]
            best, how = min((best, how), (spread, f"shifted by {shift_mm:+.0f} mm along {name}"))
    if best < MISPLACED * own:
        raise Refusal(
            "the liver mask lies in the right place", f"a copy {how} fits better: spread ratio {best / own:.2f}"
        )


def _spread(image_zyx: Array, mask_zyx: Mask) -> float:
    """The 20th to 80th percentile range of the intensities inside a mask; infinite if hardly any voxel is left."""
    values = image_zyx[mask_zyx]
    if values.size < MIN_COMPARED:
        return float("inf")
    low, high = np.percentile(values, (20, 80))
    return float(high - low)


def _shifted(mask_zyx: Mask, axis: int, by: int) -> Mask:
    """The mask shifted by voxels along an axis; empty, so that it loses, if a fifth of it leaves the volume."""
    shifted_zyx = np.roll(mask_zyx, by, axis)
    edge = [slice(None)] * 3
    edge[axis] = slice(0, by) if by > 0 else slice(by, None)
    shifted_zyx[tuple(edge)] = False
    return shifted_zyx if shifted_zyx.sum() > 0.8 * mask_zyx.sum() else np.zeros_like(mask_zyx)


def _mm(values: tuple[float, ...]) -> str:
    return "(" + ", ".join(f"{value:.4g}" for value in values) + ") mm"
