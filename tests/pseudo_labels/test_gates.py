"""The gates: each signal on masks whose value a hand can count, each gate by itself, and what follows from them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, get_args

import numpy as np
import numpy.typing as npt
import pytest

from hepar.cases import Modality
from hepar.params import DicePredictor, GateParams, SignalName
from hepar.pseudo_labels.gates import (
    ACCEPT,
    REJECT,
    REVIEW,
    Evidence,
    Signals,
    agreement,
    component_share,
    cut_share,
    entropy,
    hole_share,
    intensity_distance,
    judge,
    measure,
    predict_dice,
    right_share,
    roughness,
    surface_mm2,
    tumour_inside,
)

Mask = npt.NDArray[np.bool_]
UNIT = (1.0, 1.0, 1.0)
GATES = GateParams(
    volume_ml=(500.0, 3000.0),
    min_component_share=(0.8, 0.5),
    max_hole_share=(0.05, 0.2),
    max_roughness=(1.5, 3.0),
    min_right_share=(0.6, 0.3),
    max_cut_share=(0.1, 0.4),
    min_agreement=(0.9, 0.7),
    max_entropy=(0.5, 1.5),
    min_tumour_inside=(0.8, 0.5),
    max_intensity_distance=(3.0, 6.0),
    min_predicted_dice=(0.9, 0.8),
    predictor=None,
    review_weight=0.4,
)
GOOD = Signals(
    volume_ml=1500.0,
    component_share=1.0,
    hole_share=0.0,
    roughness=1.0,
    right_share=0.9,
    cut_share=0.0,
    agreement=1.0,
    entropy=0.1,
    tumour_inside=1.0,
    intensity_distance=0.0,
)


def row(start: int, stop: int, size: int = 10) -> Mask:
    """A line of voxels inside a block, so that its ends are not the volume's."""
    mask = np.zeros((3, 3, size), bool)
    mask[1, 1, start:stop] = True
    return mask


EMPTY = row(0, 0)


def test_the_signals_have_the_names_that_params_know() -> None:
    assert Signals.names() == get_args(SignalName)


def test_what_passes_every_gate_is_accepted_with_full_weight_and_no_reason() -> None:
    verdict = judge(GOOD, Modality.CT, GATES)
    assert (verdict.gate, verdict.weight, verdict.reasons) == (ACCEPT, 1.0, ())


def test_a_value_on_its_bound_passes() -> None:
    edge = Signals(500.0, 0.8, 0.05, 1.5, 0.6, 0.1, 0.9, 0.5, 0.8, 3.0)
    assert judge(edge, Modality.CT, GATES).gate == ACCEPT
    beyond = Signals(500.0, 0.5, 0.2, 3.0, 0.3, 0.4, 0.7, 1.5, 0.5, 6.0)
    verdict = judge(beyond, Modality.CT, GATES)
    assert verdict.gate == REVIEW
    assert len(verdict.reasons) == 9


@pytest.mark.parametrize(
    ("change", "gate", "reason"),
    [
        ({"volume_ml": 400.0}, REJECT, "liver volume 400 ml is not within 500–3000 ml"),
        ({"volume_ml": 3500.0}, REJECT, "liver volume 3500 ml is not within 500–3000 ml"),
        ({"component_share": 0.7}, REVIEW, "largest component's share 0.7 < 0.8"),
        ({"component_share": 0.4}, REJECT, "largest component's share 0.4 < 0.5"),
        ({"hole_share": 0.1}, REVIEW, "share of the liver that was holes 0.1 > 0.05"),
        ({"hole_share": 0.3}, REJECT, "share of the liver that was holes 0.3 > 0.2"),
        ({"roughness": 2.0}, REVIEW, "roughness of the surface 2 > 1.5"),
        ({"roughness": float("inf")}, REJECT, "roughness of the surface inf > 3"),
        ({"right_share": 0.5}, REVIEW, "share of the liver on the patient's right 0.5 < 0.6"),
        ({"right_share": 0.1}, REJECT, "share of the liver on the patient's right 0.1 < 0.3"),
        ({"cut_share": 0.2}, REVIEW, "share of the liver cut by the field of view 0.2 > 0.1"),
        ({"cut_share": 0.5}, REJECT, "share of the liver cut by the field of view 0.5 > 0.4"),
        ({"agreement": 0.8}, REVIEW, "agreement 0.8 < 0.9"),
        ({"agreement": 0.6}, REJECT, "agreement 0.6 < 0.7"),
        ({"entropy": 1.0}, REVIEW, "entropy 1 > 0.5"),
        ({"entropy": 2.0}, REJECT, "entropy 2 > 1.5"),
        ({"tumour_inside": 0.7}, REVIEW, "share of the manual tumour inside 0.7 < 0.8"),
        ({"tumour_inside": 0.4}, REJECT, "share of the manual tumour inside 0.4 < 0.5"),
        ({"intensity_distance": 4.0}, REVIEW, "distance from the intensity of livers 4 > 3"),
        ({"intensity_distance": 9.0}, REJECT, "distance from the intensity of livers 9 > 6"),
    ],
)
def test_each_gate_by_itself_decides_and_says_why(change: dict[str, Any], gate: str, reason: str) -> None:
    verdict = judge(replace(GOOD, **change), Modality.CT, GATES)
    assert (verdict.gate, verdict.reasons) == (gate, (reason,))
    assert verdict.weight == (0.4 if gate == REVIEW else 0.0)


def test_the_worst_word_of_all_gates_counts_and_every_reason_is_told() -> None:
    verdict = judge(replace(GOOD, cut_share=0.2, agreement=0.1), Modality.CT, GATES)
    assert (verdict.gate, verdict.weight) == (REJECT, 0.0)
    assert [reason.split()[0] for reason in verdict.reasons] == ["share", "agreement"]


PREDICTOR = DicePredictor(
    signals=("agreement", "entropy"),
    low=(0.5, 0.0),
    high=(1.0, 2.0),
    coefficients=(1.0, -0.25),
    mr_offset=-0.25,
    scores=(0.0, 0.5, 1.0),
    dice=(0.2, 0.4, 1.0),
)


def test_a_predictor_weighs_signals_within_what_was_seen_and_reads_the_dice_off_its_curve() -> None:
    def expected(agreement: float, entropy: float, modality: Modality = Modality.CT) -> float:
        return predict_dice(replace(GOOD, agreement=agreement, entropy=entropy), modality, PREDICTOR)

    assert expected(1.0, 1.0) == pytest.approx(0.7)  # score 0.75
    assert expected(1.0, 1.0, Modality.MR) == pytest.approx(0.4)  # score 0.5
    assert expected(0.1, 0.0) == pytest.approx(0.4)  # clipped to 0.5
    assert expected(0.5, float("inf")) == pytest.approx(0.2)


def test_the_expected_dice_is_a_gate_and_the_weight_of_what_is_accepted() -> None:
    gates = GATES.model_copy(update={"predictor": PREDICTOR})
    sure = judge(replace(GOOD, agreement=1.0, entropy=0.2), Modality.CT, gates)  # score 0.95
    assert (sure.gate, sure.weight, sure.predicted_dice) == (ACCEPT, pytest.approx(0.94), pytest.approx(0.94))
    doubtful = judge(replace(GOOD, agreement=0.95, entropy=0.4), Modality.CT, gates)  # score 0.85
    assert (doubtful.gate, doubtful.weight) == (REVIEW, pytest.approx(0.4 * 0.82))
    assert doubtful.reasons == ("expected Dice 0.82 < 0.9",)
    assert judge(replace(GOOD, agreement=0.9, entropy=0.5), Modality.CT, gates).gate == REJECT  # 0.73


def test_a_verdict_is_a_row_of_a_table() -> None:
    verdict = judge(replace(GOOD, cut_share=0.2, agreement=0.8), Modality.CT, GATES)
    assert {**verdict.row(), "predicted_dice": None} == {
        "gate": REVIEW,
        "weight": 0.4,
        "reasons": "share of the liver cut by the field of view 0.2 > 0.1; agreement 0.8 < 0.9",
        "predicted_dice": None,
    }
    assert np.isnan(verdict.row()["predicted_dice"])


def evidence(**changes: Any) -> Evidence:
    liver = row(1, 5)
    values: dict[str, Any] = {
        "mean": liver.astype(np.float32),
        "votes": [liver],
        "raw": liver,
        "liver": liver,
        "tumour": None,
        "body": np.ones_like(liver),
        "intensity": np.array([0.5, 0.5], np.float32),
        "spacing_zyx_mm": UNIT,
    }
    return Evidence(**{**values, **changes})


def test_an_empty_prediction_is_rejected() -> None:
    nothing = evidence(mean=EMPTY.astype(np.float32), votes=[EMPTY], raw=EMPTY, liver=EMPTY)
    signals = measure(nothing, (0.5, 0.1))
    assert (signals.volume_ml, signals.component_share, signals.right_share) == (0, 0, 0)
    assert judge(signals, Modality.CT, GATES).gate == REJECT


def test_signals_are_measured_on_the_masks_that_they_are_about() -> None:
    signals = measure(
        evidence(
            votes=[row(1, 5), row(1, 3), row(2, 5)],
            raw=row(1, 5) | row(7, 8),
            tumour=row(4, 6),
            spacing_zyx_mm=(10.0, 10.0, 10.0),
        ),
        (0.3, 0.1),
    )
    assert signals.volume_ml == 4
    assert signals.component_share == pytest.approx(4 / 5)
    assert signals.agreement == pytest.approx(2 * 2 / (4 + 2))  # the least of both others
    assert signals.tumour_inside == pytest.approx(1 / 2)
    assert signals.cut_share == 0
    assert signals.intensity_distance == pytest.approx(2)


def test_one_prediction_agrees_with_itself() -> None:
    assert measure(evidence(), None).agreement == 1


def test_the_largest_component_is_a_share_of_all_that_was_predicted() -> None:
    assert component_share(row(1, 4) | row(6, 7)) == pytest.approx(3 / 4)
    assert component_share(row(1, 4)) == 1
    assert component_share(EMPTY) == 0


def test_components_hold_together_by_faces() -> None:
    diagonal = np.zeros((3, 3, 3), bool)
    diagonal[0, 0, 0] = diagonal[1, 1, 1] = True
    assert component_share(diagonal) == 0.5


def test_holes_are_what_the_liver_has_beyond_the_prediction() -> None:
    assert hole_share(row(1, 3) | row(4, 6), row(1, 6)) == pytest.approx(1 / 5)
    assert hole_share(row(1, 6), row(1, 6)) == 0
    assert hole_share(row(1, 6), EMPTY) == 0


def test_a_surface_is_the_faces_between_mask_and_rest() -> None:
    one = np.zeros((3, 3, 3), bool)
    one[1, 1, 1] = True
    assert surface_mm2(one, UNIT) == 6
    assert surface_mm2(one, (3.0, 2.0, 1.0)) == 2 * (2 * 1 + 3 * 1 + 3 * 2)
    assert surface_mm2(np.ones((1, 1, 2), bool), UNIT) == 10  # the border of the array is a surface too


def ball(radius: float, size: int = 40) -> Mask:
    grid = np.indices((size, size, size)) - (size - 1) / 2
    return np.asarray((grid**2).sum(axis=0) <= radius**2)


def test_a_ball_is_smooth_and_a_porous_one_is_rough() -> None:
    smooth = ball(14)
    assert roughness(smooth, (2.0, 2.0, 2.0)) == pytest.approx(1, abs=0.06)  # voxels make steps
    porous = smooth & (np.indices(smooth.shape).sum(axis=0) % 4 > 0)
    assert roughness(porous, (2.0, 2.0, 2.0)) > 2
    speck = np.zeros((9, 9, 9), bool)
    speck[4, 4, 4] = True
    assert roughness(speck, UNIT) == float("inf")
    assert roughness(np.zeros((9, 9, 9), bool), UNIT) == 1


def test_the_patients_right_is_where_x_is_low() -> None:
    body = np.ones((3, 3, 10), bool)
    assert right_share(row(0, 4), body) == 1
    assert right_share(row(6, 10), body) == 0
    assert right_share(row(3, 7), body) == pytest.approx(0.5)
    assert right_share(EMPTY, body) == 0
    shifted = np.zeros_like(body)
    shifted[..., 6:] = True  # a body whose centre is at 7.5
    assert right_share(row(6, 10), shifted) == pytest.approx(0.5)
    assert right_share(row(0, 4), np.zeros_like(body)) == 1  # no body: the volume's centre


def test_agreement_is_a_dice_and_two_empty_masks_have_none() -> None:
    assert agreement(row(0, 4), row(2, 4)) == pytest.approx(4 / 6)
    assert agreement(row(0, 4), row(0, 4)) == 1
    assert agreement(row(0, 4), EMPTY) == 0
    assert agreement(EMPTY, EMPTY) == 0


def test_entropy_is_in_bits_for_each_voxel_of_the_liver() -> None:
    mean = np.zeros((1, 1, 6), np.float32)
    mean[..., 0:2], mean[..., 2] = 1.0, 0.5
    liver = mean > 0.6
    assert entropy(mean, liver) == pytest.approx(1 / 2)
    mean[..., 3] = 0.25
    bits = 1 - (0.25 * np.log2(0.25) + 0.75 * np.log2(0.75))
    assert entropy(mean, liver) == pytest.approx(bits / 2)
    assert entropy(mean, np.zeros_like(liver)) == float("inf")
    assert entropy(np.zeros_like(mean), np.zeros_like(liver)) == 0


def test_a_tumour_that_is_unknown_or_absent_contradicts_nothing() -> None:
    assert tumour_inside(row(1, 5), None) == 1
    assert tumour_inside(row(1, 5), EMPTY) == 1
    assert tumour_inside(EMPTY, row(1, 3)) == 0


def test_the_share_of_a_tumour_inside_counts_its_own_voxels() -> None:
    assert tumour_inside(row(1, 5), row(4, 8)) == pytest.approx(1 / 4)
    assert tumour_inside(row(1, 5), row(2, 4)) == 1


def test_intensity_is_compared_with_manual_livers_by_their_spread() -> None:
    values = np.array([0.0, 1.0, 5.0], np.float32)
    assert intensity_distance(values, (0.5, 0.25)) == pytest.approx(2)
    assert intensity_distance(values, None) == 0
    assert intensity_distance(values[:0], (0.5, 0.25)) == 0


@pytest.mark.parametrize("axis", range(3))
@pytest.mark.parametrize("side", [0, -1])
def test_a_liver_is_cut_on_each_side_of_the_volume(axis: int, side: int) -> None:
    liver = np.zeros((4, 5, 6), bool)
    liver[1:-1, 1:-1, 1:-1] = True
    assert cut_share(liver) == 0
    at: list[Any] = [slice(1, -1)] * 3
    at[axis] = side
    liver[tuple(at)] = True
    on_border = int(liver[tuple(at)].sum())
    assert cut_share(liver) == pytest.approx(on_border / int(liver.sum()))


def test_an_empty_liver_is_not_cut() -> None:
    assert cut_share(EMPTY) == 0
