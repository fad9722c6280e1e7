"""What a case has to be before it enters a cohort. A check that fails refuses the case, by rule and value."""

from __future__ import annotations

import numpy as np
import SimpleITK as sitk
from scipy import ndimage

from hepar.cases import Modality
from hepar.errors import Refusal
from hepar.imaging.masks import Mask, body_mask
from hepar.imaging.preprocessing import guess_modality
from hepar.imaging.volumes import Array, Geometry, to_array

MIN_VOXELS = 8  # along each axis
MIN_IN_BODY = 0.5  # share of a structure's voxels that lie in the body
CT_RANGE_HU = (-32768, 32767)
LIVER_ML = (300.0, 6000.0)
TUMOUR_MARGIN_MM = 15.0  # around the liver
MIN_TUMOUR_NEAR_LIVER = 0.9
MISPLACED = 0.6  # of the spread inside a mask: a mirrored or shifted copy with less is the better one
SHIFT_MM = 40.0
COARSE_MM = 6.0  # grid on which copies of a mask are compared


def check_image(image: sitk.Image, modality: Modality) -> None:
    """Refuse an image that is too small, not finite, the same everywhere, or not of its modality by its values."""
    size_zyx, array = Geometry.of(image).size_zyx, to_array(image)
    if min(size_zyx) < MIN_VOXELS:
        raise Refusal(f"an image has at least {MIN_VOXELS} voxels along each axis", _times(size_zyx))
    if bad := int(np.size(array) - np.isfinite(array).sum()):
        raise Refusal("an image is finite", f"{bad} voxels are NaN or infinite")
    if array.min() == array.max():
        raise Refusal("an image has contrast", f"every voxel is {array.flat[0]}")
    if modality == Modality.CT and (array.min() < CT_RANGE_HU[0] or array.max() > CT_RANGE_HU[1]):
        raise Refusal("CT fits 16 bits in HU", f"values from {array.min():g} to {array.max():g}")
    if (guess := guess_modality(image)) != modality:
        raise Refusal(
            f"the values of an image are those of its modality, {modality}",
            f"values from {array.min():g} to {array.max():g} look like {guess}",
        )


def check_mask(name: str, mask: sitk.Image, image: sitk.Image, modality: Modality) -> None:
    """Refuse a manual mask on another grid, with a value that is not 0 or 1, empty, or outside the body."""
    own, wanted = Geometry.of(mask), Geometry.of(image)
    if own.size_zyx != wanted.size_zyx:
        raise Refusal(
            f"the {name} mask has the image's size",
            f"{_times(own.size_zyx)} but the image is {_times(wanted.size_zyx)}",
        )
    if not own.agrees_with(wanted):
        raise Refusal(
            f"the {name} mask lies on the image's grid",
            f"origin {_mm(own.origin_xyz_mm)}, spacing {_mm(own.spacing_zyx_mm)}"
            f" but the image has {_mm(wanted.origin_xyz_mm)}, {_mm(wanted.spacing_zyx_mm)}",
        )
    array = to_array(mask)
    if strange := sorted(set(np.unique(array).tolist()) - {0, 1}):
        raise Refusal(f"the {name} mask holds 0 and 1 only", f"value {strange[0]:g}")
    inside = array > 0
    if not inside.any():
        raise Refusal(f"a manual {name} mask is not empty (if there is none, its state is absent)", "no voxel")
    share = float(body_mask(to_array(image), modality)[inside].mean())
    if share < MIN_IN_BODY:
        raise Refusal(f"at least {MIN_IN_BODY:.0%} of the {name} lies in the body", f"{share:.0%}")


def check_volume(liver: Mask, geometry: Geometry) -> None:
    """Refuse a liver that no patient has. For scans whose spacing is known."""
    volume_ml, (low, high) = float(liver.sum()) * geometry.voxel_ml, LIVER_ML
    if not low <= volume_ml <= high:
        raise Refusal(f"a liver has {low:g} to {high:g} ml", f"{volume_ml:.0f} ml")


def check_tumour_in_liver(tumour: Mask, liver: Mask, spacing_zyx_mm: tuple[float, float, float]) -> None:
    """Refuse a tumour that lies away from the liver."""
    distance_mm = ndimage.distance_transform_edt(~liver, sampling=spacing_zyx_mm)
    share = float((distance_mm[tumour] <= TUMOUR_MARGIN_MM).mean())
    if share < MIN_TUMOUR_NEAR_LIVER:
        rule = f"at least {MIN_TUMOUR_NEAR_LIVER:.0%} of the tumour lies within {TUMOUR_MARGIN_MM:g} mm of the liver"
        raise Refusal(rule, f"{share:.0%}")


def check_placement(liver: Mask, image_zyx: Array, spacing_zyx_mm: tuple[float, float, float]) -> None:
    """Refuse a liver mask of which a mirrored or shifted copy holds much more even intensities than it does itself."""
    step = tuple(max(1, round(COARSE_MM / mm)) for mm in spacing_zyx_mm)
    coarse = (slice(None, None, step[0]), slice(None, None, step[1]), slice(None, None, step[2]))
    image = np.clip(image_zyx[coarse], *np.percentile(image_zyx, (1, 99)))
    mask = liver[coarse]
    if mask.sum() < 50:
        return
    own, best, how = _spread(image, mask), np.inf, ""
    for axis, name in enumerate("zyx"):
        spread = _spread(image, np.flip(mask, axis))
        best, how = min((best, how), (spread, f"mirrored along {name}"))
        reach = round(SHIFT_MM / (spacing_zyx_mm[axis] * step[axis]))
        for by in {-reach, reach, -(reach // 2), reach // 2} - {0}:
            spread = _spread(image, _shifted(mask, axis, by))
            moved_mm = by * step[axis] * spacing_zyx_mm[axis]
            best, how = min((best, how), (spread, f"shifted by {moved_mm:+.0f} mm along {name}"))
    if best < MISPLACED * own:
        raise Refusal("a liver mask lies where its image shows one organ", f"it fits better {how}: {best / own:.2f}")


def _spread(image: Array, mask: Mask) -> float:
    """Interquartile range of the intensities inside a mask; infinite where hardly anything is left of it."""
    values = image[mask]
    if values.size < 50:
        return float("inf")
    low, high = np.percentile(values, (20, 80))
    return float(high - low)


def _shifted(mask: Mask, axis: int, by: int) -> Mask:
    """The mask moved along an axis; what leaves the volume is lost, and too much of that loses the comparison."""
    moved = np.roll(mask, by, axis)
    edge = [slice(None)] * 3
    edge[axis] = slice(0, by) if by > 0 else slice(by, None)
    moved[tuple(edge)] = False
    return moved if moved.sum() > 0.8 * mask.sum() else np.zeros_like(mask)


def _times(size_zyx: tuple[int, int, int]) -> str:
    return "×".join(str(n) for n in size_zyx[::-1])


def _mm(values: tuple[float, ...]) -> str:
    return "(" + ", ".join(f"{value:.4g}" for value in values) + ") mm"
