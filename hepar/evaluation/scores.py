"""All metrics of one case: what the prediction is worth against what the expert drew.

The liver masks include the tumour. Arrays are indexed z, y, x.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from hepar.errors import DataError
from hepar.evaluation.conventions import (
    ChaosScores,
    chaos_scores,
    lits_lesion_counts,
    lits_tumour_burden_difference,
    lits_tumour_dice,
)
from hepar.evaluation.lesions import (
    IOU_THRESHOLDS,
    LesionCounts,
    LesionDetection,
    LesionMatching,
    detect_lesions,
    match_lesions,
    threshold_name,
)
from hepar.evaluation.masks import SpacingMm, check_masks, check_spacing
from hepar.evaluation.overlap import OverlapCounts, count_overlap
from hepar.evaluation.surface import surface_scores
from hepar.imaging.masks import Mask

_LITS_IOU_THRESHOLDS = (0.0, 0.5)
_TABLE_METRICS = (
    "reference_volume_ml",
    "prediction_volume_ml",
    "dice",
    "nsd_2mm",
    "hd95_mm",
    "assd_mm",
    "mssd_mm",
    "rvd",
    "voe",
)


@dataclass(frozen=True)
class StructureScores:
    """Metrics of the liver or of the tumour in one case.

    ``known`` False: the reference is unknown, nothing is scored and only the prediction's volume is there.
    ``one_empty``: exactly one mask is empty, so NSD is 0 and the distances are the image's diagonal. Volumes
    and distances are None if the voxel size is only nominal. ``overlap`` holds the voxel counts, for pooling.
    """

    known: bool
    overlap: OverlapCounts | None = None
    reference_volume_ml: float | None = None
    prediction_volume_ml: float | None = None
    dice: float | None = None
    rvd: float | None = None
    voe: float | None = None
    nsd_2mm: float | None = None
    hd95_mm: float | None = None
    assd_mm: float | None = None
    mssd_mm: float | None = None

    @property
    def one_empty(self) -> bool:
        return self.overlap is not None and self.overlap.one_empty

    @property
    def both_empty(self) -> bool:
        return self.overlap is not None and self.overlap.both_empty

    @property
    def present(self) -> bool:
        """True if the reference has the structure; False if it is absent or unknown."""
        return self.overlap is not None and self.overlap.reference_voxels > 0


@dataclass(frozen=True)
class LitsScores:
    """One case in the conventions of LiTS; what needs a liver reference is None without one."""

    tumour_dice: float
    lesions: tuple[LesionCounts, ...]
    liver_dice: float | None
    burden_difference: float | None


@dataclass(frozen=True)
class CaseScores:
    """Everything that is scored of one case; see ``score_case``.

    ``lesions`` has one entry per IoU threshold (> 0, > 0.1, > 0.5) and is None, like ``lits``, if the
    tumour's state is unknown. ``specific`` and ``false_positive_volume_ml`` are for tumour-free cases only.
    The tumour burden is the tumour's share of the liver's volume, its error prediction - reference.
    """

    case_id: str
    patient_id: str
    modality: str
    sequence: str
    source: str
    distances_known: bool
    liver: StructureScores
    tumour: StructureScores
    lesions: tuple[LesionDetection, ...] | None
    specific: bool | None
    false_positive_volume_ml: float | None
    burden_reference: float | None
    burden_prediction: float | None
    lits: LitsScores | None
    chaos: ChaosScores | None

    @property
    def tumour_free(self) -> bool:
        """True if an expert said that there is no tumour."""
        return self.tumour.known and not self.tumour.present

    @property
    def burden_error(self) -> float | None:
        """Predicted minus reference burden; None if either has no liver or the reference is unknown."""
        if self.burden_reference is None or self.burden_prediction is None:
            return None
        return self.burden_prediction - self.burden_reference


def score_case(
    case_id: str,
    patient_id: str,
    modality: str,
    sequence: str,
    source: str,
    liver_reference_zyx: Mask | None,
    tumour_reference_zyx: Mask | None,
    liver_prediction_zyx: Mask,
    tumour_prediction_zyx: Mask,
    spacing_zyx_mm: SpacingMm,
    distances_known: bool,
) -> CaseScores:
    """Score one predicted case against its reference.

    Masks are boolean arrays of one shape; a liver mask includes its tumour. A reference of None means that
    its state is unknown: not scored. A tumour reference without a voxel means tumour-free: Dice, RVD and VOE
    are not defined, and what was predicted counts as false positive (``specific``,
    ``false_positive_volume_ml``, lesions, distances). ``distances_known`` False says that the spacing is
    nominal: what is in mm or ml is None, ratios stay.

    Raises DataError, naming the case, for masks of another shape or type and for a spacing that is not
    positive.
    """
    masks_zyx = (liver_reference_zyx, tumour_reference_zyx, tumour_prediction_zyx)
    try:
        check_spacing(spacing_zyx_mm)
        for mask_zyx in masks_zyx:
            if mask_zyx is not None:
                check_masks(mask_zyx, liver_prediction_zyx)
    except ValueError as error:
        raise DataError(f"case {case_id}: {error}") from error
    spacing = spacing_zyx_mm if distances_known else None
    liver = _score_structure(liver_reference_zyx, liver_prediction_zyx, spacing, scored_if_absent=True)
    tumour = _score_structure(tumour_reference_zyx, tumour_prediction_zyx, spacing, scored_if_absent=False)
    lesions, lits = None, None
    if tumour_reference_zyx is not None:
        matching = match_lesions(tumour_reference_zyx, tumour_prediction_zyx)
        voxel_mm3 = None if spacing is None else float(np.prod(spacing))
        lesions = tuple(detect_lesions(matching, iou_above, voxel_mm3) for iou_above in IOU_THRESHOLDS)
        liver_with_tumour = None
        if liver_reference_zyx is not None:
            liver_with_tumour = count_overlap(
                liver_reference_zyx | tumour_reference_zyx, liver_prediction_zyx | tumour_prediction_zyx
            )
        lits = _score_lits(matching, count_overlap(tumour_reference_zyx, tumour_prediction_zyx), liver_with_tumour)
    tumour_free = tumour.known and not tumour.present
    return CaseScores(
        case_id=case_id,
        patient_id=patient_id,
        modality=modality,
        sequence=sequence,
        source=source,
        distances_known=distances_known,
        liver=liver,
        tumour=tumour,
        lesions=lesions,
        specific=not tumour_prediction_zyx.any() if tumour_free else None,
        false_positive_volume_ml=tumour.prediction_volume_ml if tumour_free else None,
        burden_reference=_burden(liver, tumour, of_reference=True),
        burden_prediction=_burden(liver, tumour, of_reference=False),
        lits=lits,
        chaos=chaos_scores(liver.dice, liver.rvd, liver.assd_mm, liver.mssd_mm),
    )


def scores_table(scores: Sequence[CaseScores]) -> pd.DataFrame:
    """One row per case with every metric in a column of its own; an empty cell is not defined or not scored.

    No scores: a table without rows.
    """
    return pd.DataFrame([_table_row(case) for case in scores])


def _score_structure(
    reference_zyx: Mask | None, prediction_zyx: Mask, spacing_zyx_mm: SpacingMm | None, scored_if_absent: bool
) -> StructureScores:
    voxel_ml = None if spacing_zyx_mm is None else float(np.prod(spacing_zyx_mm)) / 1000
    if reference_zyx is None:
        voxels = int(np.count_nonzero(prediction_zyx))
        return StructureScores(known=False, prediction_volume_ml=None if voxel_ml is None else voxels * voxel_ml)
    overlap = count_overlap(reference_zyx, prediction_zyx)
    defined = scored_if_absent or overlap.reference_voxels > 0
    surface = None if spacing_zyx_mm is None else surface_scores(reference_zyx, prediction_zyx, spacing_zyx_mm)
    return StructureScores(
        known=True,
        overlap=overlap,
        reference_volume_ml=None if voxel_ml is None else overlap.reference_voxels * voxel_ml,
        prediction_volume_ml=None if voxel_ml is None else overlap.prediction_voxels * voxel_ml,
        dice=overlap.dice if defined else None,
        rvd=overlap.relative_volume_difference if defined else None,
        voe=overlap.volumetric_overlap_error if defined else None,
        nsd_2mm=None if surface is None else surface.nsd,
        hd95_mm=None if surface is None else surface.hd95_mm,
        assd_mm=None if surface is None else surface.assd_mm,
        mssd_mm=None if surface is None else surface.mssd_mm,
    )


def _burden(liver: StructureScores, tumour: StructureScores, of_reference: bool) -> float | None:
    """Tumour voxels per liver voxel; None if either reference is unknown or there is no liver to divide
    by."""
    if liver.overlap is None or tumour.overlap is None:
        return None
    if of_reference:
        liver_voxels, tumour_voxels = liver.overlap.reference_voxels, tumour.overlap.reference_voxels
    else:
        liver_voxels, tumour_voxels = liver.overlap.prediction_voxels, tumour.overlap.prediction_voxels
    return None if liver_voxels == 0 else tumour_voxels / liver_voxels


def _score_lits(matching: LesionMatching, tumour: OverlapCounts, liver_with_tumour: OverlapCounts | None) -> LitsScores:
    return LitsScores(
        tumour_dice=lits_tumour_dice(tumour),
        lesions=tuple(lits_lesion_counts(matching, iou_above) for iou_above in _LITS_IOU_THRESHOLDS),
        liver_dice=None if liver_with_tumour is None else liver_with_tumour.dice,
        burden_difference=(
            None if liver_with_tumour is None else lits_tumour_burden_difference(liver_with_tumour, tumour)
        ),
    )


def _table_row(case: CaseScores) -> dict[str, object]:
    row: dict[str, object] = {
        name: getattr(case, name) for name in ("case_id", "patient_id", "modality", "sequence", "source")
    }
    for name, structure in (("liver", case.liver), ("tumour", case.tumour)):
        row[f"{name}_known"] = structure.known
        row[f"{name}_one_empty"] = structure.one_empty
        for metric in _TABLE_METRICS:
            row[f"{name}_{metric}"] = getattr(structure, metric)
    for index, iou_above in enumerate(IOU_THRESHOLDS):
        counts = None if case.lesions is None else case.lesions[index].counts
        prefix = f"lesion_{threshold_name(iou_above)}"
        for metric in ("f1", "true_positives", "false_negatives", "false_positives"):
            row[f"{prefix}_{metric}"] = None if counts is None else getattr(counts, metric)
    for metric in (
        "specific",
        "false_positive_volume_ml",
        "burden_reference",
        "burden_prediction",
        "burden_error",
    ):
        row[metric] = getattr(case, metric)
    row["chaos_mean"] = None if case.chaos is None else case.chaos.mean
    return row
