"""The table of predicted lesions: how large and how certain each is, and whether an expert drew one there."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd

from hepar.evaluation.label_pairs import SegmentedCase
from hepar.imaging.masks import label_components, voxel_mm3
from hepar.inference.lesions import PredictedLesion

COLUMNS = ("case_id", "lesion", "volume_ml", "confidence", "overlaps_reference")


def lesion_rows(case: SegmentedCase, lesions: Sequence[PredictedLesion]) -> list[dict[str, object]]:
    """One row per predicted lesion of a case, numbered from 1 in scan order; none without a predicted lesion.

    `overlaps_reference` tells whether the lesion shares a voxel with the reference tumour; it is None if that is
    unknown. `volume_ml` is None if the voxel size is nominal.
    """
    return _rows(case, [(lesion.volume_ml, lesion.confidence) for lesion in lesions])


def mask_lesion_rows(case: SegmentedCase) -> list[dict[str, object]]:
    """The rows of `lesion_rows` of a mask without probabilities: the confidence of each lesion is None."""
    _, voxels = label_components(case.tumour.prediction_zyx)
    voxel_ml = voxel_mm3(case.spacing_zyx_mm) / 1000
    return _rows(case, [(n * voxel_ml, None) for n in voxels.tolist()])


def _rows(case: SegmentedCase, lesions: Sequence[tuple[float, float | None]]) -> list[dict[str, object]]:
    """The rows of lesions with these volumes in ml and confidences."""
    reference_zyx = case.tumour.reference_zyx
    found: set[int] = set()
    if reference_zyx is not None:
        labels_zyx, _ = label_components(case.tumour.prediction_zyx)
        found = set(np.unique(labels_zyx[reference_zyx]).tolist())
    return [
        {
            "case_id": case.identity.case_id,
            "lesion": lesion_number,
            "volume_ml": volume_ml if case.distances_known else None,
            "confidence": confidence,
            "overlaps_reference": None if reference_zyx is None else lesion_number in found,
        }
        for lesion_number, (volume_ml, confidence) in enumerate(lesions, start=1)
    ]


def lesions_table(rows: Iterable[dict[str, object]]) -> pd.DataFrame:
    """The rows of all cases as a table; without rows it has only its columns."""
    return pd.DataFrame(list(rows), columns=list(COLUMNS))
