"""The axial slices of a case that the report shows: the one with the largest tumour, and those around it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hepar.errors import DataError
from hepar.evaluation.label_pairs import LabelPair, SegmentedCase
from hepar.evaluation.stacks import SliceStack, stack_slices
from hepar.imaging.display import largest_slice, scale_to_window
from hepar.imaging.grid_rules import size_text
from hepar.imaging.masks import Mask


@dataclass(frozen=True)
class SlicePair:
    """A slice through a `LabelPair`: bool yx; a `reference_yx` of None is unknown."""

    reference_yx: Mask | None
    prediction_yx: Mask

    @property
    def masks_yx(self) -> tuple[Mask, ...]:
        """The prediction and, if known, the reference."""
        return (self.prediction_yx,) if self.reference_yx is None else (self.prediction_yx, self.reference_yx)


@dataclass(frozen=True)
class CaseSlice:
    """One axial slice with reference and prediction.

    `image_yx` is float32, windowed to 0…1. Row 0 is anterior and shown at the top, column 0 is the patient's right and
    shown on the left. `stack` holds the slices to scroll through.
    """

    case_id: str
    image_yx: NDArray[np.float32]
    liver: SlicePair
    tumour: SlicePair
    spacing_yx_mm: tuple[float, float]
    index_z: int
    stack: SliceStack


def pick_slice(
    case: SegmentedCase, image_zyx: NDArray[np.floating] | NDArray[np.integer], window: tuple[float, float]
) -> CaseSlice:
    """Pick the slice with the largest tumour area, else the largest liver area, and scale `window` to 0…1.

    The reference decides. If it is unknown or empty, the prediction does, so that false positives are shown; if all
    masks are empty, the middle slice is taken. `window` is (low, high) in the unit of the image, HU for CT. Arrays are
    in the canonical orientation, LPS: x to the patient's left, y to the back, z to the head.

    Raises DataError, naming the case, if shapes differ, the image is empty or the window is not low < high.
    """
    case_id, masks_zyx = case.identity.case_id, _by_precedence(case)
    low, high = window
    if not low < high:
        raise DataError(f"case {case_id}: window must be low < high but is {low} to {high}")
    if image_zyx.ndim != 3 or image_zyx.size == 0:
        shape = size_text(image_zyx.shape)
        raise DataError(f"case {case_id}: image must have voxels in z, y, x but is {shape}")
    for mask_zyx in masks_zyx:
        if mask_zyx.shape != image_zyx.shape:
            mask, image = size_text(mask_zyx.shape), size_text(image_zyx.shape)
            raise DataError(f"case {case_id}: mask is {mask} but the image is {image}")
    index_z = largest_slice(masks_zyx, image_zyx.shape[0])
    return CaseSlice(
        case_id=case_id,
        image_yx=scale_to_window(image_zyx[index_z], window),
        liver=_cut(case.liver, index_z),
        tumour=_cut(case.tumour, index_z),
        spacing_yx_mm=case.spacing_zyx_mm[1:],
        index_z=index_z,
        stack=stack_slices(case, image_zyx, window, index_z),
    )


def _by_precedence(case: SegmentedCase) -> tuple[Mask, ...]:
    """The known masks of a case: tumour before liver, reference before prediction."""
    masks_zyx = (
        case.tumour.reference_zyx,
        case.tumour.prediction_zyx,
        case.liver.reference_zyx,
        case.liver.prediction_zyx,
    )
    return tuple(mask_zyx for mask_zyx in masks_zyx if mask_zyx is not None)


def _cut(pair: LabelPair, index_z: int) -> SlicePair:
    # copies, so that a slice does not keep the volumes in memory
    reference_yx = None if pair.reference_zyx is None else np.array(pair.reference_zyx[index_z])
    return SlicePair(reference_yx, np.array(pair.prediction_zyx[index_z]))
