"""Scores of one case: known, unknown and absent structures."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from hepar.errors import DataError
from hepar.evaluation.label_pairs import CaseIdentity, LabelPair, SegmentedCase, case_box, cut_case
from hepar.evaluation.scores import CaseScores, score_case, scores_table

SHAPE = (6, 10, 10)
SPACING_MM = (5.0, 2.0, 2.0)
VOXEL_ML = 5 * 2 * 2 / 1000
EMPTY_ZYX = np.zeros(SHAPE, dtype=bool)


def block(z: slice, y: slice, x: slice) -> np.ndarray:
    mask_zyx = EMPTY_ZYX.copy()
    mask_zyx[z, y, x] = True
    return mask_zyx


LIVER_ZYX = block(slice(1, 5), slice(2, 8), slice(2, 8))
TUMOUR_ZYX = block(slice(2, 4), slice(3, 5), slice(3, 5))
ELSEWHERE_ZYX = block(slice(2, 4), slice(6, 8), slice(6, 8))


PERFECT = SegmentedCase(
    CaseIdentity("ct-1", "p1", "CT", "portal", "A"),
    LabelPair(LIVER_ZYX, LIVER_ZYX),
    LabelPair(TUMOUR_ZYX, TUMOUR_ZYX),
    SPACING_MM,
    True,
)


def score(**changes: Any) -> CaseScores:
    """Scores of a perfect prediction after the given changes."""
    return score_case(replace(PERFECT, **changes))


def test_a_perfect_prediction() -> None:
    case = score()
    assert case.liver.dice == case.tumour.dice == case.liver.nsd_2mm == 1
    assert case.liver.hd95_mm == case.liver.rvd == case.liver.voe == case.burden_error == 0
    assert case.liver.reference_volume_ml == pytest.approx(4 * 6 * 6 * VOXEL_ML)
    assert case.tumour.prediction_volume_ml == pytest.approx(8 * VOXEL_ML)
    assert case.burden_reference == pytest.approx(8 / 144)
    assert case.specific is None
    assert case.false_positive_volume_ml is None
    assert case.chaos is not None
    assert case.chaos.mean == 100
    assert [detection.counts.f1 for detection in case.lesions or ()] == [1, 1, 1]


def test_an_unknown_tumour_is_not_scored() -> None:
    case = score(tumour=LabelPair(None, ELSEWHERE_ZYX))
    assert not case.tumour.known
    assert case.tumour.dice is None
    assert case.tumour.hd95_mm is None
    assert case.lesions is None
    assert case.lits is None
    assert case.specific is None
    assert case.false_positive_volume_ml is None
    assert case.burden_error is None
    assert not case.tumour_free
    assert case.tumour.prediction_volume_ml == pytest.approx(8 * VOXEL_ML)
    assert case.liver.dice == 1


def test_the_tumour_is_scored_if_the_liver_is_unknown() -> None:
    case = score(liver=LabelPair(None, LIVER_ZYX))
    assert case.liver.dice is None
    assert case.chaos is None
    assert case.burden_error is None
    assert case.tumour.dice == 1
    assert case.lits is not None
    assert case.lits.liver_dice is None


def test_a_false_positive_in_a_tumour_free_case_counts_in_every_metric() -> None:
    case = score(tumour=LabelPair(EMPTY_ZYX, TUMOUR_ZYX))
    assert case.tumour_free
    assert case.tumour.dice is None
    assert case.tumour.rvd is None
    assert case.tumour.voe is None
    assert case.specific is False
    assert case.false_positive_volume_ml == pytest.approx(8 * VOXEL_ML)
    assert case.tumour.one_empty
    assert case.tumour.hd95_mm == pytest.approx(math.hypot(6 * 5, 10 * 2, 10 * 2))
    assert [detection.counts.false_positives for detection in case.lesions or ()] == [1, 1, 1]
    assert case.burden_error == pytest.approx(8 / 144)
    assert case.lits is not None
    assert case.lits.tumour_dice == 0


def test_a_tumour_free_case_without_prediction_is_specific() -> None:
    case = score(tumour=LabelPair(EMPTY_ZYX, EMPTY_ZYX))
    assert case.specific is True
    assert case.false_positive_volume_ml == 0
    assert case.tumour.both_empty
    assert not case.tumour.one_empty
    assert case.tumour.hd95_mm is None
    assert case.tumour.dice is None
    assert case.lits is not None
    assert case.lits.tumour_dice == 1


def test_a_missed_tumour_has_dice_0_and_the_image_diagonal() -> None:
    case = score(tumour=LabelPair(TUMOUR_ZYX, EMPTY_ZYX))
    assert case.tumour.dice == case.tumour.nsd_2mm == 0
    assert case.tumour.rvd == -1
    assert case.tumour.one_empty
    assert case.tumour.assd_mm == pytest.approx(math.hypot(6 * 5, 10 * 2, 10 * 2))


def test_a_nominal_spacing_keeps_ratios_and_drops_lengths_and_volumes() -> None:
    case = score(distances_known=False, tumour=LabelPair(EMPTY_ZYX, TUMOUR_ZYX))
    assert case.liver.dice == 1
    assert case.liver.rvd == 0
    assert case.liver.voe == 0
    assert case.liver.hd95_mm is None
    assert case.liver.nsd_2mm is None
    assert case.chaos is None
    assert case.liver.reference_volume_ml is None
    assert case.tumour.prediction_volume_ml is None
    assert case.false_positive_volume_ml is None
    assert case.specific is False
    assert case.lesions is not None
    assert case.lesions[0].counts.false_positives == 1
    assert case.lesions[0].by_size is None


def test_lits_counts_tumour_outside_the_liver_as_liver() -> None:
    outside_zyx = block(slice(2, 4), slice(0, 2), slice(0, 2))
    case = score(tumour=LabelPair(outside_zyx, outside_zyx))
    assert case.lits is not None
    assert case.lits.liver_dice == 1
    case = score(tumour=LabelPair(outside_zyx, EMPTY_ZYX))
    assert case.lits is not None
    assert case.lits.liver_dice == pytest.approx(2 * 144 / (144 + 152))


@pytest.mark.parametrize(
    "wrong",
    [
        {"tumour": LabelPair(TUMOUR_ZYX[1:], TUMOUR_ZYX)},
        {"tumour": LabelPair(TUMOUR_ZYX, TUMOUR_ZYX.astype(np.uint8))},
        {"spacing_zyx_mm": (0.0, 1.0, 1.0)},
    ],
)
def test_masks_that_cannot_be_compared_are_refused_by_case(wrong: dict[str, Any]) -> None:
    with pytest.raises(DataError, match="case ct-1: "):
        score(**wrong)


@pytest.mark.parametrize("tumour", [LabelPair(TUMOUR_ZYX, ELSEWHERE_ZYX), LabelPair(EMPTY_ZYX, TUMOUR_ZYX)])
def test_a_case_that_is_cut_to_its_liver_has_the_same_scores(tumour: LabelPair) -> None:
    """Also the diagonal of the image, which is the distance if one mask is empty."""
    whole = replace(PERFECT, tumour=tumour)
    cut = cut_case(whole, case_box(whole))
    assert cut.tumour.prediction_zyx.shape == (4, 6, 6)
    assert cut_case(cut, case_box(cut)).size_zyx == SHAPE
    assert score_case(cut) == score_case(whole)


def test_distances_by_area_and_panoptic_quality_are_in_the_table() -> None:
    (row,) = scores_table([score(tumour=LabelPair(TUMOUR_ZYX, ELSEWHERE_ZYX))]).to_dict("records")
    assert (row["pq"], row["rq"]) == (0, 0)
    assert pd.isna(row["sq"])
    assert (row["liver_area_weighted_nsd_2mm"], row["liver_area_weighted_hd95_mm"]) == (1, 0)
    # 3 voxels of 2 mm in y and in x lie between the two cubes
    assert row["tumour_area_weighted_nsd_2mm"] == 0
    assert 2 < row["tumour_area_weighted_assd_mm"] < row["tumour_area_weighted_hd95_mm"] < math.hypot(10, 10)
    (nominal,) = scores_table([score(distances_known=False)]).to_dict("records")
    assert pd.isna(nominal["liver_area_weighted_hd95_mm"])


def test_the_table_has_a_row_per_case_and_empty_cells_for_unknown() -> None:
    table = scores_table(
        [score(), score(identity=replace(PERFECT.identity, case_id="ct-2"), tumour=LabelPair(None, TUMOUR_ZYX))]
    )
    assert table["case_id"].tolist() == ["ct-1", "ct-2"]
    assert table["liver_dice"].tolist() == [1, 1]
    assert table.loc[0, "tumour_dice"] == 1
    assert table["tumour_dice"].isna().tolist() == [False, True]
    assert table["lesion_iou>0_true_positives"].isna().tolist() == [False, True]
    assert scores_table([]).empty
