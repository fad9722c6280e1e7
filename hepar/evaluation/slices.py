"""The one slice of a case that the report shows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hepar.errors import DataError
from hepar.evaluation.masks import SpacingMm, shape_text
from hepar.imaging.masks import Mask


@dataclass(frozen=True)
class CaseSlice:
    """One axial slice with what the expert drew and what was predicted.

    ``image_yx`` is float32 in 0…1 (already windowed), masks are boolean arrays y, x; a reference of None is
    unknown. Row 0 is anterior and shown on top, column 0 is the patient's right and shown on the left.
    """

    case_id: str
    image_yx: NDArray[np.float32]
    liver_reference_yx: Mask | None
    tumour_reference_yx: Mask | None
    liver_prediction_yx: Mask
    tumour_prediction_yx: Mask
    spacing_yx_mm: tuple[float, float]
    index_z: int


def pick_slice(
    case_id: str,
    image_zyx: NDArray[np.floating] | NDArray[np.integer],
    liver_reference_zyx: Mask | None,
    tumour_reference_zyx: Mask | None,
    liver_prediction_zyx: Mask,
    tumour_prediction_zyx: Mask,
    spacing_zyx_mm: SpacingMm,
    window: tuple[float, float],
) -> CaseSlice:
    """Take the slice where the tumour is largest, else the liver; the image scaled from ``window`` to 0…1.

    The reference decides; where it is unknown or empty, the prediction does (so a false positive is shown),
    and without any mask the middle slice is taken. ``window`` is (low, high) in the image's own unit, HU for
    CT. Arrays are in the canonical orientation, LPS: x to the patient's left, y to the back, z to the head.

    Raises DataError, naming the case, for shapes that differ, a window that is not low < high or an empty
    image.
    """
    low, high = window
    if not low < high:
        raise DataError(f"case {case_id}: window must be low < high but is {low} to {high}")
    if image_zyx.ndim != 3 or image_zyx.size == 0:
        shape = shape_text(image_zyx.shape)
        raise DataError(f"case {case_id}: image must have voxels in z, y, x but is {shape}")
    for mask_zyx in (liver_reference_zyx, tumour_reference_zyx, liver_prediction_zyx, tumour_prediction_zyx):
        if mask_zyx is not None and mask_zyx.shape != image_zyx.shape:
            mask, image = shape_text(mask_zyx.shape), shape_text(image_zyx.shape)
            raise DataError(f"case {case_id}: mask is {mask} but the image is {image}")
    index_z = _largest_slice(
        image_zyx.shape[0],
        (tumour_reference_zyx, tumour_prediction_zyx, liver_reference_zyx, liver_prediction_zyx),
    )

    def cut(mask_zyx: Mask) -> Mask:
        return np.array(mask_zyx[index_z])

    image_yx = (image_zyx[index_z].astype(np.float32) - low) / (high - low)
    return CaseSlice(
        case_id=case_id,
        image_yx=np.clip(image_yx, 0, 1).astype(np.float32),
        liver_reference_yx=None if liver_reference_zyx is None else cut(liver_reference_zyx),
        tumour_reference_yx=None if tumour_reference_zyx is None else cut(tumour_reference_zyx),
        liver_prediction_yx=cut(liver_prediction_zyx),
        tumour_prediction_yx=cut(tumour_prediction_zyx),
        spacing_yx_mm=spacing_zyx_mm[1:],
        index_z=index_z,
    )


def _largest_slice(slices: int, masks_zyx: tuple[Mask | None, ...]) -> int:
    """Slice with the largest area of the first mask that is not empty; the middle one if all are."""
    for mask_zyx in masks_zyx:
        if mask_zyx is not None and mask_zyx.any():
            return int(mask_zyx.sum(axis=(1, 2)).argmax())
    return slices // 2
