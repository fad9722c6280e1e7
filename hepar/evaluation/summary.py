"""Summaries of scored cases, by modality and by source, with confidence intervals over patients."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from hepar.evaluation.bootstrap import Estimate, Resampling, bootstrap_mean, bootstrap_ratio
from hepar.evaluation.detection_summary import (
    lesion_reliability,
    summarise_average_precision,
    summarise_calibration,
    summarise_froc,
)
from hepar.evaluation.lesions import IOU_THRESHOLDS, LesionCounts, threshold_name
from hepar.evaluation.panoptic import pool_panoptic
from hepar.evaluation.scores import (
    AREA_WEIGHTED_METRICS,
    STRUCTURE_METRICS,
    CaseScores,
    StructureScores,
    area_weighted,
)
from hepar.imaging.masks import LESION_SIZES


@dataclass(frozen=True)
class Bootstrap:
    """Settings of the bootstrap: seed and number of resamples."""

    seed: int
    resamples: int

    def mean(self, cases: Sequence[CaseScores], value_of: Callable[[CaseScores], float | None]) -> dict[str, Any]:
        """`{"mean", "ci95", "n"}` over the cases where the value is defined."""
        estimate = bootstrap_mean([value_of(case) for case in cases], _patients(cases), self.seed, self.resamples)
        return {"mean": estimate.value, "ci95": _interval(estimate), "n": estimate.n}

    def ratio(
        self,
        cases: Sequence[CaseScores],
        numerators: Sequence[float],
        denominators: Sequence[float],
    ) -> Estimate:
        """Ratio of two sums over the cases, one entry per case."""
        return bootstrap_ratio(numerators, denominators, _patients(cases), self.seed, self.resamples)

    def resampling(self, cases: Sequence[CaseScores]) -> Resampling:
        """How the patients of the cases are drawn."""
        return Resampling(tuple(_patients(cases)), self.seed, self.resamples)


def summarise(scores: Sequence[CaseScores], seed: int, resamples: int) -> dict[str, Any]:
    """Summarise scored cases as a JSON-compatible dict, without rounding.

    `{modality: {"cases", "patients", "liver": {...}, "tumour": {...}, "challenges": {...}, "sources": {source: the same
    without "sources"}}}`. A mean is `{"mean", "ci95": [low, high] or None, "n"}`; a pooled ratio has "value" instead of
    "mean". Modalities without cases are left out; a structure that no case can be scored on has mean None and n 0. The
    result depends on the cases and the seed, not on the order of the cases.

    Raises ValueError if a case is scored twice.
    """
    counts = Counter(case.identity.case_id for case in scores)
    duplicates = sorted(case_id for case_id, count in counts.items() if count > 1)
    if duplicates:
        raise ValueError(f"scored more than once: {', '.join(duplicates)}")
    bootstrap = Bootstrap(seed, resamples)
    ordered = sorted(scores, key=lambda case: case.identity.case_id)
    summary: dict[str, Any] = {}
    for modality in sorted({case.identity.modality for case in scores}):
        cases = [case for case in ordered if case.identity.modality == modality]
        summary[modality] = _summarise_group(cases, bootstrap)
        summary[modality]["sources"] = {
            source: _summarise_group([case for case in cases if case.identity.source == source], bootstrap)
            for source in sorted({case.identity.source for case in cases})
        }
    return summary


def _summarise_group(cases: Sequence[CaseScores], bootstrap: Bootstrap) -> dict[str, Any]:
    return {
        "cases": len(cases),
        "patients": len(set(_patients(cases))),
        "liver": _summarise_structure(cases, bootstrap, lambda case: case.liver),
        "tumour": {
            **_summarise_structure(cases, bootstrap, lambda case: case.tumour),
            **_summarise_tumour(cases, bootstrap),
        },
        "challenges": _summarise_challenges(cases, bootstrap),
    }


def _summarise_structure(
    cases: Sequence[CaseScores], bootstrap: Bootstrap, of: Callable[[CaseScores], StructureScores]
) -> dict[str, Any]:
    """Means of the liver or tumour metrics, and the numbers of cases behind them."""

    def metric_of(metric: str) -> Callable[[CaseScores], float | None]:
        return lambda case: getattr(of(case), metric)

    def area_weighted_of(metric: str) -> Callable[[CaseScores], float | None]:
        return lambda case: area_weighted(of(case), metric)

    summary: dict[str, Any] = {metric: bootstrap.mean(cases, metric_of(metric)) for metric in STRUCTURE_METRICS}
    summary["absolute_rvd"] = bootstrap.mean(cases, lambda case: _absolute(of(case).rvd))
    both_present = [case for case in cases if of(case).known and not of(case).one_empty]
    summary["where_both_present"] = {
        metric: bootstrap.mean(both_present, metric_of(metric)) for metric in ("nsd_2mm", "hd95_mm", "assd_mm")
    }
    summary["area_weighted"] = {
        metric: bootstrap.mean(cases, area_weighted_of(metric)) for metric in AREA_WEIGHTED_METRICS
    }
    known = [case for case in cases if of(case).known]
    summary["counts"] = {
        "present": sum(of(case).present for case in known),
        "absent": sum(not of(case).present for case in known),
        "unknown": len(cases) - len(known),
        "missed": sum(of(case).one_empty and of(case).present for case in known),
        "false_positive": sum(of(case).one_empty and not of(case).present for case in known),
        "both_empty": sum(of(case).both_empty for case in known),
        "distances_unknown": sum(not case.distances_known for case in known),
    }
    return summary


def _summarise_tumour(cases: Sequence[CaseScores], bootstrap: Bootstrap) -> dict[str, Any]:
    """Metrics of tumours only: global Dice, lesion detection, tumour-free cases, tumour burden."""
    known = [case for case in cases if case.tumour.known]
    overlaps = [case.tumour.overlap for case in known if case.tumour.overlap is not None]
    global_dice = bootstrap.ratio(
        known,
        [overlap.dice_terms[0] for overlap in overlaps],
        [overlap.dice_terms[1] for overlap in overlaps],
    )
    return {
        "global_dice": {"value": global_dice.value, "ci95": _interval(global_dice), "n": global_dice.n},
        "lesion_f1": {
            threshold_name(iou_above): _summarise_lesions(known, index, bootstrap)
            for index, iou_above in enumerate(IOU_THRESHOLDS)
        },
        "panoptic": _summarise_panoptic(known, bootstrap),
        **_summarise_probabilities(known, bootstrap),
        "specificity": bootstrap.mean(cases, lambda case: None if case.specific is None else float(case.specific)),
        "false_positive_volume_ml": bootstrap.mean(cases, lambda case: case.false_positive_volume_ml),
        "burden_error": bootstrap.mean(cases, lambda case: case.burden_error),
        "absolute_burden_error": bootstrap.mean(cases, lambda case: _absolute(case.burden_error)),
    }


def _summarise_lesions(cases: Sequence[CaseScores], index: int, bootstrap: Bootstrap) -> dict[str, Any]:
    """Pooled detection at one IoU threshold; `cases` have a known tumour state, tumour-free ones included."""
    counts = [case.lesions[index].counts for case in cases if case.lesions is not None]
    assert len(counts) == len(cases), "every case with a known tumour state has lesions"
    ratios: dict[str, Callable[[LesionCounts], tuple[int, int]]] = {  # numerator and denominator
        "value": lambda c: c.f1_terms,
        "sensitivity": lambda c: c.sensitivity_terms,
        "precision": lambda c: c.precision_terms,
        "false_positives_per_case": lambda c: (c.false_positives, 1),
    }
    summary: dict[str, Any] = {"n": len(cases)}
    for name, terms in ratios.items():
        estimate = bootstrap.ratio(cases, [terms(c)[0] for c in counts], [terms(c)[1] for c in counts])
        summary[name] = estimate.value
        summary["ci95" if name == "value" else f"{name}_ci95"] = _interval(estimate)
    pooled = _pool(counts)
    return {
        **summary,
        "true_positives": pooled.true_positives,
        "false_negatives": pooled.false_negatives,
        "false_positives": pooled.false_positives,
        "by_size": _summarise_sizes(cases, index),
    }


def _summarise_sizes(cases: Sequence[CaseScores], index: int) -> dict[str, Any]:
    """Detection by equivalent lesion diameter, over the cases with a known voxel size."""
    sized = [
        case.lesions[index].by_size
        for case in cases
        if case.lesions is not None and case.lesions[index].by_size is not None
    ]
    summary = {}
    for name in LESION_SIZES:
        pooled = _pool([by_size[name] for by_size in sized if by_size is not None])
        summary[name] = {
            "lesions": pooled.true_positives + pooled.false_negatives,
            "detected": pooled.true_positives,
            "sensitivity": pooled.sensitivity,
            "false_positives": pooled.false_positives,
        }
    return summary


def _summarise_panoptic(cases: Sequence[CaseScores], bootstrap: Bootstrap) -> dict[str, Any]:
    """Panoptic quality over all lesions of the cases, which have a known tumour state."""
    counts = [case.panoptic for case in cases if case.panoptic is not None]
    summary: dict[str, Any] = {}
    for name in ("pq", "sq", "rq"):
        terms = [getattr(count, f"{name}_terms") for count in counts]
        estimate = bootstrap.ratio(cases, [top for top, _ in terms], [bottom for _, bottom in terms])
        summary[name] = estimate.summary()
    pooled = pool_panoptic(counts)
    for name in ("true_positives", "false_positives", "false_negatives"):
        summary[name] = getattr(pooled, name)
    return summary


def _summarise_probabilities(cases: Sequence[CaseScores], bootstrap: Bootstrap) -> dict[str, Any]:
    """Detection over all confidences and calibration, over the cases with known tumours and kept probabilities."""
    ranked = [case for case in cases if case.candidates is not None]
    candidates = [case.candidates for case in ranked if case.candidates is not None]
    voxels = [case.reliability for case in ranked if case.reliability is not None]
    resampling = bootstrap.resampling(ranked)
    return {
        "froc": summarise_froc(candidates, resampling),
        "average_precision": summarise_average_precision(candidates, resampling),
        "reliability": {
            "voxels": summarise_calibration(voxels, resampling),
            "lesions": summarise_calibration([lesion_reliability(case) for case in candidates], resampling),
        },
    }


def _summarise_challenges(cases: Sequence[CaseScores], bootstrap: Bootstrap) -> dict[str, Any]:
    """Challenge scores of LiTS and CHAOS. CHAOS needs a known liver and known distances."""
    lits = [case.lits for case in cases if case.lits is not None]
    over_zero = _pool([case.lesions[0] for case in lits])
    over_half = _pool([case.lesions[1] for case in lits])
    differences = [case.burden_difference for case in lits if case.burden_difference is not None]
    summary: dict[str, Any] = {
        "lits_tumour_dice_per_case": bootstrap.mean(
            cases, lambda case: None if case.lits is None else case.lits.tumour_dice
        ),
        "lits_liver_dice_per_case": bootstrap.mean(
            cases, lambda case: None if case.lits is None else case.lits.liver_dice
        ),
        "lits_lesion_precision": over_half.precision,
        "lits_lesion_recall": over_half.sensitivity,
        "lits_lesion_precision_greater_zero": over_zero.precision,
        "lits_lesion_recall_greater_zero": over_zero.sensitivity,
        "lits_tumour_burden_rmse": (
            math.sqrt(math.fsum(d * d for d in differences) / len(differences)) if differences else None
        ),
        "lits_tumour_burden_max": max(differences) if differences else None,
    }
    chaos_cases = [case for case in cases if case.chaos is not None]
    for metric in ("dice", "ravd", "assd", "mssd", "mean"):
        values = [getattr(case.chaos, metric) for case in chaos_cases]
        estimate = bootstrap.ratio(chaos_cases, values, [1.0] * len(values))
        summary[f"chaos_{metric}"] = {
            "mean": estimate.value,
            "ci95": _interval(estimate),
            "n": estimate.n,
        }
    return summary


def _pool(counts: Sequence[LesionCounts]) -> LesionCounts:
    return LesionCounts(
        true_positives=sum(count.true_positives for count in counts),
        false_negatives=sum(count.false_negatives for count in counts),
        false_positives=sum(count.false_positives for count in counts),
    )


def _absolute(value: float | None) -> float | None:
    return None if value is None else abs(value)


def _interval(estimate: Estimate) -> list[float] | None:
    return None if estimate.ci95 is None else list(estimate.ci95)


def _patients(cases: Sequence[CaseScores]) -> list[str]:
    return [case.identity.patient_id for case in cases]
