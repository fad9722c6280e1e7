"""The quality signals, on masks small enough to count by hand."""

from __future__ import annotations

from typing import Any, get_args

import numpy as np
import pytest
from good_signals import GATES

from hepar.cases import Modality
from hepar.imaging.masks import Mask
from hepar.params import SignalName
from hepar.pseudo_labels.gates import REJECT, judge
from hepar.pseudo_labels.signals import (
    Evidence,
    Signals,
    agreement,
    component_share,
    cut_share,
    entropy,
    hole_share,
    intensity_distance,
    mean_pairwise_dice,
    measure,
    right_share,
    roughness,
    surface_mm2,
    tumour_inside,
)

UNIT = (1.0, 1.0, 1.0)


def row(start: int, stop: int, size: int = 10) -> Mask:
    """A line of voxels along x inside a block, away from the borders in y and z."""
    mask = np.zeros((3, 3, size), bool)
    mask[1, 1, start:stop] = True
    return mask


EMPTY = row(0, 0)


def test_signal_names_match_those_in_params() -> None:
    assert Signals.names() == get_args(SignalName)


def evidence(**changes: Any) -> Evidence:
    liver = row(1, 5)
    values: dict[str, Any] = {
        "probability_zyx": liver.astype(np.float32),
        "votes_zyx": [liver],
        "raw_zyx": liver,
        "liver_zyx": liver,
        "tumour_zyx": None,
        "body_zyx": np.ones_like(liver),
        "intensity_n": np.array([0.5, 0.5], np.float32),
        "spacing_zyx_mm": UNIT,
    }
    return Evidence(**{**values, **changes})


def test_an_empty_prediction_is_rejected() -> None:
    empty = evidence(probability_zyx=EMPTY.astype(np.float32), votes_zyx=[EMPTY], raw_zyx=EMPTY, liver_zyx=EMPTY)
    signals = measure(empty, (0.5, 0.1))
    assert (signals.volume_ml, signals.component_share, signals.right_share) == (0, 0, 0)
    assert judge(signals, Modality.CT, GATES).gate == REJECT


def test_each_signal_is_measured_on_its_own_mask() -> None:
    signals = measure(
        evidence(
            votes_zyx=[row(1, 5), row(1, 3), row(2, 5)],
            raw_zyx=row(1, 5) | row(7, 8),
            tumour_zyx=row(4, 6),
            spacing_zyx_mm=(10.0, 10.0, 10.0),
        ),
        (0.3, 0.1),
    )
    assert signals.volume_ml == 4
    assert signals.component_share == pytest.approx(4 / 5)
    assert signals.agreement == pytest.approx(2 * 2 / (4 + 2))  # the lower of the two
    assert signals.tumour_inside == pytest.approx(1 / 2)
    assert signals.cut_share == 0
    assert signals.intensity_distance == pytest.approx(2)


def test_a_single_prediction_has_agreement_1() -> None:
    assert measure(evidence(), None).agreement == 1
    assert mean_pairwise_dice([row(1, 5)]) == 1


def test_pairwise_dice_is_the_mean_over_all_pairs() -> None:
    one, two, three = row(1, 5), row(1, 3), row(2, 5)  # Dice 4/6, 6/7 and 2/5
    assert mean_pairwise_dice([one, two, three]) == pytest.approx((4 / 6 + 6 / 7 + 2 / 5) / 3)
    assert mean_pairwise_dice([one, EMPTY]) == 0
    assert mean_pairwise_dice([EMPTY, EMPTY]) == 0  # neither shows a liver


def test_the_liver_is_a_fraction_of_the_raw_prediction_and_what_was_filled_in_does_not_count() -> None:
    assert component_share(row(1, 4) | row(6, 7), row(1, 4)) == pytest.approx(3 / 4)
    assert component_share(row(1, 2) | row(3, 4), row(1, 4)) == 1
    assert component_share(EMPTY, EMPTY) == 0


def test_holes_are_liver_voxels_missing_from_the_raw_prediction() -> None:
    assert hole_share(row(1, 3) | row(4, 6), row(1, 6)) == pytest.approx(1 / 5)
    assert hole_share(row(1, 6), row(1, 6)) == 0
    assert hole_share(row(1, 6), EMPTY) == 0


def test_the_surface_is_the_faces_between_mask_and_background() -> None:
    one = np.zeros((3, 3, 3), bool)
    one[1, 1, 1] = True
    assert surface_mm2(one, UNIT) == 6
    assert surface_mm2(one, (3.0, 2.0, 1.0)) == 2 * (2 * 1 + 3 * 1 + 3 * 2)
    assert surface_mm2(np.ones((1, 1, 2), bool), UNIT) == 10  # outside the array is background


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


def test_the_patients_right_is_at_low_x() -> None:
    body = np.ones((3, 3, 10), bool)
    assert right_share(row(0, 4), body) == 1
    assert right_share(row(6, 10), body) == 0
    assert right_share(row(3, 7), body) == pytest.approx(0.5)
    assert right_share(EMPTY, body) == 0
    shifted = np.zeros_like(body)
    shifted[..., 6:] = True  # a body whose centre is at 7.5
    assert right_share(row(6, 10), shifted) == pytest.approx(0.5)
    assert right_share(row(0, 4), np.zeros_like(body)) == 1  # no body: the volume's centre


def test_agreement_is_dice_and_0_for_two_empty_masks() -> None:
    assert agreement(row(0, 4), row(2, 4)) == pytest.approx(4 / 6)
    assert agreement(row(0, 4), row(0, 4)) == 1
    assert agreement(row(0, 4), EMPTY) == 0
    assert agreement(EMPTY, EMPTY) == 0


def test_entropy_is_in_bits_per_liver_voxel() -> None:
    mean = np.zeros((1, 1, 6), np.float32)
    mean[..., 0:2], mean[..., 2] = 1.0, 0.5
    liver = mean > 0.6
    assert entropy(mean, liver) == pytest.approx(1 / 2)
    mean[..., 3] = 0.25
    bits = 1 - (0.25 * np.log2(0.25) + 0.75 * np.log2(0.75))
    assert entropy(mean, liver) == pytest.approx(bits / 2)
    assert entropy(mean, np.zeros_like(liver)) == float("inf")
    assert entropy(np.zeros_like(mean), np.zeros_like(liver)) == 0


def test_without_a_tumour_the_inside_fraction_is_1() -> None:
    assert tumour_inside(row(1, 5), None) == 1
    assert tumour_inside(row(1, 5), EMPTY) == 1
    assert tumour_inside(EMPTY, row(1, 3)) == 0


def test_the_inside_fraction_counts_tumour_voxels() -> None:
    assert tumour_inside(row(1, 5), row(4, 8)) == pytest.approx(1 / 4)
    assert tumour_inside(row(1, 5), row(2, 4)) == 1


def test_intensity_distance_is_in_standard_deviations_of_manual_livers() -> None:
    values = np.array([0.0, 1.0, 5.0], np.float32)
    assert intensity_distance(values, (0.5, 0.25)) == pytest.approx(2)
    assert intensity_distance(values, None) == 0
    assert intensity_distance(values[:0], (0.5, 0.25)) == 0


@pytest.mark.parametrize("axis", range(3))
@pytest.mark.parametrize("side", [0, -1])
def test_a_liver_on_any_side_of_the_volume_is_cut(axis: int, side: int) -> None:
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
