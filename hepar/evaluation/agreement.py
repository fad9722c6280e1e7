"""Agreement of predicted and reference volumes: bias and 95 % limits of agreement after Bland and Altman.

Scans of one patient are not independent, so bias and limits are those of Zou for several observations per individual
(Statistical Methods in Medical Research 22, 2013): the bias is the mean over patients of their mean difference, the
limits are bias ± 1.96 standard deviations of a single scan, and their intervals recover the variances of bias and
standard deviation (MOVER). With one scan a patient, bias and limits are those of Bland and Altman (Lancet 327, 1986).
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import special  # scipy.stats is slow to import

from hepar.evaluation.scores import CaseScores

MIN_PATIENTS = 3  # the interval of a limit from two patients is wider than any volume
_Z = float(special.ndtri(0.975))
Interval = tuple[float, float]


@dataclass(frozen=True)
class Quantity:
    """What predictions and references are compared by: (reference, prediction) of a case, None if it has no share.

    `digits` are those behind the point in a table.
    """

    name: str
    unit: str
    digits: int
    values: Callable[[CaseScores], tuple[float, float] | None]


@dataclass(frozen=True)
class Limits:
    """Limits of agreement, each with its 95 % interval."""

    lower: float
    lower_ci95: Interval
    upper: float
    upper_ci95: Interval


@dataclass(frozen=True)
class Agreement:
    """The differences, prediction - reference, of n scans against the means of both.

    `bias_ci95` and `limits` are None with fewer than `MIN_PATIENTS` patients.
    """

    means: tuple[float, ...]
    differences: tuple[float, ...]
    patients: int
    bias: float
    bias_ci95: Interval | None
    limits: Limits | None

    @property
    def lines(self) -> list[tuple[float, Interval | None]]:
        """Bias, lower and upper limit, each beside its interval; without limits only the bias."""
        found: list[tuple[float, Interval | None]] = [(self.bias, self.bias_ci95)]
        if self.limits is not None:
            found += [(self.limits.lower, self.limits.lower_ci95), (self.limits.upper, self.limits.upper_ci95)]
        return found

    @property
    def basis(self) -> str:
        """The numbers of scans and patients."""
        scans = len(self.differences)
        return f"{scans} scan{'s' * (scans != 1)}, {self.patients} patient{'s' * (self.patients != 1)}"


def _liver_volume(case: CaseScores) -> tuple[float, float] | None:
    return _both(case.liver.reference_volume_ml, case.liver.prediction_volume_ml)


def _tumour_volume(case: CaseScores) -> tuple[float, float] | None:
    return _both(case.tumour.reference_volume_ml, case.tumour.prediction_volume_ml) if case.tumour.present else None


def _burden_percent(case: CaseScores) -> tuple[float, float] | None:
    both = _both(case.burden_reference, case.burden_prediction) if case.tumour.present else None
    return None if both is None else (100 * both[0], 100 * both[1])


def _both(reference: float | None, prediction: float | None) -> tuple[float, float] | None:
    return None if reference is None or prediction is None else (reference, prediction)


QUANTITIES = (
    Quantity("Liver volume", "ml", 0, _liver_volume),
    Quantity("Tumour volume", "ml", 1, _tumour_volume),
    Quantity("Tumour burden", "% of the liver", 2, _burden_percent),
)


def measure_agreement(scores: Sequence[CaseScores], quantity: Quantity) -> Agreement | None:
    """The agreement of a quantity over the cases that have a share in it; None if there is none.

    Tumour volume and burden are of cases with a reference tumour: 0 ml beside 0 ml in tumour-free cases would make the
    limits narrow. Volumes need a known voxel size, the burden does not.
    """
    pairs = [(case.identity.patient_id, values) for case in scores if (values := quantity.values(case)) is not None]
    if not pairs:
        return None
    differences = [prediction - reference for _, (reference, prediction) in pairs]
    grouped: dict[str, list[float]] = defaultdict(list)
    for (patient, _), difference in zip(pairs, differences, strict=True):
        grouped[patient].append(difference)
    by_patient = [grouped[patient] for patient in sorted(grouped)]
    bias = math.fsum(math.fsum(own) / len(own) for own in by_patient) / len(by_patient)
    enough = len(by_patient) >= MIN_PATIENTS
    return Agreement(
        means=tuple((reference + prediction) / 2 for _, (reference, prediction) in pairs),
        differences=tuple(differences),
        patients=len(by_patient),
        bias=bias,
        bias_ci95=_bias_interval(by_patient, bias) if enough else None,
        limits=_limits(by_patient, bias) if enough else None,
    )


def _bias_interval(by_patient: Sequence[Sequence[float]], bias: float) -> Interval:
    patients = len(by_patient)
    half = float(special.stdtrit(patients - 1, 0.975)) * math.sqrt(_variance_of_means(by_patient) / patients)
    return bias - half, bias + half


def _limits(by_patient: Sequence[Sequence[float]], bias: float) -> Limits:
    patients = len(by_patient)
    between = _variance_of_means(by_patient)
    # the mean of a patient's scans varies less than a single scan, by the share of the variance within patients
    share = 1 - float(np.mean([1 / len(own) for own in by_patient]))
    within = share * _variance_within(by_patient)
    deviation = math.sqrt(between + within)
    parts = ((between, patients - 1), (within, sum(map(len, by_patient)) - patients))
    # MOVER: the distances of the variance to the bounds of its interval, from those of its two parts
    down = math.hypot(*(part * (1 - degrees / _chi2(0.975, degrees)) for part, degrees in parts if degrees))
    up = math.hypot(*(part * (degrees / _chi2(0.025, degrees) - 1) for part, degrees in parts if degrees))
    narrow = deviation - math.sqrt(max(0.0, deviation**2 - down))
    wide = math.sqrt(deviation**2 + up) - deviation
    # both quantiles are 1.96: one is that of the interval of the bias, the other that of the limits
    error = _Z * math.sqrt(between / patients)
    inner, outer = math.hypot(error, _Z * narrow), math.hypot(error, _Z * wide)
    lower, upper = bias - _Z * deviation, bias + _Z * deviation
    return Limits(lower, (lower - outer, lower + inner), upper, (upper - inner, upper + outer))


def _variance_of_means(by_patient: Sequence[Sequence[float]]) -> float:
    return float(np.var([math.fsum(own) / len(own) for own in by_patient], ddof=1))


def _variance_within(by_patient: Sequence[Sequence[float]]) -> float:
    """The pooled variance of scans of one patient; 0 if each has one scan."""
    degrees = sum(len(own) - 1 for own in by_patient)
    return sum(float(np.var(own)) * len(own) for own in by_patient) / degrees if degrees else 0.0


def _chi2(probability: float, degrees: int) -> float:
    """The value that χ² of so many degrees of freedom does not exceed with a probability."""
    return 2 * float(special.gammaincinv(degrees / 2, probability))
