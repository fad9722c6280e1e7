"""Overlap of two masks: Dice, relative volume difference, volumetric overlap error.

All of them follow from three voxel counts, so the masks are read once and the counts are pooled. Masks are boolean
arrays zyx. Definitions: Heimann et al., IEEE TMI 28(8), 2009 (SLIVER07).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from hepar.evaluation.label_pairs import check_masks
from hepar.imaging.masks import Mask


@dataclass(frozen=True)
class OverlapCounts:
    """Voxels in the reference, in the prediction and in both."""

    reference_voxels: int
    prediction_voxels: int
    intersection_voxels: int

    @property
    def both_empty(self) -> bool:
        return self.reference_voxels == 0 and self.prediction_voxels == 0

    @property
    def one_empty(self) -> bool:
        """True if exactly one of the two masks is empty."""
        return (self.reference_voxels == 0) != (self.prediction_voxels == 0)

    @property
    def dice(self) -> float | None:
        """Dice coefficient, 0…1; 0 if exactly one mask is empty, None (undefined) if both are."""
        return ratio(*self.dice_terms)

    @property
    def dice_terms(self) -> tuple[int, int]:
        """Numerator and denominator of Dice, which are summed to pool cases."""
        return 2 * self.intersection_voxels, self.reference_voxels + self.prediction_voxels

    @property
    def relative_volume_difference(self) -> float | None:
        """(prediction - reference) / reference: positive if oversegmented; None if the reference is empty."""
        if self.reference_voxels == 0:
            return None
        return (self.prediction_voxels - self.reference_voxels) / self.reference_voxels

    @property
    def volumetric_overlap_error(self) -> float | None:
        """1 - intersection / union, 0…1; 1 if exactly one mask is empty, None if both are."""
        union_voxels = self.reference_voxels + self.prediction_voxels - self.intersection_voxels
        return None if union_voxels == 0 else 1 - self.intersection_voxels / union_voxels


def ratio(numerator: float, denominator: float) -> float | None:
    """A ratio of counts; None if the denominator is 0."""
    return None if denominator == 0 else numerator / denominator


def tumour_burden(tumour_voxels: int, liver_voxels: int) -> float | None:
    """Tumour voxels per liver voxel; None without a liver."""
    return ratio(tumour_voxels, liver_voxels)


def count_overlap(reference_zyx: Mask, prediction_zyx: Mask) -> OverlapCounts:
    """Voxel counts of two boolean masks zyx of the same shape. Raises ValueError if they cannot be compared."""
    check_masks(reference_zyx, prediction_zyx)
    return OverlapCounts(
        reference_voxels=int(np.count_nonzero(reference_zyx)),
        prediction_voxels=int(np.count_nonzero(prediction_zyx)),
        intersection_voxels=int(np.count_nonzero(reference_zyx & prediction_zyx)),
    )


def dice(reference_zyx: Mask, prediction_zyx: Mask) -> float | None:
    """Dice coefficient of two masks, 0…1; 0 if exactly one is empty, None if both are."""
    return count_overlap(reference_zyx, prediction_zyx).dice


def relative_volume_difference(reference_zyx: Mask, prediction_zyx: Mask) -> float | None:
    """Signed RVD as a fraction of the reference volume; None if the reference is empty."""
    return count_overlap(reference_zyx, prediction_zyx).relative_volume_difference


def volumetric_overlap_error(reference_zyx: Mask, prediction_zyx: Mask) -> float | None:
    """VOE (Jaccard distance) of two masks, 0…1; 1 if exactly one is empty, None if both are."""
    return count_overlap(reference_zyx, prediction_zyx).volumetric_overlap_error


def global_dice(cases: Iterable[OverlapCounts]) -> float | None:
    """Dice over the pooled voxels of all cases, as in LiTS.

    False positives in cases without the structure lower it. None without cases, or if all masks are empty.
    """
    counts = list(cases)
    return OverlapCounts(
        reference_voxels=sum(count.reference_voxels for count in counts),
        prediction_voxels=sum(count.prediction_voxels for count in counts),
        intersection_voxels=sum(count.intersection_voxels for count in counts),
    ).dice
