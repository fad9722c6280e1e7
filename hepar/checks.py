"""What a case has to be before it enters a cohort. A check that fails refuses the case, by rule and value."""

from __future__ import annotations

import numpy as np
import SimpleITK as sitk

from hepar.cases import Modality
from hepar.errors import Refusal
from hepar.volumes import Array, Geometry, to_array

MIN_VOXELS = 8  # along each axis
MIN_IN_BODY = 0.5  # share of a structure's voxels that lie in the body
CT_AIR_HU = -400.0
MR_AIR = 0.05  # of the 99th percentile


def check_image(image: sitk.Image) -> None:
    """Refuse an image that is too small, is not finite, or is the same everywhere."""
    size_zyx, array = Geometry.of(image).size_zyx, to_array(image)
    if min(size_zyx) < MIN_VOXELS:
        raise Refusal(f"an image has at least {MIN_VOXELS} voxels along each axis", _times(size_zyx))
    if bad := int(np.size(array) - np.isfinite(array).sum()):
        raise Refusal("an image is finite", f"{bad} voxels are NaN or infinite")
    if array.min() == array.max():
        raise Refusal("an image has contrast", f"every voxel is {array.flat[0]}")


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
    share = float(body(to_array(image), modality)[inside].mean())
    if share < MIN_IN_BODY:
        raise Refusal(f"at least {MIN_IN_BODY:.0%} of the {name} lies in the body", f"{share:.0%}")


def body(array_zyx: Array, modality: Modality) -> np.ndarray[tuple[int, ...], np.dtype[np.bool_]]:
    """Voxels that are not air: above -400 HU, or above a twentieth of the 99th percentile in MR."""
    if modality == Modality.CT:
        return np.asarray(array_zyx > CT_AIR_HU)
    return np.asarray(array_zyx > MR_AIR * np.percentile(array_zyx, 99))


def _times(size_zyx: tuple[int, int, int]) -> str:
    return "×".join(str(n) for n in size_zyx[::-1])


def _mm(values: tuple[float, ...]) -> str:
    return "(" + ", ".join(f"{value:.4g}" for value in values) + ") mm"
