"""Panoptic quality of lesions: how many are segmented, and how well.

Kirillov et al., CVPR 2019, with the face-connected components of a mask as instances. Unlike the matching of LiTS
nothing is merged: a reference lesion and a predicted component match if their IoU exceeds 0.5, so that each has at most
one match.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from hepar.evaluation.lesions import LesionMatching

IOU_ABOVE = 0.5


@dataclass(frozen=True)
class PanopticCounts:
    """Matched pairs, unmatched lesions and components, and the sum of the IoU of the matched pairs."""

    true_positives: int
    false_negatives: int
    false_positives: int
    iou_sum: float

    @property
    def pq_terms(self) -> tuple[float, float]:
        """Numerator and denominator of the panoptic quality, which are summed to pool cases."""
        return 2 * self.iou_sum, self.rq_terms[1]

    @property
    def sq_terms(self) -> tuple[float, float]:
        """Numerator and denominator of the segmentation quality, the mean IoU of matched pairs."""
        return self.iou_sum, self.true_positives

    @property
    def rq_terms(self) -> tuple[float, float]:
        """Numerator and denominator of the recognition quality, the F1 score of detection."""
        instances = 2 * self.true_positives + self.false_negatives + self.false_positives
        return 2 * self.true_positives, instances


def panoptic_counts(matching: LesionMatching) -> PanopticCounts:
    """Counts of one case; all are 0 if neither mask has a lesion."""
    ious = []
    for (reference, prediction), shared in matching.shared_voxels.items():
        union = matching.reference_voxels[reference - 1] + matching.prediction_voxels[prediction - 1] - shared
        ious.append(shared / union)
    matched = [iou for iou in ious if iou > IOU_ABOVE]
    return PanopticCounts(
        len(matched),
        len(matching.reference_voxels) - len(matched),
        len(matching.prediction_voxels) - len(matched),
        math.fsum(matched),
    )


def pool_panoptic(counts: Iterable[PanopticCounts]) -> PanopticCounts:
    """The counts of several cases as one."""
    listed = list(counts)
    return PanopticCounts(
        sum(count.true_positives for count in listed),
        sum(count.false_negatives for count in listed),
        sum(count.false_positives for count in listed),
        math.fsum(count.iou_sum for count in listed),
    )
