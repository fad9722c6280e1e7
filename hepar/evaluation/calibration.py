"""Calibration of probabilities: do events of probability p happen in a share p of cases?

Reliability bins and the expected calibration error (ECE) as in Guo et al., ICML 2017: the mean over all samples of the
distance between mean probability and share of positives in the bin of the sample. Legend: n samples, c cases, b bins, r
resamples.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hepar.evaluation.label_pairs import SegmentedCase
from hepar.evaluation.overlap import ratio

BINS = 10  # of equal width


@dataclass(frozen=True)
class ReliabilityCounts:
    """For each bin from 0 to 1: samples, the sum of their probabilities, and how many of them are positive."""

    samples: tuple[int, ...]
    probability_sums: tuple[float, ...]
    positives: tuple[int, ...]


def count_reliability(probability_n: NDArray[np.floating], positive_n: NDArray[np.bool_]) -> ReliabilityCounts:
    """The counts of n samples. A probability on the border of two bins belongs to the upper one, 1 to the last."""
    bin_n = np.minimum((np.asarray(probability_n, np.float64) * BINS).astype(np.intp), BINS - 1)
    return ReliabilityCounts(
        tuple(np.bincount(bin_n, minlength=BINS).tolist()),
        tuple(np.bincount(bin_n, weights=probability_n, minlength=BINS).tolist()),
        tuple(np.bincount(bin_n[positive_n], minlength=BINS).tolist()),
    )


def voxel_reliability(case: SegmentedCase) -> ReliabilityCounts | None:
    """The tumour probabilities of the voxels inside liver or tumour, of reference or prediction.

    Elsewhere nearly all voxels are certain, and their number depends on how much of the body was scanned. None without
    probabilities or with unknown tumours.
    """
    if case.tumour_probability is None or case.tumour.reference_zyx is None:
        return None
    inside_zyx = reduce(np.logical_or, case.masks_zyx)
    return count_reliability(case.tumour_probability.probability_zyx[inside_zyx], case.tumour.reference_zyx[inside_zyx])


def calibration_error(counts: Sequence[ReliabilityCounts]) -> Callable[[NDArray[np.float64]], NDArray[np.float64]]:
    """The ECE of the pooled samples of c cases, as `bootstrap_weighted` takes it; nan without samples."""
    samples_c = np.array([sum(count.samples) for count in counts], np.float64)
    excess_cb = np.array([np.subtract(count.probability_sums, count.positives) for count in counts]).reshape(-1, BINS)

    def error(weight_rc: NDArray[np.float64]) -> NDArray[np.float64]:
        # no matrix product: its rounding may depend on the number of threads
        excess_rb = (weight_rc[:, :, None] * excess_cb).sum(axis=1)
        samples_r = weight_rc @ samples_c
        error_r = np.full(len(weight_rc), np.nan)
        np.divide(np.abs(excess_rb).sum(axis=1), samples_r, out=error_r, where=samples_r > 0)
        return error_r[:, None]

    return error


def reliability_bins(counts: Sequence[ReliabilityCounts]) -> list[dict[str, Any]]:
    """The bins of the pooled samples of cases; mean probability and share of positives are None in an empty bin."""
    bins = []
    for number in range(BINS):
        samples = sum(count.samples[number] for count in counts)
        probability_sum = sum(count.probability_sums[number] for count in counts)
        positives = sum(count.positives[number] for count in counts)
        bins.append(
            {
                "low": number / BINS,
                "high": (number + 1) / BINS,
                "count": samples,
                "mean_probability": ratio(probability_sum, samples),
                "fraction_positive": ratio(positives, samples),
            }
        )
    return bins
