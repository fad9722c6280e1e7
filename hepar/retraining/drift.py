"""Drift: how far a measurement of new patients lies from that of the patients that a champion learned from.

The distance is the 1-Wasserstein distance of the two distributions (Villani, Optimal Transport, 2009, chapter 6), in
standard deviations of a mixture of equal parts of both: 0 for equal ones, 0.9 for two normal ones that are 1 SD apart,
2 for two points. A sample's distance exceeds that of its population, the more the smaller it is; so the decision asks
for the whole interval beyond a bound that samples of one population do not reach. Legend: r resamples, n measurements.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from hepar.evaluation.bootstrap import Estimate, Resampling, bootstrap_weighted

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Measurement:
    """One number measured in a patient; of lesions there may be several."""

    patient_id: str
    is_new: bool
    value: float


@dataclass(frozen=True)
class Drift:
    """The distance between new and known patients in one measurement of one modality, and how many patients each are.

    The value is None if either are none.
    """

    modality: str
    measure: str
    estimate: Estimate
    new_patients: int
    known_patients: int


def measure_drift(modality: str, measure: str, measurements: Sequence[Measurement], seed: int, resamples: int) -> Drift:
    """The distance with an interval from resampled patients, new and known ones together."""
    ordered = sorted(measurements, key=lambda found: (found.value, found.is_new, found.patient_id))
    value_n = np.array([found.value for found in ordered])
    is_new_n = np.array([found.is_new for found in ordered], bool)

    def distances(weight_rn: Floats) -> Floats:
        return weighted_distance(value_n, is_new_n, weight_rn)[:, None]

    patients = Resampling(tuple(found.patient_id for found in ordered), seed, resamples)
    (estimate,) = bootstrap_weighted(distances, patients) if ordered else [Estimate(None, None, 0, 0)]
    new = {found.patient_id for found in ordered if found.is_new}
    known = {found.patient_id for found in ordered if not found.is_new}
    return Drift(modality, measure, estimate, len(new), len(known))


def weighted_distance(value_n: Floats, is_new_n: npt.NDArray[np.bool_], weight_rn: Floats) -> Floats:
    """The distance between new and known values, ascending and weighted, float64 r; nan where either has no weight.

    It is 0 if all values are equal.
    """
    new_rn, known_rn = weight_rn * is_new_n, weight_rn * ~is_new_n
    with np.errstate(invalid="ignore"):  # 0 / 0 where one has no weight: nan
        new_rn, known_rn = (part_rn / part_rn.sum(axis=1, keepdims=True) for part_rn in (new_rn, known_rn))
    apart_rn = np.abs(np.cumsum(new_rn - known_rn, axis=1))[:, :-1]
    moved_r = (apart_rn * np.diff(value_n)).sum(axis=1)
    mixture_rn = (new_rn + known_rn) / 2
    mean_r1 = (mixture_rn * value_n).sum(axis=1, keepdims=True)
    deviation_r = np.sqrt((mixture_rn * (value_n - mean_r1) ** 2).sum(axis=1))
    flat_r = deviation_r <= 1e-9 * np.abs(value_n).max(initial=1.0)  # rounding, not spread
    return np.asarray(np.where(flat_r, 0.0, moved_r / np.where(flat_r, 1.0, deviation_r)))
