"""What has come since a training: new cases, labels, decisions, and drift that was not there."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from toy_state import a_case

from hepar.cases import Case, LabelState, Split
from hepar.params import Params, RetrainParams
from hepar.pseudo_labels.reviews import Review, ReviewDecision, Reviews
from hepar.retraining.basis import Basis, Learned
from hepar.retraining.decision import DRIFT, RetrainingCheck, RetrainingDecision

NO_REVIEWS = Reviews(Path("none"), {})
OPEN = a_case("open", liver_state=LabelState.UNKNOWN)


@pytest.fixture
def params(tiny: Params) -> RetrainParams:
    return tiny.retrain.model_copy(update={"min_new_cases": 2, "min_became_known": 1})


def since(params: RetrainParams, then: Sequence[Case], now: Sequence[Case], suspected: str = "") -> str:
    """Why what has come between two cohorts is too little; empty if it is enough."""
    decision = RetrainingDecision(True, (), uncounted=(suspected,))
    return basis(params, now, decision).too_few_since(record(basis(params, then, decision)))


def basis(
    params: RetrainParams, cases: Sequence[Case], decision: RetrainingDecision, reviews: Reviews = NO_REVIEWS
) -> Basis:
    return Basis("s", cases, reviews, decision, params)


def record(found: Basis) -> Learned:
    """As it comes back from MLflow."""
    return Learned.from_json(json.loads(json.dumps(found.as_json())))


def test_enough_new_cases_since_then_are_a_reason_and_suspicious_ones_do_not_count(params: RetrainParams) -> None:
    a, b, c = (a_case(name) for name in "abc")
    few = "1 new cases and 0 unknowns that became known have come since, at least 2 or 1 are enough"
    assert since(params, [a], [a, b]) == few
    assert since(params, [a], [a, b, c]) == ""
    assert since(params, [a], [a, b, c], suspected="c") == few
    assert since(params, [a], [a, b, a_case("t", split=Split.TEST)]) == few
    assert since(params, [], [a, b]) == ""


def test_a_label_or_a_decision_since_then_is_a_reason(params: RetrainParams) -> None:
    assert since(params, [OPEN], [OPEN]).startswith("0 new cases and 0 unknowns")
    assert since(params, [OPEN], [replace(OPEN, liver_state=LabelState.MANUAL)]) == ""
    review = Review(OPEN.case_id, ReviewDecision.ACCEPT, "somebody", "2026", OPEN.image_sha256, "judged")
    decided, nothing = Reviews(Path("some"), {OPEN.case_id: review}), RetrainingDecision(True, ())
    accepted = basis(params, [OPEN], nothing, decided)
    assert accepted.too_few_since(record(basis(params, [OPEN], nothing))) == ""
    assert accepted.too_few_since(record(accepted)) != ""
    other_image = basis(params, [replace(OPEN, image_sha256="other")], nothing, decided)
    assert record(other_image).reviewed == frozenset()


def test_drift_that_was_not_there_is_a_reason(params: RetrainParams) -> None:
    def drifted(*subjects: str) -> Basis:
        checks = [RetrainingCheck(DRIFT, True, 1.0, 0.5, "far", subject=subject) for subject in subjects]
        return basis(params, [OPEN], RetrainingDecision(True, tuple(checks)))

    before = record(drifted("CT slice spacing"))
    assert drifted("CT slice spacing").too_few_since(before) != ""
    assert drifted("CT slice spacing", "MR slice spacing").too_few_since(before) == ""
