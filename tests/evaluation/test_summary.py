"""Summaries: pooling, counts, and cases that are left out."""

from __future__ import annotations

import json

import numpy as np
import pytest

from hepar.evaluation.label_pairs import CaseIdentity, LabelPair, SegmentedCase
from hepar.evaluation.scores import CaseScores, score_case
from hepar.evaluation.summary import summarise

SHAPE = (3, 8, 20)


def mask(start: int, stop: int, row: int = 2) -> np.ndarray:
    """Voxels start…stop-1 of one row of the middle slice."""
    mask_zyx = np.zeros(SHAPE, dtype=bool)
    mask_zyx[1, row, start:stop] = True
    return mask_zyx


LIVER_ZYX = mask(0, 20) | mask(0, 20, row=5)


def case(
    case_id: str,
    tumour: LabelPair,
    modality: str = "CT",
    source: str = "A",
    liver_zyx: np.ndarray | None = LIVER_ZYX,
    distances_known: bool = True,
) -> CaseScores:
    """Scores of a case whose predicted liver is perfect."""
    identity = CaseIdentity(case_id, f"patient of {case_id}", modality, "", source)
    return score_case(
        SegmentedCase(identity, LabelPair(liver_zyx, LIVER_ZYX), tumour, (1.0, 1.0, 1.0), distances_known)
    )


EMPTY_ZYX = mask(0, 0)
FOUND = case("found", LabelPair(mask(0, 8), mask(0, 8)))
HALF = case("half", LabelPair(mask(0, 8), mask(4, 8)), source="B")
FREE = case("free", LabelPair(EMPTY_ZYX, EMPTY_ZYX))
FALSE_POSITIVE = case("false-positive", LabelPair(EMPTY_ZYX, mask(0, 4)))
UNKNOWN = case("unknown", LabelPair(None, mask(0, 10)))
MR = case("mr", LabelPair(mask(0, 8), EMPTY_ZYX), modality="MR", source="C", liver_zyx=None)
ALL = [FOUND, HALF, FREE, FALSE_POSITIVE, UNKNOWN, MR]


def summary(scores: list[CaseScores]) -> dict:
    return summarise(scores, seed=3, resamples=200)


def test_modalities_and_sources_are_summarised_separately() -> None:
    result = summary(ALL)
    assert list(result) == ["CT", "MR"]
    assert list(result["CT"]["sources"]) == ["A", "B"]
    assert (result["CT"]["cases"], result["CT"]["sources"]["B"]["cases"]) == (5, 1)
    assert result["CT"]["sources"]["B"]["tumour"]["dice"]["mean"] == pytest.approx(2 * 4 / 12)
    assert list(summary([FOUND])) == ["CT"]
    assert summary([]) == {}


def test_tumour_dice_is_over_cases_with_tumours() -> None:
    dice = summary(ALL)["CT"]["tumour"]["dice"]
    assert dice["n"] == 2
    assert dice["mean"] == pytest.approx((1 + 8 / 12) / 2)
    assert dice["ci95"][0] <= dice["mean"] <= dice["ci95"][1]


def test_global_dice_and_lesions_pool_known_cases_and_count_the_false_positive() -> None:
    tumour = summary(ALL)["CT"]["tumour"]
    assert tumour["global_dice"]["value"] == pytest.approx(2 * (8 + 4) / (16 + 12 + 4))
    assert tumour["global_dice"]["n"] == 4
    lesions = tumour["lesion_f1"]["iou>0"]
    assert lesions["value"] == pytest.approx(2 * 2 / (2 * 2 + 1))
    assert (lesions["sensitivity"], lesions["precision"]) == (1, pytest.approx(2 / 3))
    assert lesions["false_positives_per_case"] == 1 / 4
    # half of a lesion has IoU 1/2, which is not more than 0.5: one more false negative and false positive
    strict = tumour["lesion_f1"]["iou>0.5"]
    assert (strict["true_positives"], strict["false_negatives"], strict["false_positives"]) == (1, 1, 2)
    assert strict["by_size"]["<10 mm"] == {
        "lesions": 2,
        "detected": 1,
        "sensitivity": 0.5,
        "false_positives": 2,
    }
    assert strict["by_size"][">20 mm"]["sensitivity"] is None


def test_specificity_is_over_tumour_free_cases() -> None:
    tumour = summary(ALL)["CT"]["tumour"]
    assert (tumour["specificity"]["mean"], tumour["specificity"]["n"]) == (0.5, 2)
    assert tumour["false_positive_volume_ml"]["mean"] == pytest.approx((0 + 4 / 1000) / 2)


def test_cases_are_counted_by_what_could_be_scored() -> None:
    assert summary(ALL)["CT"]["tumour"]["counts"] == {
        "present": 2,
        "absent": 2,
        "unknown": 1,
        "missed": 0,
        "false_positive": 1,
        "both_empty": 1,
        "distances_unknown": 0,
    }
    assert summary(ALL)["MR"]["tumour"]["counts"]["missed"] == 1


def test_an_empty_mask_counts_in_the_mean_distance_and_is_left_out_of_where_both_present() -> None:
    tumour = summary([FOUND, FALSE_POSITIVE])["CT"]["tumour"]
    diagonal_mm = float(np.linalg.norm(SHAPE))
    assert tumour["hd95_mm"]["mean"] == pytest.approx((0 + diagonal_mm) / 2)
    assert tumour["where_both_present"]["hd95_mm"] == {"mean": 0, "ci95": None, "n": 1}


def test_a_structure_that_no_case_can_be_scored_on_has_no_mean() -> None:
    result = summary([UNKNOWN, MR])
    assert result["MR"]["liver"]["dice"] == {"mean": None, "ci95": None, "n": 0}
    assert result["CT"]["tumour"]["dice"] == {"mean": None, "ci95": None, "n": 0}
    assert result["CT"]["tumour"]["global_dice"] == {"value": None, "ci95": None, "n": 0}
    assert result["CT"]["tumour"]["lesion_f1"]["iou>0"]["value"] is None
    assert result["CT"]["challenges"]["lits_lesion_recall"] is None


def test_an_unknown_tumour_changes_no_tumour_metric() -> None:
    with_unknown, without = summary([FOUND, HALF, UNKNOWN]), summary([FOUND, HALF])
    for name in ("dice", "global_dice", "lesion_f1", "hd95_mm", "specificity", "burden_error"):
        assert with_unknown["CT"]["tumour"][name] == without["CT"]["tumour"][name]
    assert with_unknown["CT"]["challenges"]["lits_tumour_dice_per_case"]["n"] == 2


def test_cases_with_nominal_spacing_are_left_out_of_distances_and_counted() -> None:
    nominal = case("nominal", LabelPair(mask(0, 8), mask(0, 8)), distances_known=False)
    tumour = summary([FOUND, nominal])["CT"]["tumour"]
    assert (tumour["dice"]["n"], tumour["hd95_mm"]["n"]) == (2, 1)
    assert tumour["counts"]["distances_unknown"] == 1


def test_lits_scores_are_pooled_and_two_empty_masks_are_perfect() -> None:
    challenges = summary([FOUND, HALF, FREE, FALSE_POSITIVE])["CT"]["challenges"]
    assert challenges["lits_tumour_dice_per_case"]["mean"] == pytest.approx((1 + 8 / 12 + 1 + 0) / 4)
    assert challenges["lits_lesion_recall"] == 0.5
    assert challenges["lits_lesion_precision"] == pytest.approx(1 / 3)
    assert challenges["lits_lesion_recall_greater_zero"] == 1
    differences = [0, (8 - 4) / 40, 0, -4 / 40]
    assert challenges["lits_tumour_burden_rmse"] == pytest.approx(np.sqrt(np.mean(np.square(differences))))
    assert challenges["lits_tumour_burden_max"] == pytest.approx(0.1)


def test_the_summary_is_json_and_independent_of_the_order_of_the_cases() -> None:
    text = json.dumps(summary(ALL), allow_nan=False)
    assert json.dumps(summary(ALL[::-1]), allow_nan=False) == text


def test_a_case_scored_twice_is_refused() -> None:
    with pytest.raises(ValueError, match="more than once: found"):
        summary([FOUND, HALF, FOUND])
