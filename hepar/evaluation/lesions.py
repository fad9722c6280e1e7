"""Lesion-wise detection: which tumours were found, and what was found that is none.

A lesion is a face-connected component. Matching follows the rule of LiTS (Bilic et al., Medical Image
Analysis 84, 2023): reference lesions that share the predicted component which covers them best are merged,
each predicted component joins the one (merged) reference lesion with which it shares most voxels, and the
pieces that join the same one are merged. A merged pair is a group; its intersection over union (IoU) decides
whether it counts as detected.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hepar.evaluation.masks import check_masks, joint_bounding_box
from hepar.imaging.masks import LESION_SIZES, Mask, equivalent_diameter_mm, label_components, lesion_size

IOU_THRESHOLDS = (0.0, 0.1, 0.5)


@dataclass(frozen=True)
class LesionGroup:
    """Merged reference lesions and the merged predicted components that belong to them.

    Labels count from 1 in scan order. One of the two tuples is empty for a lesion without a counterpart.
    """

    reference_labels: tuple[int, ...]
    prediction_labels: tuple[int, ...]
    intersection_voxels: int
    union_voxels: int

    @property
    def iou(self) -> float:
        return self.intersection_voxels / self.union_voxels


@dataclass(frozen=True)
class LesionMatching:
    """All groups of one case, and the size of each lesion (label 1 first)."""

    groups: tuple[LesionGroup, ...]
    reference_voxels: tuple[int, ...]
    prediction_voxels: tuple[int, ...]


@dataclass(frozen=True)
class LesionCounts:
    """Detection counts; sensitivity, precision and F1 are None where nothing could be counted."""

    true_positives: int
    false_negatives: int
    false_positives: int

    @property
    def mistakes(self) -> int:
        return self.false_positives + self.false_negatives

    @property
    def f1(self) -> float | None:
        total = 2 * self.true_positives + self.mistakes
        return None if total == 0 else 2 * self.true_positives / total

    @property
    def sensitivity(self) -> float | None:
        """Detected share of the reference lesions; None if there is none."""
        total = self.true_positives + self.false_negatives
        return None if total == 0 else self.true_positives / total

    @property
    def precision(self) -> float | None:
        """True share of what was found; None if nothing was found."""
        total = self.true_positives + self.false_positives
        return None if total == 0 else self.true_positives / total


@dataclass(frozen=True)
class LesionDetection:
    """Counts of one case at one IoU threshold: together, and by size bin if the voxel size is known."""

    iou_above: float
    counts: LesionCounts
    by_size: Mapping[str, LesionCounts] | None


def threshold_name(iou_above: float) -> str:
    """Key of an IoU threshold in metrics: ``iou>0``, ``iou>0.1``, ``iou>0.5``."""
    return f"iou>{iou_above:g}"


def match_lesions(reference_zyx: Mask, prediction_zyx: Mask) -> LesionMatching:
    """Match the face-connected components of two boolean masks of one shape.

    Every component is in exactly one group. Equal overlaps go to the component that comes first in scan
    order. Both masks empty: no groups. Raises ValueError for masks that cannot be compared.
    """
    check_masks(reference_zyx, prediction_zyx)
    box = joint_bounding_box(reference_zyx, prediction_zyx)
    if box is None:
        return LesionMatching((), (), ())
    reference_labels_zyx, reference_voxels = label_components(reference_zyx[box])
    prediction_labels_zyx, prediction_voxels = label_components(prediction_zyx[box])
    shared_voxels = _shared_voxels(reference_labels_zyx, prediction_labels_zyx)
    members = _pair_up(shared_voxels)
    members += [((label,), ()) for label in _left_over(len(reference_voxels), [pair[0] for pair in members])]
    members += [((), (label,)) for label in _left_over(len(prediction_voxels), [pair[1] for pair in members])]
    groups = []
    for references, predictions in members:
        intersection = sum(shared_voxels.get((r, p), 0) for r in references for p in predictions)
        total = sum(reference_voxels[r - 1] for r in references)
        total += sum(prediction_voxels[p - 1] for p in predictions)
        groups.append(LesionGroup(references, predictions, intersection, total - intersection))
    return LesionMatching(tuple(groups), tuple(reference_voxels.tolist()), tuple(prediction_voxels.tolist()))


def detect_lesions(matching: LesionMatching, iou_above: float, voxel_mm3: float | None) -> LesionDetection:
    """Count what is detected at IoU strictly above a threshold.

    A reference lesion is a true positive if its group is detected. A predicted component is a false positive
    if its group is not: pieces of one detected lesion are no false positives. Reference lesions are sorted
    into size bins by their own diameter, false positives by theirs; ``by_size`` is None if the voxel volume
    is (None).
    """
    detected = [group for group in matching.groups if group.iou > iou_above]
    missed = [group for group in matching.groups if group.iou <= iou_above]
    true_positives = [matching.reference_voxels[r - 1] for group in detected for r in group.reference_labels]
    false_negatives = [matching.reference_voxels[r - 1] for group in missed for r in group.reference_labels]
    false_positives = [matching.prediction_voxels[p - 1] for group in missed for p in group.prediction_labels]
    counts = LesionCounts(len(true_positives), len(false_negatives), len(false_positives))
    if voxel_mm3 is None:
        return LesionDetection(iou_above, counts, by_size=None)
    binned = [
        _count_by_size(sizes_voxels, voxel_mm3) for sizes_voxels in (true_positives, false_negatives, false_positives)
    ]
    by_size = {name: LesionCounts(*(one[name] for one in binned)) for name in LESION_SIZES}
    return LesionDetection(iou_above, counts, by_size)


def _shared_voxels(
    reference_labels_zyx: NDArray[np.int32], prediction_labels_zyx: NDArray[np.int32]
) -> dict[tuple[int, int], int]:
    """Number of voxels that a reference and a predicted component share, for those that share any."""
    both_zyx = (reference_labels_zyx > 0) & (prediction_labels_zyx > 0)
    pairs = np.stack([reference_labels_zyx[both_zyx], prediction_labels_zyx[both_zyx]])
    unique_pairs, voxels = np.unique(pairs, axis=1, return_counts=True)
    return {(int(r), int(p)): int(n) for r, p, n in zip(*unique_pairs, voxels, strict=True)}


def _pair_up(shared_voxels: Mapping[tuple[int, int], int]) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Groups of (reference labels, prediction labels) among the components that touch a counterpart."""
    best_prediction: dict[int, int] = {}
    for (reference, prediction), voxels in sorted(shared_voxels.items()):
        best = best_prediction.get(reference)
        if best is None or voxels > shared_voxels[reference, best]:
            best_prediction[reference] = prediction
    overlap_with: dict[int, dict[int, int]] = defaultdict(lambda: defaultdict(int))
    for (reference, prediction), voxels in sorted(shared_voxels.items()):
        overlap_with[prediction][best_prediction[reference]] += voxels
    pieces: dict[int, list[int]] = defaultdict(list)
    for prediction, overlaps in overlap_with.items():
        # max keeps the first of equals, and the overlaps were filled in scan order of the reference lesions
        pieces[max(overlaps, key=lambda key: overlaps[key])].append(prediction)
    merged: dict[int, list[int]] = defaultdict(list)
    for reference, key in best_prediction.items():
        merged[key].append(reference)
    return [(tuple(references), tuple(sorted(pieces[key]))) for key, references in merged.items()]


def _left_over(count: int, used: list[tuple[int, ...]]) -> list[int]:
    """The labels 1…count that are in none of the tuples."""
    taken = {label for labels in used for label in labels}
    return [label for label in range(1, count + 1) if label not in taken]


def _count_by_size(sizes_voxels: list[int], voxel_mm3: float) -> dict[str, int]:
    counts = dict.fromkeys(LESION_SIZES, 0)
    for voxels in sizes_voxels:
        counts[lesion_size(equivalent_diameter_mm(voxels * voxel_mm3))] += 1
    return counts
