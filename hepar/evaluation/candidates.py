"""Lesion candidates of a case: its predicted lesions, and what the model held for less likely.

A curve over all confidences needs lesions that the model's threshold left out. Candidates are the predicted lesions,
and beside them each component of tumour probability above `CANDIDATE_PROBABILITY` that touches no predicted lesion and
is neither outside the predicted liver nor smaller than a lesion may be. So the curve passes through the point at which
the model was scored. Components at one low threshold alone would not do: it makes lesions larger and joins neighbours.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from hepar.evaluation.label_pairs import SegmentedCase, TumourProbability
from hepar.evaluation.lesions import LesionMatching, count_shared_voxels
from hepar.imaging.masks import Components, find_components
from hepar.inference.lesions import lesion_confidences

CANDIDATE_PROBABILITY = 0.1


@dataclass(frozen=True)
class LesionCandidates:
    """The candidates of one case whose tumours are known, predicted lesions first.

    `confidences` are highest probabilities. `ious` has the intersection over union of each candidate and each reference
    lesion that share a voxel, by reference and candidate, both numbered from 0; no lesions are merged.
    """

    confidences: tuple[float, ...]
    references: int
    ious: Mapping[tuple[int, int], float]

    @cached_property
    def overlapping(self) -> tuple[bool, ...]:
        """Whether each candidate shares a voxel with a reference lesion."""
        hits = {candidate for _, candidate in self.ious}
        return tuple(candidate in hits for candidate in range(len(self.confidences)))

    @cached_property
    def reference_confidences(self) -> tuple[float | None, ...]:
        """The highest confidence of the candidates that share a voxel with each reference lesion; None without one."""
        best: list[float | None] = [None] * self.references
        for reference, candidate in self.ious:
            known = best[reference]
            best[reference] = max(self.confidences[candidate], -np.inf if known is None else known)
        return tuple(best)

    def matched(self, iou_above: float) -> tuple[bool, ...]:
        """Whether each candidate is the match of a reference lesion, one to one, at an IoU above `iou_above`.

        Candidates choose in the order of their confidence, each the lesion of highest IoU that is still free (as in
        COCO and nnDetection). Equals choose in their order.
        """
        free = set(range(self.references))
        matched = [False] * len(self.confidences)
        for candidate in sorted(range(len(matched)), key=lambda number: -self.confidences[number]):
            ious = {r: self.ious[r, candidate] for r in sorted(free) if self.ious.get((r, candidate), 0.0) > iou_above}
            if ious:
                free.remove(max(ious, key=lambda reference: ious[reference]))
                matched[candidate] = True
        return tuple(matched)


def rank_candidates(
    case: SegmentedCase, reference: Components, predicted: Components, matching: LesionMatching
) -> LesionCandidates | None:
    """The candidates of a case, from its lesions and predicted lesions; None without probabilities."""
    probability = case.tumour_probability
    if probability is None:
        return None
    others = _other_candidates(case, probability)
    confidences = [lesion_confidences(found, probability.probability_zyx) for found in (predicted, others)]
    shared = {(r - 1, p - 1): voxels for (r, p), voxels in matching.shared_voxels.items()}
    for (r, p), voxels in count_shared_voxels(reference, others).items():
        shared[r - 1, len(predicted.voxels) + p - 1] = voxels
    candidate_voxels = [*predicted.voxels.tolist(), *others.voxels.tolist()]
    reference_voxels = reference.voxels.tolist()
    ious = {(r, c): voxels / (reference_voxels[r] + candidate_voxels[c] - voxels) for (r, c), voxels in shared.items()}
    return LesionCandidates((*confidences[0], *confidences[1]), len(reference_voxels), ious)


def _other_candidates(case: SegmentedCase, probability: TumourProbability) -> Components:
    """The components of low probability that touch no predicted lesion, renumbered from 1."""
    predicted_zyx = case.tumour.prediction_zyx
    likely_zyx = probability.probability_zyx > CANDIDATE_PROBABILITY
    if probability.inside_liver:
        likely_zyx &= case.liver.prediction_zyx
    likely_zyx |= predicted_zyx
    found = find_components(likely_zyx)
    kept = found.voxels >= probability.min_lesion_voxels
    kept[found.labels_zyx[predicted_zyx[found.box]] - 1] = False
    number = np.concatenate([[0], np.where(kept, np.cumsum(kept), 0)]).astype(np.int32)
    return Components(number[found.labels_zyx], found.voxels[kept], found.box)
