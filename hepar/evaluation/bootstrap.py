"""Confidence intervals: bootstrap over patients.

Two scans of one patient are not independent, so whole patients are drawn with replacement (cluster bootstrap), and the
interval is the 2.5th to the 97.5th percentile (Efron and Tibshirani, 1993, chapter 13). Most statistics are a ratio of
sums over cases, or the difference of two, which are summed by patient first; a mean is a ratio whose denominators are
1. Any other is computed anew on the cases of each resample. Legend: p patients, r resamples.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

_PERCENTILES = (2.5, 97.5)
_RESAMPLES_AT_ONCE = 100
Terms = tuple[float, float]  # numerator and denominator of one case; those of a mean are its value and 1


@dataclass(frozen=True)
class Estimate:
    """A summary value with its 95 % interval.

    `value` is None if it is undefined. `ci95` is None too with fewer than two patients, or if no resample has a value.
    `n` is the number of cases used.
    """

    value: float | None
    ci95: tuple[float, float] | None
    n: int
    patients: int

    def summary(self, name: str = "value") -> dict[str, Any]:
        """`{name: value, "ci95": [low, high] or None, "n": n}`."""
        return {name: self.value, "ci95": None if self.ci95 is None else list(self.ci95), "n": self.n}


@dataclass(frozen=True)
class Resampling:
    """The patient of each case, and how patients are drawn."""

    patient_ids: tuple[str, ...]
    seed: int
    resamples: int


def ratio_of_sums(terms: Sequence[Terms]) -> float:
    """The sum of the numerators over that of the denominators, which must not be 0."""
    return math.fsum(top for top, _ in terms) / math.fsum(bottom for _, bottom in terms)


def bootstrap_ratio(
    numerators: Sequence[float],
    denominators: Sequence[float],
    patient_ids: Sequence[str],
    seed: int,
    resamples: int,
) -> Estimate:
    """Ratio of two sums over cases, one entry per case, with an interval from resampled patients.

    The order of the cases does not matter. The value is None if the denominators sum to 0 or there are no cases;
    resamples whose denominators sum to 0 are left out. Raises ValueError if the lengths differ.
    """
    if not len(numerators) == len(denominators) == len(patient_ids):
        raise ValueError(
            f"numerators, denominators and patients must match in number but are "
            f"{len(numerators)}, {len(denominators)} and {len(patient_ids)}"
        )
    numerators_p = _sum_by_patient(numerators, patient_ids)
    denominators_p = _sum_by_patient(denominators, patient_ids)
    patients = len(numerators_p)
    if math.fsum(denominators) == 0:
        return Estimate(None, None, len(numerators), patients)
    value = math.fsum(numerators) / math.fsum(denominators)
    if patients < 2:
        return Estimate(value, None, len(numerators), patients)
    drawn_rp = np.random.default_rng(seed).integers(0, patients, size=(resamples, patients))
    numerators_r = numerators_p[drawn_rp].sum(axis=1)
    denominators_r = denominators_p[drawn_rp].sum(axis=1)
    ratios_r = numerators_r[denominators_r != 0] / denominators_r[denominators_r != 0]
    return Estimate(value, _interval(ratios_r), len(numerators), patients)


def bootstrap_mean(values: Sequence[float | None], patient_ids: Sequence[str], seed: int, resamples: int) -> Estimate:
    """Mean over the cases with a defined value, with an interval from resampled patients.

    None (undefined or not scored) is left out. Without a defined value the mean is None and n is 0.
    """
    kept = [(value, patient) for value, patient in zip(values, patient_ids, strict=True) if value is not None]
    return bootstrap_ratio(
        [value for value, _ in kept], [1.0] * len(kept), [patient for _, patient in kept], seed, resamples
    )


def bootstrap_weighted(
    statistics: Callable[[NDArray[np.float64]], NDArray[np.float64]], resampling: Resampling
) -> list[Estimate]:
    """Several statistics of weighted cases, with intervals from resampled patients.

    `statistics` maps weights, float64 rc, which tell how often each of c cases counts, to values of s statistics,
    float64 rs; nan is undefined. Resamples in which a statistic is undefined are left out of its interval. For many
    cases this is far faster than `bootstrap_statistic`.
    """
    cases = len(resampling.patient_ids)
    value_s = statistics(np.ones((1, cases)))[0]
    names, patient_c = np.unique(np.array(resampling.patient_ids, np.str_), return_inverse=True)
    values_rs = np.full((0, len(value_s)), np.nan)
    if len(names) >= 2:
        drawn_rp = np.random.default_rng(resampling.seed).integers(0, len(names), (resampling.resamples, len(names)))
        weight_rp = np.stack([np.bincount(drawn_p, minlength=len(names)) for drawn_p in drawn_rp]).astype(np.float64)
        blocks = np.array_split(weight_rp, math.ceil(len(weight_rp) / _RESAMPLES_AT_ONCE))
        values_rs = np.concatenate([statistics(block_rp[:, patient_c]) for block_rp in blocks])
    estimates = []
    for value, values_r in zip(value_s.tolist(), values_rs.T, strict=True):
        if math.isnan(value):
            estimates.append(Estimate(None, None, cases, len(names)))
        else:
            estimates.append(Estimate(value, _interval(values_r[~np.isnan(values_r)]), cases, len(names)))
    return estimates


def paired_difference(
    first: Sequence[float | None],
    second: Sequence[float | None],
    patient_ids: Sequence[str],
    seed: int,
    resamples: int,
) -> Estimate:
    """Mean of `second - first` over the cases where both are defined, with an interval from resampled patients.

    Entry i of both sequences is the same case. The two differ if the interval excludes 0.
    """
    return bootstrap_mean(differences(first, second), patient_ids, seed, resamples)


def differences(first: Sequence[float | None], second: Sequence[float | None]) -> list[float | None]:
    """`second - first`, None where either is."""
    return [None if one is None or other is None else other - one for one, other in zip(first, second, strict=True)]


def widened_by_t(mean: Estimate, values: Sequence[float | None], patient_ids: Sequence[str]) -> Estimate:
    """A mean of cases with its interval widened to Student's t of the patients' own means, where that is wider.

    Resampled intervals of few patients are too narrow: of five they hold the truth in some 84 % instead of 95 %.
    """
    if mean.value is None or mean.ci95 is None:
        return mean
    of_patient: dict[str, list[float]] = defaultdict(list)
    for value, patient in zip(values, patient_ids, strict=True):
        if value is not None:
            of_patient[patient].append(value)
    means_p = np.array([math.fsum(found) / len(found) for found in of_patient.values()])
    half = stats.t.ppf(0.975, len(means_p) - 1) * means_p.std(ddof=1) / math.sqrt(len(means_p))
    low, high = mean.ci95
    return replace(mean, ci95=(float(min(low, mean.value - half)), float(max(high, mean.value + half))))


def paired_ratio_difference(
    first: Sequence[Terms], second: Sequence[Terms], patient_ids: Sequence[str], seed: int, resamples: int
) -> Estimate:
    """The ratio of sums over `second` minus that over `first`, with an interval from resampled patients.

    Entry i of all three is the same case; the same patients are drawn for both ratios. The value is None if the
    denominators of either sum to 0 or there are no cases; such resamples are left out. Raises ValueError if the lengths
    differ.
    """
    pairs = [(*one, *other) for one, other in zip(first, second, strict=True)]
    if len(pairs) != len(patient_ids):
        raise ValueError(f"pairs and patients must match in number but are {len(pairs)} and {len(patient_ids)}")
    columns = [[pair[column] for pair in pairs] for column in range(4)]
    sums_p4 = np.stack([_sum_by_patient(values, patient_ids) for values in columns], axis=-1)
    patients = len(sums_p4)
    totals = [math.fsum(values) for values in columns]
    if totals[1] == 0 or totals[3] == 0:
        return Estimate(None, None, len(pairs), patients)
    value = totals[2] / totals[3] - totals[0] / totals[1]
    if patients < 2:
        return Estimate(value, None, len(pairs), patients)
    drawn_rp = np.random.default_rng(seed).integers(0, patients, size=(resamples, patients))
    sums_r4 = sums_p4[drawn_rp].sum(axis=1)
    sums_r4 = sums_r4[(sums_r4[:, 1] != 0) & (sums_r4[:, 3] != 0)]
    differences_r = sums_r4[:, 2] / sums_r4[:, 3] - sums_r4[:, 0] / sums_r4[:, 1]
    return Estimate(value, _interval(differences_r), len(pairs), patients)


def bootstrap_statistic(
    statistic: Callable[[NDArray[np.intp]], float], patient_ids: Sequence[str], seed: int, resamples: int
) -> Estimate:
    """Any statistic of cases, given by their indices, with an interval from resampled patients.

    A patient drawn twice brings each of their cases twice. The value is None without cases.
    """
    cases_p = [np.flatnonzero(np.asarray(patient_ids) == patient) for patient in sorted(set(patient_ids))]
    patients, n = len(cases_p), len(patient_ids)
    if n == 0:
        return Estimate(None, None, 0, 0)
    value = statistic(np.arange(n))
    if patients < 2:
        return Estimate(value, None, n, patients)
    drawn_rp = np.random.default_rng(seed).integers(0, patients, size=(resamples, patients))
    found_r = np.array([statistic(np.concatenate([cases_p[patient] for patient in drawn_p])) for drawn_p in drawn_rp])
    return Estimate(value, _interval(found_r), n, patients)


def _interval(values_r: NDArray[np.float64]) -> tuple[float, float] | None:
    """The interval of resampled values; None without any."""
    if len(values_r) == 0:
        return None
    low, high = np.percentile(values_r, _PERCENTILES)
    return float(low), float(high)


def _sum_by_patient(values: Sequence[float], patient_ids: Sequence[str]) -> NDArray[np.float64]:
    """Exact sum per patient, float64 p, ordered by patient id."""
    grouped: dict[str, list[float]] = defaultdict(list)
    for value, patient in zip(values, patient_ids, strict=True):
        grouped[patient].append(value)
    return np.array([math.fsum(grouped[patient]) for patient in sorted(grouped)], dtype=np.float64)
