"""Lesion-wise detection: true positives, false negatives and false positives.

A lesion is a face-connected component. Matching follows LiTS (Bilic et al., Medical Image Analysis 84, 2023): reference
lesions with the same best-overlapping predicted component are merged, each predicted component joins the (merged)
reference lesion with which it shares most voxels, and components that join the same lesion are merged. Such a merged
pair is a group; it counts as detected by its intersection over union (IoU). A threshold of 0 means any overlap: there
a lesion counts by itself, as in LUNA16, since the component that covers it may have joined another lesion.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hepar.evaluation.label_pairs import check_masks
from hepar.evaluation.overlap import ratio
from hepar.imaging.masks import LESION_SIZES, Components, Mask, equivalent_diameter_mm, find_components, lesion_size

IOU_THRESHOLDS = (0.0, 0.1, 0.5)


@dataclass(frozen=True)
class LesionGroup:
    """Merged reference lesions and the merged predicted components matched to them.

    Labels count from 1 in scan order. One of the two tuples is empty if there is no counterpart.
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
    """All groups of one case, the voxels of each lesion, label 1 first, and those that a reference lesion and a
    predicted component share, by their labels."""

    groups: tuple[LesionGroup, ...]
    reference_voxels: tuple[int, ...]
    prediction_voxels: tuple[int, ...]
    shared_voxels: Mapping[tuple[int, int], int]

    @property
    def overlapping_references(self) -> frozenset[int]:
        """The labels of the reference lesions that share a voxel with a predicted component."""
        return frozenset(reference for reference, _ in self.shared_voxels)

    @property
    def overlapping_predictions(self) -> frozenset[int]:
        """The labels of the predicted components that share a voxel with a reference lesion."""
        return frozenset(prediction for _, prediction in self.shared_voxels)


@dataclass(frozen=True)
class LesionCounts:
    """Detection counts; sensitivity, precision and F1 are None if their denominator is 0.

    True positives are reference lesions, also in precision and F1.
    """

    true_positives: int
    false_negatives: int
    false_positives: int

    @property
    def mistakes(self) -> int:
        return self.false_positives + self.false_negatives

    @property
    def f1(self) -> float | None:
        return ratio(*self.f1_terms)

    @property
    def sensitivity(self) -> float | None:
        """Detected share of the reference lesions; None without reference lesions."""
        return ratio(*self.sensitivity_terms)

    @property
    def precision(self) -> float | None:
        """True positives over true and false positives; None without either."""
        return ratio(*self.precision_terms)

    @property
    def f1_terms(self) -> tuple[int, int]:
        """Numerator and denominator of F1, which are summed to pool cases."""
        return 2 * self.true_positives, 2 * self.true_positives + self.mistakes

    @property
    def sensitivity_terms(self) -> tuple[int, int]:
        """Numerator and denominator of the sensitivity."""
        return self.true_positives, self.true_positives + self.false_negatives

    @property
    def precision_terms(self) -> tuple[int, int]:
        """Numerator and denominator of the precision."""
        return self.true_positives, self.true_positives + self.false_positives


@dataclass(frozen=True)
class LesionDetection:
    """Counts of one case at one IoU threshold: overall, and by size bin if the voxel size is known."""

    iou_above: float
    counts: LesionCounts
    by_size: Mapping[str, LesionCounts] | None


def threshold_name(iou_above: float) -> str:
    """Key of an IoU threshold in metrics: `iou>0`, `iou>0.1`, `iou>0.5`."""
    return f"iou>{iou_above:g}"


def match_lesions(reference_zyx: Mask, prediction_zyx: Mask) -> LesionMatching:
    """Match the components of two boolean masks zyx of the same shape.

    Every component is in exactly one group. Ties go to the component that comes first in scan order. Two empty masks
    give no groups. Raises ValueError if the masks cannot be compared.
    """
    check_masks(reference_zyx, prediction_zyx)
    return match_components(find_components(reference_zyx), find_components(prediction_zyx))


def match_components(reference: Components, prediction: Components) -> LesionMatching:
    """Match the components of two masks of the same shape, as `match_lesions` does."""
    reference_voxels, prediction_voxels = reference.voxels, prediction.voxels
    shared_voxels = count_shared_voxels(reference, prediction)
    members = _pair_components(shared_voxels)
    members += [((label,), ()) for label in _unmatched(len(reference_voxels), [pair[0] for pair in members])]
    members += [((), (label,)) for label in _unmatched(len(prediction_voxels), [pair[1] for pair in members])]
    groups = []
    for references, predictions in members:
        intersection = sum(shared_voxels.get((r, p), 0) for r in references for p in predictions)
        total = sum(reference_voxels[r - 1] for r in references)
        total += sum(prediction_voxels[p - 1] for p in predictions)
        groups.append(LesionGroup(references, predictions, intersection, total - intersection))
    sizes = tuple(reference_voxels.tolist()), tuple(prediction_voxels.tolist())
    return LesionMatching(tuple(groups), *sizes, shared_voxels)


def detect_lesions(matching: LesionMatching, iou_above: float, voxel_mm3: float | None) -> LesionDetection:
    """Count detections at an IoU strictly above `iou_above`; 0 means any overlap.

    A reference lesion is a true positive if its group is detected. A predicted component is a false positive if its
    group is not detected, so fragments of a detected lesion are not false positives. At any overlap a lesion or
    component is detected if it shares a voxel with a counterpart, whatever its group. Reference lesions are binned by
    their own size, false positives by theirs; `by_size` is None if `voxel_mm3` is None.
    """
    detected = [group for group in matching.groups if group.iou > iou_above]
    found = {label for group in detected for label in group.reference_labels}
    true = {label for group in detected for label in group.prediction_labels}
    if iou_above == 0:
        found, true = set(matching.overlapping_references), set(matching.overlapping_predictions)
    references = list(enumerate(matching.reference_voxels, start=1))
    true_positives = [voxels for label, voxels in references if label in found]
    false_negatives = [voxels for label, voxels in references if label not in found]
    false_positives = [voxels for label, voxels in enumerate(matching.prediction_voxels, start=1) if label not in true]
    counts = LesionCounts(len(true_positives), len(false_negatives), len(false_positives))
    if voxel_mm3 is None:
        return LesionDetection(iou_above, counts, by_size=None)
    binned = [
        _count_by_size(sizes_voxels, voxel_mm3) for sizes_voxels in (true_positives, false_negatives, false_positives)
    ]
    by_size = {name: LesionCounts(*(one[name] for one in binned)) for name in LESION_SIZES}
    return LesionDetection(iou_above, counts, by_size)


def count_shared_voxels(one: Components, other: Components) -> dict[tuple[int, int], int]:
    """The voxels that two components share, by their labels, for components of two masks of the same shape."""
    box = [slice(max(a.start, b.start), min(a.stop, b.stop)) for a, b in zip(one.box, other.box, strict=True)]
    if any(place.start >= place.stop for place in box):
        return {}
    labels_zyx, other_labels_zyx = _cut(one, box), _cut(other, box)
    both_zyx = (labels_zyx > 0) & (other_labels_zyx > 0)
    radix = len(other.voxels) + 1
    pair_n = labels_zyx[both_zyx].astype(np.int64) * radix + other_labels_zyx[both_zyx]
    pair_k, voxels_k = np.unique(pair_n, return_counts=True)
    return {divmod(pair, radix): voxels for pair, voxels in zip(pair_k.tolist(), voxels_k.tolist(), strict=True)}


def _cut(components: Components, box: Sequence[slice]) -> NDArray[np.int32]:
    """The labels in a box of the mask, which lies inside that of the components."""
    places = zip(box, components.box, strict=True)
    return components.labels_zyx[tuple(slice(here.start - own.start, here.stop - own.start) for here, own in places)]


def _pair_components(shared_voxels: Mapping[tuple[int, int], int]) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Groups of (reference labels, prediction labels) among the components that overlap a counterpart."""
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


def _unmatched(count: int, used: list[tuple[int, ...]]) -> list[int]:
    """The labels 1…count that none of the tuples contains."""
    taken = {label for labels in used for label in labels}
    return [label for label in range(1, count + 1) if label not in taken]


def _count_by_size(sizes_voxels: list[int], voxel_mm3: float) -> dict[str, int]:
    counts = dict.fromkeys(LESION_SIZES, 0)
    for voxels in sizes_voxels:
        counts[lesion_size(equivalent_diameter_mm(voxels * voxel_mm3))] += 1
    return counts
