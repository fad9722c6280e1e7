"""Intensities of CT and MR as networks see them.

Numpy and scipy alone, and nothing of hepar: an exported bundle carries a copy of this file.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.special import ndtri

CT_RANGE = (-1.0, 1.0)  # of a preprocessed CT
MR_AIR = 0.10  # of the 99th percentile: a twentieth includes noise in air, a tenth keeps the darkest livers
QUARTILE_LIMITS = (-3.0, 5.0)  # of an MR scaled by quartiles
LANDMARKS = 11  # of the scale by quantiles
Floats = npt.NDArray[np.floating]


def scale_ct(image_zyx: Floats, window_hu: Sequence[float]) -> npt.NDArray[np.float32]:
    """A CT with its HU window as -1 to 1, float32."""
    low, high = window_hu
    return ((np.clip(image_zyx, low, high) - low) * (2 / (high - low)) - 1).astype(np.float32)


def scale_mr(image_zyx: Floats, percentiles: Sequence[float], scale: str) -> npt.NDArray[np.float32]:
    """A whole MR clipped at percentiles of its body and scaled by one of `MR_SCALES`, float32; 0 without contrast."""
    body_n = image_zyx[mr_body(image_zyx)]
    if body_n.size == 0:
        return np.zeros_like(image_zyx)
    low, high = np.percentile(body_n, percentiles)
    if low == high:
        return np.zeros_like(image_zyx)
    scaled_zyx = MR_SCALES[scale](np.clip(image_zyx, low, high), np.clip(body_n, low, high), percentiles)
    return np.asarray(scaled_zyx, np.float32)


def mr_body(image_zyx: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """The voxels of an MR above a tenth of the way from air, 0 or the lowest value below it, to the 99th percentile."""
    air, bright = float(image_zyx.min(initial=0)), float(np.percentile(image_zyx, 99))
    return np.asarray(image_zyx > air + MR_AIR * (bright - air))


def _scale_linearly(clipped_zyx: Floats, body_n: Floats, percentiles: Sequence[float]) -> Floats:
    """Mean 0 and SD 1 inside the body."""
    return np.asarray((clipped_zyx - body_n.mean()) / body_n.std())


def _scale_by_quartiles(clipped_zyx: Floats, body_n: Floats, percentiles: Sequence[float]) -> Floats:
    """Median 0, and the quartiles of the body as far apart as a normal distribution's of SD 1.

    Bright bowel and fluid do not move the quartiles. What lies beyond `QUARTILE_LIMITS` is clipped.
    """
    low, median, high = np.percentile(body_n, (25, 50, 75))
    scale = max(float(high - low) / 1.349, 1e-6 * float(body_n.max() - body_n.min()))
    return np.asarray(np.clip((clipped_zyx - median) / scale, *QUARTILE_LIMITS))


def _scale_to_normal(clipped_zyx: Floats, body_n: Floats, percentiles: Sequence[float]) -> Floats:
    """The body's quantiles become those of a normal distribution, linearly between `LANDMARKS` of them.

    After Nyúl and Udupa, "On standardizing the MR image intensity scale", MRM 1999, with a normal distribution as the
    standard scale.
    """
    shares = np.linspace(percentiles[0], percentiles[1], LANDMARKS) / 100
    landmarks, places = np.unique(np.quantile(body_n, shares), return_index=True)
    return np.asarray(np.interp(clipped_zyx, landmarks, ndtri(np.clip(shares, 0.001, 0.999))[places]))


MR_SCALES: dict[str, Callable[[Floats, Floats, Sequence[float]], Floats]] = {
    "linear": _scale_linearly,
    "quartiles": _scale_by_quartiles,
    "quantiles": _scale_to_normal,
}
