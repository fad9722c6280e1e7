"""The lesions of a segmented scan: where they are, how large, and how certain the model is of them."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy import ndimage

from hepar.imaging.masks import Mask, label_components
from hepar.imaging.volumes import Geometry
from hepar.inference.sliding_window import Probabilities


@dataclass(frozen=True)
class PredictedLesion:
    """One component of the predicted tumour.

    `confidence` is the mean tumour probability of its voxels on the grid of the scan, so it exceeds the threshold. The
    centre is the centroid, which may lie outside a curved lesion.
    """

    volume_ml: float
    confidence: float
    centre_index_zyx: tuple[float, float, float]
    centre_lps_mm: tuple[float, float, float]

    def rounded(self) -> dict[str, Any]:
        """The values by name: volume and confidence to three digits, the centre to one."""
        return {
            name: [round(item, 1) for item in value] if isinstance(value, tuple) else round(value, 3)
            for name, value in asdict(self).items()
        }


def measure_lesions(
    tumour_zyx: Mask, probability_zyx: Probabilities, geometry: Geometry
) -> tuple[PredictedLesion, ...]:
    """The components of a tumour mask in scan order, as `label_components` numbers them; () for an empty mask.

    `probability_zyx` is the tumour probability, float32 of the same shape, and `geometry` their grid.
    """
    labels_zyx, voxels = label_components(tumour_zyx)
    if len(voxels) == 0:
        return ()
    numbers = np.arange(1, len(voxels) + 1)
    confidences = ndimage.mean(probability_zyx, labels_zyx, numbers)
    centres_zyx = np.array(ndimage.center_of_mass(tumour_zyx, labels_zyx, numbers)).tolist()
    return tuple(
        PredictedLesion(float(n * geometry.voxel_ml), float(confidence), (z, y, x), geometry.to_lps_mm((z, y, x)))
        for n, confidence, (z, y, x) in zip(voxels, confidences, centres_zyx, strict=True)
    )
