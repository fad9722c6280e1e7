"""How people see scans: the intensities shown as black and white, the slice that is picked, and marks of modalities."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from hepar.cases import Modality
from hepar.imaging.masks import Mask

CT_WINDOW_HU = (-100.0, 240.0)  # where there is no preprocessing plan that has one
MR_PERCENTILES = (1.0, 99.5)  # of the volume
MODALITY_MARKERS = {"CT": "o", "MR": "^"}  # of matplotlib


def display_window(
    image_zyx: NDArray[np.floating] | NDArray[np.integer], modality: Modality, ct_window: tuple[float, float]
) -> tuple[float, float]:
    """The intensities shown as black and white: `ct_window` for CT, percentiles of the volume for MR."""
    if modality == Modality.CT:
        return ct_window
    low, high = np.percentile(image_zyx, MR_PERCENTILES)
    return float(low), float(max(high, low + 1e-6))  # a constant volume has a window too


def scale_to_window(image: NDArray[np.generic], window: tuple[float, float]) -> NDArray[np.float32]:
    """An image of any dimension in 0…1, float32: `window` (low, high) is scaled, and what lies outside is clipped."""
    low, high = window
    return np.asarray(np.clip((image.astype(np.float32) - low) / (high - low), 0, 1), np.float32)


def largest_slice(masks_zyx: Iterable[Mask], slices: int) -> int:
    """The slice with the largest area of the first mask that is not empty; the middle one of `slices` if all are."""
    for mask_zyx in masks_zyx:
        if mask_zyx.any():
            return int(mask_zyx.sum(axis=(1, 2)).argmax())
    return slices // 2
