"""Two sets of scores of the same cases: difference, signed-rank test and effect size, over patients.

The difference is that of the two values as a report gives them: means over cases, or ratios of sums over cases. Its
interval resamples whole patients. The test and the effect size take one difference per patient, since two scans of one
patient are not independent.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hepar.evaluation.bootstrap import Estimate, Terms, paired_ratio_difference, ratio_of_sums

MIN_PATIENTS = 6  # of five pairs, not even five gains reach p < 0.05 in a two-sided signed-rank test
EFFECT = "matched-pairs rank-biserial correlation"
_DECIMALS = 12  # equal differences may differ by rounding, which would rank them


@dataclass(frozen=True)
class PairedResult:
    """The values of two sets of scores and how they differ, second - first.

    `p` (two-sided Wilcoxon signed-rank test) and `effect` (`EFFECT`, -1 to 1) are over the `tested` patients, those
    whose own value both have; `p` is None with fewer than two of them, `effect` without one. `difference.patients` are
    those behind value and interval.
    """

    first: float
    second: float
    difference: Estimate
    p: float | None
    effect: float | None
    tested: int

    @property
    def too_few(self) -> bool:
        """Whether the patients are too few for the interval to mean anything."""
        return self.difference.patients < MIN_PATIENTS


def compare_paired(
    first: Sequence[Terms], second: Sequence[Terms], patient_ids: Sequence[str], seed: int, resamples: int
) -> PairedResult | None:
    """Compare the terms of the same cases, one entry per case; None if the ratio of either is undefined.

    Raises ValueError if the lengths differ.
    """
    difference = paired_ratio_difference(first, second, patient_ids, seed, resamples)
    if difference.value is None:
        return None
    differences = patient_differences(first, second, patient_ids)
    return PairedResult(
        first=ratio_of_sums(first),
        second=ratio_of_sums(second),
        difference=difference,
        p=signed_rank_p(differences),
        effect=rank_biserial(differences),
        tested=len(differences),
    )


def patient_differences(first: Sequence[Terms], second: Sequence[Terms], patient_ids: Sequence[str]) -> list[float]:
    """The ratio of sums over the cases of each patient, second - first, ordered by patient id.

    Patients without a ratio in either, as recall has none without a lesion, are left out.
    """
    grouped: dict[str, tuple[list[Terms], list[Terms]]] = defaultdict(lambda: ([], []))
    for one, other, patient in zip(first, second, patient_ids, strict=True):
        grouped[patient][0].append(one)
        grouped[patient][1].append(other)
    return [
        ratio_of_sums(other) - ratio_of_sums(one)
        for _, (one, other) in sorted(grouped.items())
        if _has_ratio(one) and _has_ratio(other)
    ]


def signed_rank_p(differences: Sequence[float]) -> float | None:
    """p of the two-sided Wilcoxon signed-rank test (Wilcoxon, 1945); zeros are dropped.

    1 if all differences are 0, None if there are fewer than two: a single one has p = 1 whatever it is. Exact for few
    differences, as `scipy.stats.wilcoxon` decides.
    """
    if len(differences) < 2:
        return None
    from scipy import stats  # slow to import

    changed = _changed(differences)
    return float(stats.wilcoxon(changed).pvalue) if len(changed) else 1.0


def rank_biserial(differences: Sequence[float]) -> float | None:
    """Matched-pairs rank-biserial correlation (Kerby, 2014): the rank sum of gains minus that of losses, over both.

    1 if every difference that is not 0 is positive, -1 if every one is negative; 0 if all are 0, None if there are
    none.
    """
    if not differences:
        return None
    changed = _changed(differences)
    if not len(changed):
        return 0.0
    from scipy import stats

    ranks = stats.rankdata(np.abs(changed))
    return float((ranks * np.sign(changed)).sum() / ranks.sum())


def holm(p_values: Sequence[float]) -> list[float]:
    """p values adjusted for their number by Holm's step-down method (1979), in the same order; [] for none."""
    adjusted = [0.0] * len(p_values)
    largest = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda index: p_values[index])):
        largest = max(largest, (len(p_values) - rank) * p_values[index])
        adjusted[index] = min(1.0, largest)
    return adjusted


def _changed(differences: Sequence[float]) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    rounded = [round(value, _DECIMALS) for value in differences]
    return np.array([value for value in rounded if value != 0], dtype=np.float64)


def _has_ratio(terms: Sequence[Terms]) -> bool:
    return math.fsum(bottom for _, bottom in terms) != 0
