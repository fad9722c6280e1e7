"""Which grids are those of a scan: voxel sizes and axes that some header gives but no scanner makes are refused."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import SimpleITK as sitk

from hepar.errors import Refusal

SPACING_MM = (0.05, 50.0)  # scans of the abdomen have 0.3 to 15 mm; a slip of units is a factor of ten or more
DIRECTION_TOLERANCE = 1e-3  # moves the far end of a scan of 500 mm by half a millimetre; headers round to less
MAX_ORIGIN_MM = 1e5  # from the scanner's isocentre
SPACING_RULE = f"a voxel has {SPACING_MM[0]:g} to {SPACING_MM[1]:g} mm along each axis"
DIRECTION_RULE = "the axes of a grid are unit vectors at right angles"
MISSING_SPACING_RULE = "a header gives the voxel size"


def check_grid(image: sitk.Image) -> None:
    """Raise Refusal if no scan can have the spacing, axes or origin of a volume."""
    check_spacing(image.GetSpacing())
    check_axes(np.array(image.GetDirection()).reshape(3, 3).T.tolist())
    check_origin(image.GetOrigin())


def check_spacing(spacing_xyz_mm: Sequence[float]) -> None:
    """Raise Refusal if a voxel is smaller or larger than any scanner's, or its size is not a number."""
    if not all(SPACING_MM[0] <= mm <= SPACING_MM[1] for mm in spacing_xyz_mm):
        raise Refusal(SPACING_RULE, f"{numbers(spacing_xyz_mm)} mm")


def check_origin(origin_xyz_mm: Sequence[float]) -> None:
    """Raise Refusal if the first voxel lies farther from the isocentre than any scan, or nowhere."""
    if not all(abs(mm) <= MAX_ORIGIN_MM for mm in origin_xyz_mm):
        raise Refusal(f"a scan lies within {MAX_ORIGIN_MM / 1000:g} m of its origin", f"{numbers(origin_xyz_mm)} mm")


def check_axes(axes: Sequence[Sequence[float]]) -> None:
    """Raise Refusal unless three vectors have length 1 and stand at right angles: others scale or shear the grid."""
    vectors = np.array(axes, float)
    with np.errstate(all="ignore"):
        off = np.abs(vectors @ vectors.T - np.eye(len(vectors))).max() if np.isfinite(vectors).all() else math.inf
    if not off <= 2 * DIRECTION_TOLERANCE:  # a length that is off by ε is off by 2ε when squared
        raise Refusal(DIRECTION_RULE, ", ".join(numbers(axis) for axis in vectors.tolist()))


def size_text(size_zyx: Sequence[int]) -> str:
    """The size of a volume as messages and tables give it, x×y×z as scanners and viewers do: `512×512×78`."""
    return "×".join(str(n) for n in reversed(size_zyx))


def numbers(values: Sequence[float]) -> str:
    """Values as a message gives them."""
    return "(" + ", ".join(f"{value:.4g}" for value in values) + ")"
