"""The decision on hand-made states: each reason at its bound, and what a refused batch does to it."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from toy_state import a_case

from hepar.evaluation.bootstrap import Estimate
from hepar.params import Params, RetrainParams
from hepar.retraining.case_changes import BecameKnown, CaseChanges
from hepar.retraining.decision import (
    FreshScores,
    RetrainingDecision,
    RetrainingEvidence,
    decide_retraining,
)
from hepar.retraining.drift import Drift
from hepar.retraining.suspicion import Suspect, SuspectBatch

NOTHING = RetrainingEvidence(champion="1")


@pytest.fixture
def params(tiny: Params) -> RetrainParams:
    given = {"min_new_cases": 3, "min_became_known": 2, "max_drift": 0.5, "min_drift_patients": 4}
    return tiny.retrain.model_copy(update={**given, "min_scored_patients": 3, "max_suspect_share": 0.25})


def new(count: int) -> CaseChanges:
    return CaseChanges(new=tuple(a_case(f"n{number}") for number in range(count)))


def became_known(count: int) -> CaseChanges:
    return CaseChanges(
        became_known=tuple(BecameKnown(f"b{number}", "MR", "CHAOS", "liver drawn") for number in range(count))
    )


def test_without_a_champion_there_is_everything_to_learn(params: RetrainParams) -> None:
    decision = decide_retraining(RetrainingEvidence(champion=""), params)
    assert (decision.retrain, decision.reasons) == (True, ("there is no champion yet",))


def test_nothing_new_is_no_reason(params: RetrainParams) -> None:
    decision = decide_retraining(NOTHING, params)
    assert (decision.retrain, decision.reasons, decision.refused) == (False, (), ())
    assert [check.text for check in decision.checks] == [
        "0 new cases, at least 3 are enough",
        "0 unknowns became known, at least 2 are enough",
    ]


@pytest.mark.parametrize(("changes", "retrain"), [(new(2), False), (new(3), True), (new(4), True)])
def test_enough_new_cases(params: RetrainParams, changes: CaseChanges, retrain: bool) -> None:
    assert decide_retraining(replace(NOTHING, changes=changes), params).retrain == retrain


@pytest.mark.parametrize(("changes", "retrain"), [(became_known(1), False), (became_known(2), True)])
def test_unknowns_that_became_known(params: RetrainParams, changes: CaseChanges, retrain: bool) -> None:
    decision = decide_retraining(replace(NOTHING, changes=changes), params)
    assert decision.retrain == retrain
    if retrain:
        text = "2 unknowns became known (MR/CHAOS 2): 2 liver drawn, at least 2 are enough"
        assert decision.reasons == (text,)
        assert decision.checks[1].counts == {"MR/CHAOS": 2}


@pytest.mark.parametrize(
    ("low", "new_patients", "known_patients", "drifted"),
    [(0.51, 4, 4, True), (0.5, 4, 4, False), (0.51, 3, 4, False), (0.51, 4, 3, False)],
)
def test_drift_needs_the_whole_interval_and_enough_patients(
    params: RetrainParams, low: float, new_patients: int, known_patients: int, drifted: bool
) -> None:
    drift = Drift("CT", "slice spacing", Estimate(0.8, (low, 1.2), 9, 8), new_patients, known_patients)
    decision = decide_retraining(replace(NOTHING, drifts=(drift,)), params)
    assert decision.retrain == drifted
    assert ("not judged" in decision.checks[2].text) == (min(new_patients, known_patients) < 4)
    assert not decide_retraining(
        replace(NOTHING, drifts=(replace(drift, estimate=Estimate(0.8, None, 9, 1)),)), params
    ).retrain


OWN = Estimate(0.9, (0.88, 0.92), 20, 20)


@pytest.mark.parametrize(
    ("fresh", "worse"),
    [
        (Estimate(0.7, (0.6, 0.8), 4, 4), True),
        (Estimate(0.7, (0.6, 0.8), 5, 3), True),  # just enough patients
        (Estimate(0.88, (0.87, 0.89), 4, 4), False),  # within the interval
        (Estimate(0.7, (0.5, 0.9), 4, 4), False),  # it may be as good
        (Estimate(0.7, (0.6, 0.8), 4, 2), False),  # too few patients
        (Estimate(None, None, 0, 0), False),
    ],
)
def test_performance_below_the_champions_own_interval(params: RetrainParams, fresh: Estimate, worse: bool) -> None:
    scores = FreshScores("CT", "liver Dice", OWN, fresh)
    assert decide_retraining(replace(NOTHING, scores=(scores,)), params).retrain == worse
    unknown = replace(scores, own=Estimate(0.9, None, 1, 1))
    assert not decide_retraining(replace(NOTHING, scores=(unknown,)), params).retrain


def test_suspicious_cases_count_for_no_reason(params: RetrainParams) -> None:
    batch = SuspectBatch(12, (Suspect("n0", "why", 0.1),))
    decision = decide_retraining(replace(NOTHING, changes=new(3), suspects=batch), params)
    assert (decision.retrain, decision.refused) == (False, ())
    assert decide_retraining(replace(NOTHING, changes=new(4), suspects=batch), params).retrain
    rejected = SuspectBatch(12, (), (Suspect("b0", "why", 0.1),))
    assert decide_retraining(replace(NOTHING, changes=became_known(2), suspects=rejected), params).reasons == ()


def test_a_batch_with_too_many_suspects_is_refused_by_name(params: RetrainParams) -> None:
    suspects = (Suspect("n8", "liver Dice 0.10", 0.1), Suspect("n9", "refused by ingest: twice"))
    evidence = replace(NOTHING, changes=new(4))
    assert decide_retraining(replace(evidence, suspects=SuspectBatch(8, suspects)), params).retrain
    refused = decide_retraining(replace(evidence, suspects=SuspectBatch(7, suspects)), params)
    assert not refused.retrain
    assert refused.reasons == ("4 new cases (CT/LiTS 4), at least 3 are enough",)
    assert refused.refused == (
        "2 of 7 new cases are suspicious, more than retrain.max_suspect_share (0.25) allows:"
        " n8 (liver Dice 0.10); n9 (refused by ingest: twice)",
    )


def test_a_rejected_mask_holds_the_training_until_it_has_left_the_source(params: RetrainParams) -> None:
    decision = decide_retraining(
        replace(NOTHING, changes=new(4), suspects=SuspectBatch(4, (), (Suspect("x", "why", 0.1),))), params
    )
    assert (decision.retrain, decision.refused) == (False, ("rejected in review, but still in the source: x",))


def test_a_decision_survives_json(params: RetrainParams) -> None:
    drift = Drift("CT", "intensity", Estimate(0.8, (0.6, 1.2), 9, 8), 4, 4)
    decision = decide_retraining(replace(NOTHING, changes=new(3), drifts=(drift,)), params)
    assert RetrainingDecision.from_json(json.loads(json.dumps(decision.as_json()))) == decision
