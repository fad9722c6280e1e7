"""The probabilities that a report keeps, so that a case can be scored anew at any threshold.

Each structure is a volume of its own on the grid of the scan, in the box of liver and tumours with a margin: a float
probability of the whole scan would take a hundred times the space. A step of 1/255 is finer than any threshold or bin
is chosen, and NIfTI, unlike a chunked array, opens in every viewer over the scan.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from hepar.cases import STRUCTURES
from hepar.evaluation.label_pairs import SegmentedCase, case_box
from hepar.evaluation.report_folder import Report
from hepar.imaging.masks import enlarged
from hepar.imaging.volumes import Geometry, to_image, write_image
from hepar.inference.prediction import Segmentation

MARGIN_MM = 10.0
CERTAIN = 255  # the value of probability 1


@dataclass(frozen=True)
class KeptProbabilities:
    """Probabilities of the structures that a model was taught, uint8 zyx by name, and their grid."""

    values_zyx: dict[str, npt.NDArray[np.uint8]]
    geometry: Geometry


def keep_probabilities(case: SegmentedCase, predicted: Segmentation) -> KeptProbabilities:
    """What a report keeps of a predicted case."""
    box = enlarged(case_box(case), case.spacing_zyx_mm, MARGIN_MM)
    values_zyx = {
        name: np.rint(predicted.probability_in(structure, box) * CERTAIN).astype(np.uint8)
        for structure, name in enumerate(STRUCTURES)
        if name in predicted.taught
    }
    return KeptProbabilities(values_zyx, predicted.geometry.cropped(box))


def write_probabilities(kept: KeptProbabilities, report: Report, case_id: str) -> None:
    """Write the probabilities of a case into a report."""
    for name, value_zyx in kept.values_zyx.items():
        write_image(to_image(value_zyx, kept.geometry), report.probability(case_id, name))
