"""The gates of pseudo-livers, each by masks whose voxels can be counted."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest

from hepar.params import GateParams
from hepar.quality import (
    ACCEPT,
    DOWNWEIGHT,
    REJECT,
    Signals,
    Verdict,
    agreement,
    component_share,
    cut_share,
    judge,
    measure,
    tumour_inside,
)

Mask = npt.NDArray[np.bool_]
SHAPE = (6, 8, 10)
EMPTY = np.zeros(SHAPE, bool)
GATES = GateParams(
    volume_ml=(500.0, 4000.0),
    min_component_share=0.8,
    min_agreement_accept=0.9,
    min_agreement_review=0.7,
    min_tumour_inside_accept=0.8,
    min_tumour_inside_review=0.5,
    max_cut_share=0.1,
    downweight=0.5,
)
GOOD = Signals(volume_ml=1500.0, component_share=1.0, agreement=1.0, tumour_inside=1.0, cut_share=0.0)


def row(start: int, stop: int, y: int = 2) -> Mask:
    """Voxels start…stop-1 of one row in the middle of the volume."""
    mask = EMPTY.copy()
    mask[3, y, start:stop] = True
    return mask


def test_what_passes_every_gate_is_accepted_with_full_weight_and_no_reason() -> None:
    assert judge(GOOD, GATES) == Verdict(ACCEPT, 1.0, ())


def test_a_value_on_its_bound_passes() -> None:
    edge = Signals(500.0, component_share=0.8, agreement=0.9, tumour_inside=0.8, cut_share=0.1)
    assert judge(edge, GATES).gate == ACCEPT
    assert judge(replace(GOOD, volume_ml=4000.0), GATES).gate == ACCEPT
    assert judge(replace(GOOD, agreement=0.7, tumour_inside=0.5), GATES).gate == DOWNWEIGHT


@pytest.mark.parametrize(
    ("change", "gate", "reason"),
    [
        ({"volume_ml": 120.0}, REJECT, "liver volume 120 ml is not within 500–4000 ml"),
        ({"volume_ml": 5000.0}, REJECT, "liver volume 5000 ml is not within 500–4000 ml"),
        ({"component_share": 0.75}, REJECT, "largest component's share 0.75 < 0.80"),
        ({"agreement": 0.8}, DOWNWEIGHT, "agreement 0.80 < 0.90"),
        ({"agreement": 0.6}, REJECT, "agreement 0.60 < 0.90"),
        ({"tumour_inside": 0.6}, DOWNWEIGHT, "share of the manual tumour inside 0.60 < 0.80"),
        ({"tumour_inside": 0.25}, REJECT, "share of the manual tumour inside 0.25 < 0.80"),
        ({"cut_share": 0.5}, DOWNWEIGHT, "share of the liver cut by the field of view 0.50 > 0.10"),
    ],
)
def test_each_gate_by_itself_decides_and_says_why(change: dict[str, float], gate: str, reason: str) -> None:
    verdict = judge(replace(GOOD, **change), GATES)
    assert verdict == Verdict(gate, {DOWNWEIGHT: 0.5, REJECT: 0.0}[gate], (reason,))


def test_the_worst_word_of_all_gates_counts_and_every_reason_is_told() -> None:
    verdict = judge(replace(GOOD, cut_share=0.5, agreement=0.8), GATES)
    assert (verdict.gate, verdict.weight, len(verdict.reasons)) == (DOWNWEIGHT, 0.5, 2)
    verdict = judge(replace(GOOD, cut_share=0.5, agreement=0.1), GATES)
    assert (verdict.gate, verdict.weight, len(verdict.reasons)) == (REJECT, 0.0, 2)


def test_a_verdict_is_a_row_of_a_table() -> None:
    row = Verdict(REJECT, 0.0, ("a", "b")).row()
    assert row == {"gate": "reject", "weight": 0.0, "reasons": "a; b"}


def test_an_empty_prediction_is_rejected() -> None:
    signals = measure(EMPTY, EMPTY, [EMPTY, EMPTY], None, (5.0, 1.0, 1.0))
    assert signals == Signals(volume_ml=0.0, component_share=0.0, agreement=0.0, tumour_inside=1.0, cut_share=0.0)
    assert judge(signals, GATES).gate == REJECT


def test_signals_are_measured_on_the_masks_that_they_are_about() -> None:
    liver, raw = row(1, 5), row(1, 5) | row(8, 9)  # cleaning dropped one voxel of five
    signals = measure(raw, liver, [row(1, 5), row(1, 5), row(3, 5)], row(4, 6), (5.0, 2.0, 1.0))
    assert signals.volume_ml == pytest.approx(4 * 10 / 1000)
    assert signals.component_share == 4 / 5
    assert signals.agreement == pytest.approx(2 * 2 / (4 + 2))  # the least of both variants
    assert signals.tumour_inside == 1 / 2
    assert signals.cut_share == 0


def test_one_prediction_agrees_with_itself() -> None:
    assert measure(row(1, 5), row(1, 5), [row(1, 5)], None, (1.0, 1.0, 1.0)).agreement == 1


def test_the_largest_component_is_a_share_of_all_that_was_predicted() -> None:
    assert component_share(row(0, 6) | row(8, 10)) == 6 / 8
    assert component_share(row(0, 6)) == 1
    assert component_share(EMPTY) == 0


def test_components_hold_together_by_faces() -> None:
    diagonal = row(2, 3, y=2) | row(3, 4, y=3)
    assert component_share(diagonal) == 1 / 2


def test_agreement_is_a_dice_and_two_empty_masks_have_none() -> None:
    assert agreement(row(0, 4), row(2, 4)) == pytest.approx(4 / 6)
    assert agreement(row(0, 4), row(0, 4)) == 1
    assert agreement(row(0, 4), EMPTY) == 0
    assert agreement(EMPTY, EMPTY) == 0


def test_a_tumour_that_is_unknown_or_absent_contradicts_nothing() -> None:
    assert tumour_inside(row(0, 4), None) == 1
    assert tumour_inside(row(0, 4), EMPTY) == 1
    assert tumour_inside(EMPTY, EMPTY) == 1


def test_the_share_of_a_tumour_inside_counts_its_own_voxels() -> None:
    assert tumour_inside(row(0, 4), row(3, 7)) == 1 / 4
    assert tumour_inside(row(0, 4), row(1, 3)) == 1
    assert tumour_inside(EMPTY, row(1, 3)) == 0


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("side", [0, -1])
def test_a_liver_is_cut_on_each_side_of_the_volume(axis: int, side: int) -> None:
    liver = EMPTY.copy()
    liver[1:5, 1:7, 1:9] = True  # all but the outermost layer: 4 × 6 × 8 voxels
    assert cut_share(liver) == 0
    layer = np.moveaxis(EMPTY.copy(), axis, 0)
    layer[side] = True
    cut = np.moveaxis(layer, 0, axis)
    assert cut_share(liver | cut) == pytest.approx(cut.sum() / (4 * 6 * 8 + cut.sum()))


def test_an_empty_liver_is_not_cut() -> None:
    assert cut_share(EMPTY) == 0
