"""Checks and crops that every metric shares.

Arrays are indexed z, y, x; a mask is a boolean array, True inside the structure.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np

from hepar.imaging.masks import Mask

SpacingMm: TypeAlias = tuple[float, float, float]


def check_masks(reference_zyx: Mask, prediction_zyx: Mask) -> None:
    """Refuse a pair of masks that cannot be compared voxel by voxel.

    Raises ValueError if one of them is not boolean, not three-dimensional, or if the shapes differ. Label
    values are refused rather than cast, because ``labels.astype(bool)`` would silently join liver and tumour.
    """
    for name, mask_zyx in (("reference", reference_zyx), ("prediction", prediction_zyx)):
        if mask_zyx.dtype != np.bool_:
            raise ValueError(f"{name} mask must be boolean but is {mask_zyx.dtype}")
        if mask_zyx.ndim != 3:
            raise ValueError(f"{name} mask must have the axes z, y, x but has the shape {mask_zyx.shape}")
    if reference_zyx.shape != prediction_zyx.shape:
        raise ValueError(
            f"reference mask is {shape_text(reference_zyx.shape)} "
            f"but the prediction is {shape_text(prediction_zyx.shape)}"
        )


def check_spacing(spacing_zyx_mm: SpacingMm) -> None:
    """Raise ValueError unless the spacing is three finite positive lengths in mm."""
    spacing = np.asarray(spacing_zyx_mm, dtype=np.float64)
    if spacing.shape != (3,) or not np.isfinite(spacing).all() or (spacing <= 0).any():
        raise ValueError(f"spacing must be three positive lengths in mm (z, y, x) but is {spacing_zyx_mm}")


def joint_bounding_box(reference_zyx: Mask, prediction_zyx: Mask) -> tuple[slice, slice, slice] | None:
    """Smallest box that holds both masks, as slices for z, y and x; None if both are empty."""
    slices = []
    for axis in range(3):
        other_axes = tuple(other for other in range(3) if other != axis)
        occupied = np.flatnonzero(reference_zyx.any(axis=other_axes) | prediction_zyx.any(axis=other_axes))
        if occupied.size == 0:
            return None
        slices.append(slice(int(occupied[0]), int(occupied[-1]) + 1))
    return slices[0], slices[1], slices[2]


def shape_text(shape: tuple[int, ...]) -> str:
    """A shape as people write it: ``40x128x128``."""
    return "x".join(str(length) for length in shape)
