"""The axial slice of a case that the report shows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hepar.cases import Modality
from hepar.errors import DataError
from hepar.evaluation.label_pairs import LabelPair, SegmentedCase, shape_text
from hepar.imaging.masks import Mask

_MR_PERCENTILES = (1.0, 99.5)


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
    shown on the left.
    """

    case_id: str
    image_yx: NDArray[np.float32]
    liver: SlicePair
    tumour: SlicePair
    spacing_yx_mm: tuple[float, float]
    index_z: int


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
        shape = shape_text(image_zyx.shape)
        raise DataError(f"case {case_id}: image must have voxels in z, y, x but is {shape}")
    for mask_zyx in masks_zyx:
        if mask_zyx.shape != image_zyx.shape:
            mask, image = shape_text(mask_zyx.shape), shape_text(image_zyx.shape)
            raise DataError(f"case {case_id}: mask is {mask} but the image is {image}")
    index_z = _largest_slice(image_zyx.shape[0], masks_zyx)
    image_yx = (image_zyx[index_z].astype(np.float32) - low) / (high - low)
    return CaseSlice(
        case_id=case_id,
        image_yx=np.clip(image_yx, 0, 1).astype(np.float32),
        liver=_cut(case.liver, index_z),
        tumour=_cut(case.tumour, index_z),
        spacing_yx_mm=case.spacing_zyx_mm[1:],
        index_z=index_z,
    )


def display_window(
    image_zyx: NDArray[np.floating] | NDArray[np.integer], modality: Modality, window_hu: tuple[float, float]
) -> tuple[float, float]:
    """The intensities shown as black and white: `window_hu` for CT, percentiles of the volume for MR."""
    if modality == Modality.CT:
        return window_hu
    low, high = np.percentile(image_zyx, _MR_PERCENTILES)
    return float(low), float(max(high, low + 1e-6))  # a constant volume has a window too


def _by_precedence(case: SegmentedCase) -> tuple[Mask, ...]:
    """The known masks of a case: tumour before liver, reference before prediction."""
    masks_zyx = (
        case.tumour.reference_zyx,
        case.tumour.prediction_zyx,
        case.liver.reference_zyx,
        case.liver.prediction_zyx,
    )
    return tuple(mask_zyx for mask_zyx in masks_zyx if mask_zyx is not None)


def _largest_slice(slices: int, masks_zyx: tuple[Mask, ...]) -> int:
    """The slice with the largest area of the first mask that is not empty; the middle one if all are."""
    for mask_zyx in masks_zyx:
        if mask_zyx.any():
            return int(mask_zyx.sum(axis=(1, 2)).argmax())
    return slices // 2


def _cut(pair: LabelPair, index_z: int) -> SlicePair:
    # copies, so that a slice does not keep the volumes in memory
    reference_yx = None if pair.reference_zyx is None else np.array(pair.reference_zyx[index_z])
    return SlicePair(reference_yx, np.array(pair.prediction_zyx[index_z]))
