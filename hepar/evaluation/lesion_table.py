"""The table of lesions: how large and how certain each is, and whether it has a counterpart."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from enum import StrEnum

import pandas as pd
from scipy import ndimage

from hepar.evaluation.candidates import LesionCandidates
from hepar.evaluation.label_pairs import SegmentedCase
from hepar.evaluation.lesions import LesionMatching
from hepar.imaging.diameters import AxialDiameters, axial_diameters
from hepar.imaging.masks import Components, equivalent_diameter_mm, lesion_size, voxel_mm3
from hepar.imaging.volumes import Geometry
from hepar.inference.lesions import lesion_confidences

_ORIGIN = (0.0, 0.0, 0.0)
_CANONICAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)  # the direction of masks in a `SegmentedCase`


class LesionKind(StrEnum):
    """Whether an expert or the model drew a lesion."""

    REFERENCE = "reference"
    PREDICTED = "predicted"


@dataclass(frozen=True)
class LesionRow:
    """One lesion of a case, numbered from 1 in scan order among those of its kind.

    `matched`: it shares a voxel with a lesion of the other kind, which decides whether it counts at any overlap.
    `iou` is that of its group of merged lesions (see `match_lesions`), by which it counts at the higher thresholds; 0
    without a counterpart, also if all that it overlaps joined another lesion. Both are None if the tumours of the case
    are unknown.
    `confidence` is the highest probability in a predicted lesion; that of a reference lesion is the highest of the
    candidates that overlap it (see `LesionCandidates`), None if there are none. Volume and diameters are None if the
    voxel size is nominal. The axial diameters are those of RECIST, see `axial_diameters`.
    """

    case_id: str
    kind: LesionKind
    lesion: int
    volume_ml: float | None
    equivalent_diameter_mm: float | None
    longest_axial_diameter_mm: float | None
    perpendicular_diameter_mm: float | None
    size: str | None
    matched: bool | None
    iou: float | None
    confidence: float | None


def predicted_rows(case: SegmentedCase, lesions: Components, matching: LesionMatching | None) -> list[LesionRow]:
    """The rows of the predicted lesions of a case; `matching` is None if its tumours are unknown."""
    probability = case.tumour_probability
    known: Sequence[float | None] = (None,) * len(lesions.voxels)
    confidences = known if probability is None else lesion_confidences(lesions, probability.probability_zyx)
    if matching is None:
        return _rows(case, LesionKind.PREDICTED, lesions, None, confidences)
    ious = {label: group.iou for group in matching.groups for label in group.prediction_labels}
    overlapping = matching.overlapping_predictions
    matches = {label: (label in overlapping, iou) for label, iou in ious.items()}
    return _rows(case, LesionKind.PREDICTED, lesions, matches, confidences)


def reference_rows(
    case: SegmentedCase, lesions: Components, matching: LesionMatching, candidates: LesionCandidates | None
) -> list[LesionRow]:
    """The rows of the reference lesions of a case, missed ones included."""
    none = (None,) * len(lesions.voxels)
    ious = {label: group.iou for group in matching.groups for label in group.reference_labels}
    overlapping = matching.overlapping_references
    matches = {label: (label in overlapping, iou) for label, iou in ious.items()}
    confidences = none if candidates is None else candidates.reference_confidences
    return _rows(case, LesionKind.REFERENCE, lesions, matches, confidences)


def lesions_table(rows: Iterable[LesionRow]) -> pd.DataFrame:
    """The rows of all cases as a table; without rows it has only its columns."""
    columns = [item.name for item in fields(LesionRow)]
    return pd.DataFrame([[getattr(row, name) for name in columns] for row in rows], columns=columns)


def _rows(
    case: SegmentedCase,
    kind: LesionKind,
    lesions: Components,
    matches: Mapping[int, tuple[bool, float]] | None,
    confidences: Sequence[float | None],
) -> list[LesionRow]:
    """The rows of lesions, whose `matched` and `iou` are given by number; None if the tumours are unknown."""
    rows = []
    diameters = _axial_diameters(case, lesions)
    for number, voxels in enumerate(lesions.voxels.tolist(), start=1):
        measured = diameters[number - 1]
        volume_mm3 = voxels * voxel_mm3(case.spacing_zyx_mm)
        diameter_mm = None if measured is None else equivalent_diameter_mm(volume_mm3)
        matched, iou = (None, None) if matches is None else matches[number]
        rows.append(
            LesionRow(
                case_id=case.identity.case_id,
                kind=kind,
                lesion=number,
                volume_ml=None if measured is None else volume_mm3 / 1000,
                equivalent_diameter_mm=diameter_mm,
                longest_axial_diameter_mm=None if measured is None else measured.longest.length_mm,
                perpendicular_diameter_mm=None if measured is None else measured.perpendicular.length_mm,
                size=None if diameter_mm is None else lesion_size(diameter_mm),
                matched=matched,
                iou=iou,
                confidence=confidences[number - 1],
            )
        )
    return rows


def _axial_diameters(case: SegmentedCase, lesions: Components) -> list[AxialDiameters | None]:
    """The diameters of each lesion, by number; None if the voxel size is nominal."""
    if not case.distances_known or len(lesions.voxels) == 0:
        return [None] * len(lesions.voxels)
    found: list[AxialDiameters | None] = []
    for number, box in enumerate(ndimage.find_objects(lesions.labels_zyx), start=1):
        lesion_zyx = lesions.labels_zyx[box] == number
        z, y, x = lesion_zyx.shape
        found.append(axial_diameters(lesion_zyx, Geometry((z, y, x), case.spacing_zyx_mm, _ORIGIN, _CANONICAL)))
    return found
