"""The gates: each by itself, the bounds, the predicted Dice, and the resulting verdict."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from good_signals import GATES, GOOD

from hepar.cases import Modality
from hepar.params import DicePredictor
from hepar.pseudo_labels.gates import ACCEPT, REJECT, REVIEW, judge, predict_dice
from hepar.pseudo_labels.signals import Signals


def test_good_signals_are_accepted_with_full_weight_and_no_reason() -> None:
    verdict = judge(GOOD, Modality.CT, GATES)
    assert (verdict.gate, verdict.weight, verdict.reasons) == (ACCEPT, 1.0, ())


def test_a_value_on_its_bound_passes() -> None:
    edge = Signals(500.0, 0.8, 0.05, 1.5, 0.6, 0.1, 0.9, 0.5, 0.8, 3.0)
    assert judge(edge, Modality.CT, GATES).gate == ACCEPT
    worst = Signals(500.0, 0.5, 0.2, 3.0, 0.3, 0.4, 0.7, 1.5, 0.5, 6.0)
    verdict = judge(worst, Modality.CT, GATES)
    assert verdict.gate == REVIEW
    assert len(verdict.reasons) == 9


@pytest.mark.parametrize(
    ("change", "gate", "reason"),
    [
        ({"volume_ml": 400.0}, REJECT, "liver volume 400 ml is outside 500–3000 ml"),
        ({"volume_ml": 3500.0}, REJECT, "liver volume 3500 ml is outside 500–3000 ml"),
        ({"component_share": 0.7}, REVIEW, "liver component fraction 0.7 < 0.8"),
        ({"component_share": 0.4}, REJECT, "liver component fraction 0.4 < 0.5"),
        ({"hole_share": 0.1}, REVIEW, "hole fraction 0.1 > 0.05"),
        ({"hole_share": 0.3}, REJECT, "hole fraction 0.3 > 0.2"),
        ({"roughness": 2.0}, REVIEW, "surface roughness 2 > 1.5"),
        ({"roughness": float("inf")}, REJECT, "surface roughness inf > 3"),
        ({"right_share": 0.5}, REVIEW, "right-side fraction 0.5 < 0.6"),
        ({"right_share": 0.1}, REJECT, "right-side fraction 0.1 < 0.3"),
        ({"cut_share": 0.2}, REVIEW, "fraction on the field-of-view border 0.2 > 0.1"),
        ({"cut_share": 0.5}, REJECT, "fraction on the field-of-view border 0.5 > 0.4"),
        ({"agreement": 0.8}, REVIEW, "agreement 0.8 < 0.9"),
        ({"agreement": 0.6}, REJECT, "agreement 0.6 < 0.7"),
        ({"entropy": 1.0}, REVIEW, "entropy 1 > 0.5"),
        ({"entropy": 2.0}, REJECT, "entropy 2 > 1.5"),
        ({"tumour_inside": 0.7}, REVIEW, "fraction of the manual tumour inside 0.7 < 0.8"),
        ({"tumour_inside": 0.4}, REJECT, "fraction of the manual tumour inside 0.4 < 0.5"),
        ({"intensity_distance": 4.0}, REVIEW, "intensity distance 4 > 3"),
        ({"intensity_distance": 9.0}, REJECT, "intensity distance 9 > 6"),
    ],
)
def test_each_gate_decides_and_gives_its_reason(change: dict[str, Any], gate: str, reason: str) -> None:
    verdict = judge(replace(GOOD, **change), Modality.CT, GATES)
    assert (verdict.gate, verdict.reasons) == (gate, (reason,))
    assert verdict.weight == (0.4 if gate == REVIEW else 0.0)


def test_the_worst_outcome_counts_and_every_reason_is_listed() -> None:
    verdict = judge(replace(GOOD, cut_share=0.2, agreement=0.1), Modality.CT, GATES)
    assert (verdict.gate, verdict.weight) == (REJECT, 0.0)
    assert verdict.reasons == ("fraction on the field-of-view border 0.2 > 0.1", "agreement 0.1 < 0.7")


PREDICTOR = DicePredictor(
    signals=("agreement", "entropy"),
    low=(0.5, 0.0),
    high=(1.0, 2.0),
    coefficients=(1.0, -0.25),
    mr_offset=-0.25,
    scores=(0.0, 0.5, 1.0),
    dice=(0.2, 0.4, 1.0),
)


def test_a_predictor_clips_signals_to_the_calibrated_range_and_interpolates_the_dice() -> None:
    def predicted(agreement: float, entropy: float, modality: Modality = Modality.CT) -> float:
        return predict_dice(replace(GOOD, agreement=agreement, entropy=entropy), modality, PREDICTOR)

    assert predicted(1.0, 1.0) == pytest.approx(0.7)  # score 0.75
    assert predicted(1.0, 1.0, Modality.MR) == pytest.approx(0.4)  # score 0.5
    assert predicted(0.1, 0.0) == pytest.approx(0.4)  # clipped to 0.5
    assert predicted(0.5, float("inf")) == pytest.approx(0.2)


def test_the_predicted_dice_is_a_gate_and_the_weight_of_accepted_labels() -> None:
    gates = GATES.model_copy(update={"predictor": PREDICTOR})
    accepted = judge(replace(GOOD, agreement=1.0, entropy=0.2), Modality.CT, gates)  # score 0.95
    assert (accepted.gate, accepted.weight, accepted.predicted_dice) == (
        ACCEPT,
        pytest.approx(0.94),
        pytest.approx(0.94),
    )
    reviewed = judge(replace(GOOD, agreement=0.95, entropy=0.4), Modality.CT, gates)  # score 0.85
    assert (reviewed.gate, reviewed.weight) == (REVIEW, pytest.approx(0.4 * 0.82))
    assert reviewed.reasons == ("predicted Dice 0.82 < 0.9",)
    assert judge(replace(GOOD, agreement=0.9, entropy=0.5), Modality.CT, gates).gate == REJECT  # 0.73


def test_a_verdict_is_a_row_of_a_table() -> None:
    verdict = judge(replace(GOOD, cut_share=0.2, agreement=0.8), Modality.CT, GATES)
    assert {**verdict.row(), "predicted_dice": None} == {
        "gate": REVIEW,
        "weight": 0.4,
        "reasons": "fraction on the field-of-view border 0.2 > 0.1; agreement 0.8 < 0.9",
        "predicted_dice": None,
    }
    assert np.isnan(verdict.row()["predicted_dice"])
