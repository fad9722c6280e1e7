"""The lesions of a segmented scan: where they are, how large, and how certain the model is of them."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import ndimage

from hepar.imaging.masks import Components, Mask, find_components
from hepar.imaging.volumes import Geometry

if TYPE_CHECKING:
    from hepar.inference.sliding_window import Probabilities  # imports torch, which tables of scores do not need


@dataclass(frozen=True)
class PredictedLesion:
    """One component of the predicted tumour.

    `confidence` is the highest tumour probability in it on the grid of the scan, so it exceeds the threshold. The
    centre is the centroid, which may lie outside a curved lesion.
    """

    volume_ml: float
    confidence: float
    centre_index_zyx: tuple[float, float, float]
    centre_lps_mm: tuple[float, float, float]

    def shifted(self, first_zyx: tuple[int, ...]) -> PredictedLesion:
        """The lesion of a part of a scan that starts at a voxel, in the scan."""
        z, y, x = (place + first for place, first in zip(self.centre_index_zyx, first_zyx, strict=True))
        return replace(self, centre_index_zyx=(z, y, x))

    def rounded(self) -> dict[str, Any]:
        """The values by name: volume and confidence to three digits, the centre to one."""
        return {
            name: [round(item, 1) for item in value] if isinstance(value, tuple) else round(value, 3)
            for name, value in asdict(self).items()
        }


def measure_lesions(
    tumour_zyx: Mask, probability_zyx: Probabilities, geometry: Geometry
) -> tuple[PredictedLesion, ...]:
    """The components of a tumour mask in scan order, as `find_components` numbers them; () for an empty mask.

    `probability_zyx` is the tumour probability, float32 of the same shape, and `geometry` their grid.
    """
    lesions = find_components(tumour_zyx)
    if len(lesions.voxels) == 0:
        return ()
    numbers = np.arange(1, len(lesions.voxels) + 1)
    in_box_zyx = np.array(ndimage.center_of_mass(lesions.labels_zyx > 0, lesions.labels_zyx, numbers))
    centres_zyx = in_box_zyx + [part.start for part in lesions.box]
    confidences = lesion_confidences(lesions, probability_zyx)
    return tuple(
        PredictedLesion(float(n * geometry.voxel_ml), confidence, (z, y, x), geometry.to_lps_mm((z, y, x)))
        for n, confidence, (z, y, x) in zip(lesions.voxels, confidences, centres_zyx.tolist(), strict=True)
    )


def lesion_confidences(lesions: Components, probability_zyx: Probabilities) -> tuple[float, ...]:
    """The highest probability in each component of a mask, which has the shape of `probability_zyx`."""
    highest = np.zeros(len(lesions.voxels) + 1)
    np.maximum.at(highest, lesions.labels_zyx.ravel(), probability_zyx[lesions.box].ravel())
    return tuple(highest[1:].tolist())
