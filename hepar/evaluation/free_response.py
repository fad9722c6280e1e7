"""Detection over all confidences: free-response curve (FROC) and average precision of lesions.

FROC as in LUNA16 (Setio et al., Medical Image Analysis 42, 2017): a lesion is found by any candidate that overlaps it,
a candidate that overlaps no lesion is false, and a further one on the same lesion is neither; but between two points
the lower sensitivity counts, where LUNA16 interpolates. Average precision as in COCO and nnDetection (Baumgartner et
al., MICCAI 2021): lesions and candidates match one to one by IoU, further candidates are false, and the area under
precision over recall is that of its upper envelope. Legend: c cases, k confidences from high to low, r resamples, s
statistics.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hepar.evaluation.candidates import LesionCandidates

FALSE_LESIONS_PER_CASE = (0.5, 1.0, 2.0, 4.0)
Numbers = NDArray[np.float64]


@dataclass(frozen=True)
class OperatingCurve:
    """Lesions found and false candidates per case at each confidence."""

    confidence_k: Numbers
    false_per_case_k: Numbers
    sensitivity_k: Numbers


class FreeResponse:
    """The free-response curve of cases, and its statistics for `bootstrap_weighted`."""

    def __init__(self, cases: Sequence[LesionCandidates]) -> None:
        self.confidence_k = _confidences(cases)
        found = [[confidence for confidence in case.reference_confidences if confidence is not None] for case in cases]
        self._found_ck = self._count(found)
        self._false_ck = self._count([_chosen(case, case.overlapping, False) for case in cases])
        self._lesions_c = np.array([case.references for case in cases], np.float64)

    def curve(self) -> OperatingCurve | None:
        """The points at which the curve rises, and the last one; None without a case or lesion."""
        weight_rc = np.ones((1, len(self._lesions_c)))
        if self._lesions_c.sum() == 0:
            return None
        false_k, found_k = (counts[0] for counts in self._cumulate(weight_rc))
        rises = np.diff(found_k, prepend=0.0) > 0
        rises[-1:] = True
        cases, lesions = len(self._lesions_c), self._lesions_c.sum()
        return OperatingCurve(self.confidence_k[rises], false_k[rises] / cases, found_k[rises] / lesions)

    def sensitivities(self, weight_rc: Numbers) -> Numbers:
        """Sensitivity at each of `FALSE_LESIONS_PER_CASE`, and their mean, float64 rs; nan without a lesion.

        That of the lowest confidence at which there are no more false candidates; so beyond the last candidate, that of
        all.
        """
        false_rk, found_rk = self._cumulate(weight_rc)
        found_rk = np.concatenate([np.zeros((len(weight_rc), 1)), found_rk], axis=1)
        lesions_r, cases_r = weight_rc @ self._lesions_c, weight_rc.sum(axis=1)
        columns = []
        for rate in FALSE_LESIONS_PER_CASE:
            allowed_r = np.count_nonzero(false_rk <= rate * cases_r[:, None], axis=1)
            found_r = np.take_along_axis(found_rk, allowed_r[:, None], axis=1)[:, 0]
            columns.append(_divide(found_r, lesions_r))
        return np.stack([*columns, np.mean(columns, axis=0)], axis=1)

    def _count(self, confidences: Sequence[Sequence[float]]) -> Numbers:
        return _count_at(confidences, self.confidence_k)

    def _cumulate(self, weight_rc: Numbers) -> tuple[Numbers, Numbers]:
        """False candidates and found lesions down to each confidence."""
        return np.cumsum(weight_rc @ self._false_ck, axis=1), np.cumsum(weight_rc @ self._found_ck, axis=1)


class PrecisionRecall:
    """Precision over recall of cases, and the average precision for `bootstrap_weighted`."""

    def __init__(self, cases: Sequence[LesionCandidates], iou_above: float) -> None:
        confidence_k = _confidences(cases)
        matched = [case.matched(iou_above) for case in cases]
        pairs = list(zip(cases, matched, strict=True))
        self._true_ck = _count_at([_chosen(case, chosen, True) for case, chosen in pairs], confidence_k)
        self._false_ck = _count_at([_chosen(case, chosen, False) for case, chosen in pairs], confidence_k)
        self._lesions_c = np.array([case.references for case in cases], np.float64)

    def average_precision(self, weight_rc: Numbers) -> Numbers:
        """The average precision, float64 rs with one column; nan without a lesion."""
        true_rk = np.cumsum(weight_rc @ self._true_ck, axis=1)
        false_rk = np.cumsum(weight_rc @ self._false_ck, axis=1)
        precision_rk = np.divide(true_rk, true_rk + false_rk, out=np.zeros_like(true_rk), where=true_rk + false_rk > 0)
        envelope_rk = np.maximum.accumulate(precision_rk[:, ::-1], axis=1)[:, ::-1]
        area_r = (np.diff(true_rk, axis=1, prepend=0.0) * envelope_rk).sum(axis=1)
        return _divide(area_r, weight_rc @ self._lesions_c)[:, None]


def _confidences(cases: Sequence[LesionCandidates]) -> Numbers:
    """The confidences that occur, from high to low."""
    return np.unique([confidence for case in cases for confidence in case.confidences])[::-1].astype(np.float64)


def _chosen(case: LesionCandidates, flags: Sequence[bool], value: bool) -> list[float]:
    """The confidences of the candidates whose flag has a value."""
    return [confidence for confidence, flag in zip(case.confidences, flags, strict=True) if flag == value]


def _count_at(confidences: Sequence[Sequence[float]], confidence_k: Numbers) -> Numbers:
    """How often each confidence occurs in each case, float64 ck."""
    count_ck = np.zeros((len(confidences), len(confidence_k)))
    for number, values in enumerate(confidences):
        # the confidences descend, and searchsorted wants them to ascend
        np.add.at(count_ck[number], np.searchsorted(-confidence_k, np.negative(values)), 1)
    return count_ck


def _divide(numerator_r: Numbers, denominator_r: Numbers) -> Numbers:
    """Ratios; nan where the denominator is 0."""
    ratio_r = np.full(len(numerator_r), np.nan)
    np.divide(numerator_r, denominator_r, out=ratio_r, where=denominator_r > 0)
    return ratio_r
