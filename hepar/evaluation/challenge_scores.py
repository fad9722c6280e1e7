"""Scores of two public challenges, by the challenges' own rules and kept apart from ours.

LiTS (Bilic et al., Medical Image Analysis 84, 2023, and its public scoring code): the liver is every label ≥ 1, tumour
included; merged lesions count once on both sides; two empty tumour masks have Dice 1; a prediction without liver tissue
has a tumour burden of 9001. CHAOS (Kavur et al., Medical Image Analysis 69, 2021): four measures of the liver, each
mapped to 0…100 points, and their mean.
"""

from __future__ import annotations

from dataclasses import dataclass

from hepar.evaluation.lesions import LesionCounts, LesionMatching
from hepar.evaluation.overlap import OverlapCounts, tumour_burden

LITS_PENALTY = 9001.0
LITS_IOU_THRESHOLDS = (0.0, 0.5)


@dataclass(frozen=True)
class LitsScores:
    """LiTS scores of one case. Liver Dice and burden difference are None without a liver reference.

    `lesions` has one entry per IoU threshold (> 0, > 0.5).
    """

    tumour_dice: float
    lesions: tuple[LesionCounts, ...]
    liver_dice: float | None
    burden_difference: float | None


@dataclass(frozen=True)
class ChaosScores:
    """CHAOS points, 0…100 each."""

    dice: float
    ravd: float
    assd: float
    mssd: float

    @property
    def mean(self) -> float:
        return (self.dice + self.ravd + self.assd + self.mssd) / 4


def chaos_scores(
    dice: float | None, rvd: float | None, assd_mm: float | None, mssd_mm: float | None
) -> ChaosScores | None:
    """CHAOS points from the liver's Dice (0…1), signed RVD (fraction), ASSD and MSSD; None if any is None.

    A measure at its threshold still scores; beyond it scores 0.
    """
    if dice is None or rvd is None or assd_mm is None or mssd_mm is None:
        return None
    ravd_percent = 100 * abs(rvd)
    return ChaosScores(
        dice=100 * dice if dice >= 0.8 else 0.0,
        ravd=max(0.0, 100 - 20 * ravd_percent),
        assd=max(0.0, 100 - 100 / 15 * assd_mm),
        mssd=max(0.0, 100 - 100 / 60 * mssd_mm),
    )


def lits_scores(matching: LesionMatching, tumour: OverlapCounts, liver: OverlapCounts | None) -> LitsScores:
    """LiTS scores from the matched lesions and the overlap of tumour and liver, where `liver` counts labels ≥ 1; None
    for an unknown liver."""
    return LitsScores(
        tumour_dice=lits_tumour_dice(tumour),
        lesions=tuple(lits_lesion_counts(matching, iou_above) for iou_above in LITS_IOU_THRESHOLDS),
        liver_dice=None if liver is None else liver.dice,
        burden_difference=None if liver is None else lits_tumour_burden_difference(liver, tumour),
    )


def lits_lesion_counts(matching: LesionMatching, iou_above: float) -> LesionCounts:
    """Detections by the LiTS rule: a group of merged lesions counts once, and is detected if its IoU is strictly
    above `iou_above`."""
    detected = sum(group.iou > iou_above for group in matching.groups)
    references = sum(bool(group.reference_labels) for group in matching.groups)
    predictions = sum(bool(group.prediction_labels) for group in matching.groups)
    return LesionCounts(detected, references - detected, predictions - detected)


def lits_tumour_dice(tumour: OverlapCounts) -> float:
    """Tumour Dice of one case; 1 if both masks are empty."""
    dice = tumour.dice
    return 1.0 if dice is None else dice


def lits_tumour_burden_difference(liver: OverlapCounts, tumour: OverlapCounts) -> float | None:
    """Reference minus predicted tumour burden, where `liver` counts labels ≥ 1; None if the reference has no liver."""
    reference = tumour_burden(tumour.reference_voxels, liver.reference_voxels)
    prediction = tumour_burden(tumour.prediction_voxels, liver.prediction_voxels)
    if reference is None:
        return None
    if prediction is None or liver.prediction_voxels == tumour.prediction_voxels:  # no liver tissue
        return reference - LITS_PENALTY
    return reference - prediction
