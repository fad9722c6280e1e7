"""Summaries of what needs probabilities: FROC, average precision and calibration.

All dicts are JSON-compatible and have the same keys without a case, where values are None and lists are empty.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from hepar.evaluation.bootstrap import Resampling, bootstrap_weighted
from hepar.evaluation.calibration import ReliabilityCounts, calibration_error, count_reliability, reliability_bins
from hepar.evaluation.candidates import LesionCandidates
from hepar.evaluation.free_response import FALSE_LESIONS_PER_CASE, FreeResponse, PrecisionRecall
from hepar.evaluation.lesions import IOU_THRESHOLDS, threshold_name


def summarise_froc(cases: Sequence[LesionCandidates], resampling: Resampling) -> dict[str, Any]:
    """Sensitivity at given numbers of false lesions per case, and the curve, as `FreeResponse` has them."""
    response = FreeResponse(cases)
    curve = response.curve()
    *at_rates, mean = bootstrap_weighted(response.sensitivities, resampling)
    rates = zip(FALSE_LESIONS_PER_CASE, at_rates, strict=True)
    return {
        "sensitivity": {f"{rate:g}": estimate.summary() for rate, estimate in rates},
        "mean": mean.summary(),
        "curve": {
            "confidence": [] if curve is None else curve.confidence_k.tolist(),
            "false_positives_per_case": [] if curve is None else curve.false_per_case_k.tolist(),
            "sensitivity": [] if curve is None else curve.sensitivity_k.tolist(),
        },
        "lesions": sum(case.references for case in cases),
        "candidates": sum(len(case.confidences) for case in cases),
        "n": len(cases),
    }


def summarise_average_precision(cases: Sequence[LesionCandidates], resampling: Resampling) -> dict[str, Any]:
    """Average precision at each IoU threshold."""
    summary = {}
    for iou_above in IOU_THRESHOLDS:
        (estimate,) = bootstrap_weighted(PrecisionRecall(cases, iou_above).average_precision, resampling)
        summary[threshold_name(iou_above)] = estimate.summary()
    return summary


def summarise_calibration(counts: Sequence[ReliabilityCounts], resampling: Resampling) -> dict[str, Any]:
    """Expected calibration error and reliability bins of pooled samples."""
    (error,) = bootstrap_weighted(calibration_error(counts), resampling)
    return {"ece": error.summary(), "bins": reliability_bins(counts)}


def lesion_reliability(case: LesionCandidates) -> ReliabilityCounts:
    """The confidences of the candidates of a case; those that overlap a reference lesion are positive."""
    return count_reliability(np.array(case.confidences, np.float64), np.array(case.overlapping, np.bool_))
