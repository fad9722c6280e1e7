"""How people see scans: the intensities shown as black and white, the slice that is picked, and marks of modalities."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from hepar.cases import Modality
from hepar.imaging.masks import Mask

CT_WINDOW_HU = (-100.0, 240.0)  # where there is no preprocessing plan that has one
MR_PERCENTILES = (1.0, 99.5)  # of the volume
LIVER_SDS = 8.0  # from the median of the liver to black and to white
SD_OF_MAD = 1.4826  # SD over median absolute deviation, of a normal distribution
MODALITY_MARKERS = {"CT": "o", "MR": "^"}  # of matplotlib


def display_window(
    image_zyx: NDArray[np.floating] | NDArray[np.integer],
    modality: Modality,
    ct_window: tuple[float, float],
    liver_zyx: Mask | None = None,
) -> tuple[float, float]:
    """The intensities shown as black and white: `ct_window` for CT, for MR those around the liver or of the volume.

    MR has no unit, and percentiles of the volume follow its brightest organs: where kidneys, vessels or bile shine, the
    liver is nearly black. With a mask of the liver the window is its median ± `LIVER_SDS` robust SDs (1.4826 times the
    median absolute deviation, which lesions and vessels hardly move). The liver is then a middle grey, and lesions,
    mostly within 6 SDs of it, are not clipped. That is about as wide as a window of 340 HU in CT, where the liver has
    an SD of some 20 HU. Percentiles of the volume remain without a mask, and if it is empty or constant inside.
    """
    if modality == Modality.CT:
        return ct_window
    if liver_zyx is not None and liver_zyx.any():
        liver_n = image_zyx[liver_zyx].astype(np.float64)
        median = float(np.median(liver_n))
        if (reach := LIVER_SDS * SD_OF_MAD * float(np.median(np.abs(liver_n - median)))) > 0:
            return median - reach, median + reach
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
