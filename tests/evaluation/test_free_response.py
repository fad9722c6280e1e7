"""FROC and average precision of a handful of candidates, counted by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hepar.evaluation.bootstrap import Resampling
from hepar.evaluation.candidates import LesionCandidates
from hepar.evaluation.detection_summary import summarise_average_precision, summarise_froc
from hepar.evaluation.free_response import FALSE_LESIONS_PER_CASE, FreeResponse, PrecisionRecall

# Two cases with three lesions. From high to low: hit, false, hit again, hit, false, false; one lesion is never found.
FIRST = LesionCandidates((0.9, 0.8, 0.7, 0.4), 1, {(0, 0): 0.5, (0, 2): 0.2})
SECOND = LesionCandidates((0.6, 0.3), 2, {(1, 0): 0.05})
CASES = [FIRST, SECOND]
RESAMPLING = Resampling(("p", "q"), 1, 200)


def sensitivities(cases: list[LesionCandidates], weights: list[float]) -> list[float]:
    return FreeResponse(cases).sensitivities(np.array([weights]))[0].tolist()


def average_precision(cases: list[LesionCandidates], weights: list[float], iou_above: float) -> float:
    return float(PrecisionRecall(cases, iou_above).average_precision(np.array([weights]))[0, 0])


def test_the_curve_rises_where_a_lesion_is_found_and_ends_with_the_last_candidate() -> None:
    curve = FreeResponse(CASES).curve()
    assert curve is not None
    assert curve.confidence_k.tolist() == [0.9, 0.6, 0.3]
    assert curve.false_per_case_k.tolist() == [0, 1 / 2, 3 / 2]
    assert curve.sensitivity_k.tolist() == [1 / 3, 2 / 3, 2 / 3]


def test_sensitivity_at_a_number_of_false_lesions_per_case() -> None:
    # one false lesion in two cases is half a false lesion per case; the second hit on a lesion is not false
    assert sensitivities(CASES, [1, 1]) == [2 / 3, 2 / 3, 2 / 3, 2 / 3, pytest.approx(2 / 3)]
    worse = LesionCandidates((0.95, 0.94, *FIRST.confidences), 1, {(0, 2): 0.5})
    # with two more sure false lesions even the first hit needs one false lesion per case
    assert sensitivities([worse, SECOND], [1, 1])[:2] == [0, 1 / 3]


def test_a_case_that_is_drawn_twice_counts_twice() -> None:
    assert sensitivities(CASES, [2, 1]) == sensitivities([FIRST, FIRST, SECOND], [1, 1, 1])
    assert sensitivities(CASES, [0, 1]) == sensitivities([SECOND], [1])
    for iou_above in (0.0, 0.1):
        twice = average_precision([FIRST, FIRST, SECOND], [1, 1, 1], iou_above)
        assert average_precision(CASES, [2, 1], iou_above) == pytest.approx(twice)


def test_candidates_of_equal_confidence_come_at_once() -> None:
    tied = LesionCandidates((0.5, 0.5), 1, {(0, 1): 0.5})
    assert sensitivities([tied], [1])[:2] == [0, 1]  # the hit costs a false lesion
    assert average_precision([tied], [1], 0.0) == 1 / 2


def test_average_precision_is_the_area_under_the_envelope() -> None:
    # true: 0.9 and 0.6; precision 1 at a recall of 1/3, 2/4 at 2/3; the rest of the recall is never reached
    assert average_precision(CASES, [1, 1], 0.0) == pytest.approx((1 + 1 / 2) / 3)
    # the second lesion is matched at an IoU of 0.05 only
    assert average_precision(CASES, [1, 1], 0.1) == pytest.approx(1 / 3)
    # a false candidate before two hits: the envelope is 2/3 at both
    later = LesionCandidates((0.9, 0.8, 0.7), 2, {(0, 1): 0.5, (1, 2): 0.5})
    assert average_precision([later], [1], 0.0) == pytest.approx(2 / 3)


def test_summaries_have_intervals_over_patients_and_are_undefined_without_lesions() -> None:
    froc = summarise_froc(CASES, RESAMPLING)
    assert list(froc["sensitivity"]) == ["0.5", "1", "2", "4"]
    assert (froc["lesions"], froc["candidates"], froc["n"]) == (3, 6, 2)
    # each patient alone: one of one lesion, or one of two
    assert froc["sensitivity"]["4"] == {"value": 2 / 3, "ci95": [1 / 2, 1], "n": 2}
    assert summarise_froc(CASES, Resampling(("p", "p"), 1, 200))["mean"]["ci95"] is None
    assert summarise_average_precision(CASES, RESAMPLING)["iou>0.1"]["value"] == pytest.approx(1 / 3)
    no_lesions = [LesionCandidates((0.9,), 0, {})]
    for cases, n in ((no_lesions, 1), ([], 0)):
        resampling = Resampling(("p",) * n, 1, 200)
        undefined = {"value": None, "ci95": None, "n": n}
        assert summarise_froc(cases, resampling)["mean"] == undefined
        assert summarise_froc(cases, resampling)["curve"]["sensitivity"] == []
        assert summarise_average_precision(cases, resampling)["iou>0"] == undefined


def test_lesions_without_any_candidate_are_all_missed() -> None:
    missed = LesionCandidates((), 2, {})
    assert sensitivities([missed], [1]) == [0] * 5
    assert average_precision([missed], [1], 0.0) == 0


@st.composite
def lists_of_candidates(draw: st.DrawFn) -> list[LesionCandidates]:
    cases = []
    for _ in range(draw(st.integers(1, 4))):
        references, count = draw(st.integers(0, 3)), draw(st.integers(0, 5))
        confidences = draw(st.lists(st.integers(1, 9), min_size=count, max_size=count))
        pairs = [(r, c) for r in range(references) for c in range(count) if draw(st.booleans())]
        cases.append(LesionCandidates(tuple(n / 10 for n in confidences), references, dict.fromkeys(pairs, 0.5)))
    return cases


@settings(deadline=None, max_examples=60)
@given(lists_of_candidates())
def test_sensitivities_agree_with_thresholds_tried_one_by_one(cases: list[LesionCandidates]) -> None:
    lesions = sum(case.references for case in cases)
    found = sensitivities(cases, [1.0] * len(cases))
    for rate, sensitivity in zip(FALSE_LESIONS_PER_CASE, found, strict=False):
        best = 0
        for threshold in sorted({c for case in cases for c in case.confidences}):
            kept = [[n for n, c in enumerate(case.confidences) if c >= threshold] for case in cases]
            false = sum(n not in {c for _, c in case.ious} for case, own in zip(cases, kept, strict=True) for n in own)
            hit = sum(len({r for r, c in case.ious if c in own}) for case, own in zip(cases, kept, strict=True))
            if false <= rate * len(cases):
                best = max(best, hit)
        assert sensitivity == pytest.approx(best / lesions, nan_ok=True) if lesions else np.isnan(sensitivity)
