"""LiTS and CHAOS scores at and beyond their thresholds."""

from __future__ import annotations

import numpy as np
import pytest

from hepar.evaluation.challenge_scores import (
    LITS_PENALTY,
    chaos_scores,
    lits_lesion_counts,
    lits_tumour_burden_difference,
    lits_tumour_dice,
)
from hepar.evaluation.lesions import LesionCounts, match_lesions
from hepar.evaluation.overlap import OverlapCounts


def test_chaos_points_run_from_100_to_0_at_the_thresholds() -> None:
    best = chaos_scores(dice=1.0, rvd=0.0, assd_mm=0.0, mssd_mm=0.0)
    assert best is not None
    assert best.mean == 100
    middle = chaos_scores(dice=0.8, rvd=-0.025, assd_mm=7.5, mssd_mm=30.0)
    assert middle is not None
    assert (middle.dice, middle.ravd, middle.assd, middle.mssd) == pytest.approx((80, 50, 50, 50))
    assert middle.mean == pytest.approx(57.5)


def test_chaos_gives_no_points_beyond_the_thresholds() -> None:
    worst = chaos_scores(dice=0.79, rvd=0.06, assd_mm=16.0, mssd_mm=61.0)
    assert worst is not None
    assert (worst.dice, worst.ravd, worst.assd, worst.mssd) == (0, 0, 0, 0)


@pytest.mark.parametrize("missing", ["dice", "rvd", "assd_mm", "mssd_mm"])
def test_chaos_needs_all_four_measures(missing: str) -> None:
    measures: dict[str, float | None] = {"dice": 0.9, "rvd": 0.0, "assd_mm": 1.0, "mssd_mm": 1.0}
    assert chaos_scores(**(measures | {missing: None})) is None


def test_lits_counts_merged_lesions_once() -> None:
    reference_zyx = np.array([[[True, True, False, True, True, False, False, True]]])
    prediction_zyx = np.array([[[True, True, True, True, True, False, False, False]]])
    matching = match_lesions(reference_zyx, prediction_zyx)
    assert lits_lesion_counts(matching, 0.5) == LesionCounts(1, 1, 0)


def test_lits_counts_a_lesion_whose_counterpart_joined_another_as_missed() -> None:
    def line(drawing: str) -> np.ndarray:
        return np.array([[[character == "#" for character in drawing]]])

    # the second component shares three voxels with the first lesion and two with the second, which is left alone
    matching = match_lesions(line("########..##"), line("####.#######"))
    assert lits_lesion_counts(matching, 0.0) == LesionCounts(1, 1, 0)


def test_lits_iou_of_one_half_is_not_detected() -> None:
    matching = match_lesions(np.array([[[True, True]]]), np.array([[[True, False]]]))
    assert lits_lesion_counts(matching, 0.5) == LesionCounts(0, 1, 1)


def test_lits_gives_two_empty_tumour_masks_dice_1() -> None:
    assert lits_tumour_dice(OverlapCounts(0, 0, 0)) == 1
    assert lits_tumour_dice(OverlapCounts(0, 5, 0)) == 0


def test_lits_burden_is_reference_minus_prediction() -> None:
    liver, tumour = OverlapCounts(100, 50, 50), OverlapCounts(20, 5, 5)
    assert lits_tumour_burden_difference(liver, tumour) == pytest.approx(0.2 - 0.1)


def test_lits_penalises_a_prediction_without_liver_tissue() -> None:
    only_tumour = OverlapCounts(100, 5, 5)
    assert lits_tumour_burden_difference(only_tumour, OverlapCounts(20, 5, 5)) == pytest.approx(0.2 - LITS_PENALTY)
    assert lits_tumour_burden_difference(OverlapCounts(0, 5, 0), OverlapCounts(0, 5, 0)) is None
