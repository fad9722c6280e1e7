"""All metrics of one case: the prediction against the expert's reference."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
import pandas as pd

from hepar.errors import DataError, one_line
from hepar.evaluation.calibration import ReliabilityCounts, voxel_reliability
from hepar.evaluation.candidates import LesionCandidates, rank_candidates
from hepar.evaluation.challenge_scores import ChaosScores, LitsScores, chaos_scores, lits_scores
from hepar.evaluation.label_pairs import (
    CaseIdentity,
    LabelPair,
    SegmentedCase,
    case_box,
    check_masks,
    check_spacing,
    cut_case,
)
from hepar.evaluation.lesion_table import LesionRow, predicted_rows, reference_rows
from hepar.evaluation.lesions import (
    IOU_THRESHOLDS,
    LesionDetection,
    LesionMatching,
    detect_lesions,
    match_components,
    threshold_name,
)
from hepar.evaluation.overlap import OverlapCounts, count_overlap, ratio, tumour_burden
from hepar.evaluation.panoptic import PanopticCounts, panoptic_counts
from hepar.evaluation.surface import AreaWeightedScores, surface_scores
from hepar.imaging.masks import LESION_SIZES, find_components, voxel_mm3
from hepar.params import SizeZYX, SpacingZYX

STRUCTURE_METRICS = ("dice", "nsd_2mm", "hd95_mm", "assd_mm", "mssd_mm", "rvd", "voe")
AREA_WEIGHTED_METRICS = {"nsd_2mm": "nsd", "hd95_mm": "hd95_mm", "assd_mm": "assd_mm"}  # fields by name in tables
_TABLE_METRICS = ("reference_volume_ml", "prediction_volume_ml", *STRUCTURE_METRICS)
_PANOPTIC_METRICS = ("pq", "sq", "rq")


@dataclass(frozen=True)
class StructureScores:
    """Metrics of the liver or the tumour in one case.

    `known` is False if the reference is unknown: then only the predicted volume is set. `one_empty`: exactly one mask
    is empty, so NSD is 0 and the distances are the image diagonal. Volumes and distances are None if the voxel size is
    nominal. `overlap` keeps the voxel counts for pooling; `area_weighted` has the distances by area of the surface, see
    `surface_scores`.
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
    area_weighted: AreaWeightedScores | None = None

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
class CaseScores:
    """All scores of one case; see `score_case`.

    `lesions` has one entry per IoU threshold (> 0, > 0.1, > 0.5) and is None, like `lits` and `panoptic`, if the tumour
    is unknown.
    `candidates` and `reliability`, the calibration of the voxels, are None also without probabilities.
    `specific` and `false_positive_volume_ml` are set for tumour-free cases only. The tumour burden is the tumour's
    share of the liver volume; its error is prediction - reference.
    """

    identity: CaseIdentity
    distances_known: bool
    liver: StructureScores
    tumour: StructureScores
    lesions: tuple[LesionDetection, ...] | None
    specific: bool | None
    false_positive_volume_ml: float | None
    burden_reference: float | None
    burden_prediction: float | None
    lits: LitsScores | None
    panoptic: PanopticCounts | None
    chaos: ChaosScores | None
    candidates: LesionCandidates | None
    reliability: ReliabilityCounts | None
    lesion_rows: tuple[LesionRow, ...]

    @property
    def tumour_free(self) -> bool:
        """True if an expert labelled the case tumour-free."""
        return self.tumour.known and not self.tumour.present

    @property
    def burden_error(self) -> float | None:
        """Predicted minus reference burden; None if either has no liver or a reference is unknown."""
        if self.burden_reference is None or self.burden_prediction is None:
            return None
        return self.burden_prediction - self.burden_reference


def score_case(case: SegmentedCase) -> CaseScores:
    """Score one case.

    An unknown reference (None) is not scored. An empty tumour reference means tumour-free: Dice, RVD and VOE are None,
    and everything predicted is a false positive (`specific`, `false_positive_volume_ml`, lesions, distances). With a
    nominal spacing all lengths and volumes are None; ratios stay.

    Raises DataError, naming the case, if a mask is not boolean zyx, shapes differ or the spacing is not positive.
    """
    _check(case)
    case = cut_case(case, case_box(case))
    liver_pair, tumour_pair = case.liver, case.tumour
    spacing_zyx_mm = case.spacing_zyx_mm if case.distances_known else None
    liver = _score_structure(liver_pair, spacing_zyx_mm, case.size_zyx, scored_if_absent=True)
    tumour = _score_structure(tumour_pair, spacing_zyx_mm, case.size_zyx, scored_if_absent=False)
    found = _find_lesions(case)
    lesions, lits = None, None
    if found.matching is not None and tumour.overlap is not None:
        lesion_voxel_mm3 = None if spacing_zyx_mm is None else voxel_mm3(spacing_zyx_mm)
        lesions = tuple(detect_lesions(found.matching, iou_above, lesion_voxel_mm3) for iou_above in IOU_THRESHOLDS)
        lits = lits_scores(found.matching, tumour.overlap, _overlap_with_tumour(liver_pair, tumour_pair))
    tumour_free = tumour.known and not tumour.present
    return CaseScores(
        identity=case.identity,
        distances_known=case.distances_known,
        liver=liver,
        tumour=tumour,
        lesions=lesions,
        specific=not tumour_pair.prediction_zyx.any() if tumour_free else None,
        false_positive_volume_ml=tumour.prediction_volume_ml if tumour_free else None,
        burden_reference=_burden(liver, tumour, of_reference=True),
        burden_prediction=_burden(liver, tumour, of_reference=False),
        lits=lits,
        panoptic=None if found.matching is None else panoptic_counts(found.matching),
        chaos=chaos_scores(liver.dice, liver.rvd, liver.assd_mm, liver.mssd_mm),
        candidates=found.candidates,
        reliability=voxel_reliability(case),
        lesion_rows=found.rows,
    )


def scores_table(scores: Sequence[CaseScores]) -> pd.DataFrame:
    """One row per case, one column per metric; a cell is empty if the metric is undefined or not scored.

    Without scores the table has no rows.
    """
    return pd.DataFrame([_table_row(case) for case in scores])


def area_weighted(scores: StructureScores, metric: str) -> float | None:
    """A distance by area, one of `AREA_WEIGHTED_METRICS`; None if the structure or the voxel size is unknown."""
    return None if scores.area_weighted is None else float(getattr(scores.area_weighted, AREA_WEIGHTED_METRICS[metric]))


def _check(case: SegmentedCase) -> None:
    try:
        check_spacing(case.spacing_zyx_mm)
        for mask_zyx in (case.liver.reference_zyx, case.tumour.reference_zyx, case.tumour.prediction_zyx):
            if mask_zyx is not None:
                check_masks(mask_zyx, case.liver.prediction_zyx)
    except ValueError as error:
        raise DataError(f"case {case.identity.case_id}: {one_line(error)}") from error


@dataclass(frozen=True)
class _FoundLesions:
    """The lesions of a case. `matching` is None if its tumours are unknown, `candidates` also without probabilities."""

    matching: LesionMatching | None
    candidates: LesionCandidates | None
    rows: tuple[LesionRow, ...]


def _find_lesions(case: SegmentedCase) -> _FoundLesions:
    predicted = find_components(case.tumour.prediction_zyx)
    if case.tumour.reference_zyx is None:
        return _FoundLesions(None, None, tuple(predicted_rows(case, predicted, None)))
    reference = find_components(case.tumour.reference_zyx)
    matching = match_components(reference, predicted)
    candidates = rank_candidates(case, reference, predicted, matching)
    rows = [*reference_rows(case, reference, matching, candidates), *predicted_rows(case, predicted, matching)]
    return _FoundLesions(matching, candidates, tuple(rows))


def _score_structure(
    pair: LabelPair, spacing_zyx_mm: SpacingZYX | None, size_zyx: SizeZYX, scored_if_absent: bool
) -> StructureScores:
    reference_zyx, prediction_zyx = pair.reference_zyx, pair.prediction_zyx
    voxel_ml = None if spacing_zyx_mm is None else voxel_mm3(spacing_zyx_mm) / 1000
    if reference_zyx is None:
        voxels = int(np.count_nonzero(prediction_zyx))
        return StructureScores(known=False, prediction_volume_ml=None if voxel_ml is None else voxels * voxel_ml)
    overlap = count_overlap(reference_zyx, prediction_zyx)
    defined = scored_if_absent or overlap.reference_voxels > 0
    surface = None
    if spacing_zyx_mm is not None:
        surface = surface_scores(reference_zyx, prediction_zyx, spacing_zyx_mm, size_zyx=size_zyx)
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
        area_weighted=None if surface is None else surface.area_weighted,
    )


def _overlap_with_tumour(liver: LabelPair, tumour: LabelPair) -> OverlapCounts | None:
    """Overlap of liver and tumour taken together; None if either reference is unknown."""
    if liver.reference_zyx is None or tumour.reference_zyx is None:
        return None
    return count_overlap(liver.reference_zyx | tumour.reference_zyx, liver.prediction_zyx | tumour.prediction_zyx)


def _burden(liver: StructureScores, tumour: StructureScores, of_reference: bool) -> float | None:
    """Tumour voxels per liver voxel; None if a reference is unknown or the liver is empty."""
    if liver.overlap is None or tumour.overlap is None:
        return None
    if of_reference:
        liver_voxels, tumour_voxels = liver.overlap.reference_voxels, tumour.overlap.reference_voxels
    else:
        liver_voxels, tumour_voxels = liver.overlap.prediction_voxels, tumour.overlap.prediction_voxels
    return tumour_burden(tumour_voxels, liver_voxels)


def _table_row(case: CaseScores) -> dict[str, object]:
    row: dict[str, object] = {**asdict(case.identity), "distances_known": case.distances_known}
    for name, structure in (("liver", case.liver), ("tumour", case.tumour)):
        row[f"{name}_known"] = structure.known
        row[f"{name}_one_empty"] = structure.one_empty
        for metric in _TABLE_METRICS:
            row[f"{name}_{metric}"] = getattr(structure, metric)
        for metric in AREA_WEIGHTED_METRICS:
            row[f"{name}_area_weighted_{metric}"] = area_weighted(structure, metric)
    for index, iou_above in enumerate(IOU_THRESHOLDS):
        counts = None if case.lesions is None else case.lesions[index].counts
        prefix = f"lesion_{threshold_name(iou_above)}"
        for metric in ("f1", "true_positives", "false_negatives", "false_positives"):
            row[f"{prefix}_{metric}"] = None if counts is None else getattr(counts, metric)
        by_size = None if case.lesions is None else case.lesions[index].by_size
        for size in LESION_SIZES:
            for metric in ("true_positives", "false_negatives", "false_positives"):
                row[f"{prefix}_{size}_{metric}"] = None if by_size is None else getattr(by_size[size], metric)
    for metric in (
        "specific",
        "false_positive_volume_ml",
        "burden_reference",
        "burden_prediction",
        "burden_error",
    ):
        row[metric] = getattr(case, metric)
    for metric in _PANOPTIC_METRICS:
        row[metric] = None if case.panoptic is None else ratio(*getattr(case.panoptic, f"{metric}_terms"))
    row["chaos_mean"] = None if case.chaos is None else case.chaos.mean
    return row
