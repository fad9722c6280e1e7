"""The table of lesions: those of the expert and of the model, and how they match."""

from __future__ import annotations

import math
from dataclasses import fields, replace

import numpy as np
import pytest

from hepar.evaluation.label_pairs import CaseIdentity, LabelPair, SegmentedCase, TumourProbability
from hepar.evaluation.lesion_table import LesionRow, lesions_table
from hepar.evaluation.lesions import IOU_THRESHOLDS
from hepar.evaluation.scores import score_case
from hepar.imaging.masks import Mask

SHAPE = (3, 6, 12)
SPACING_MM = (5.0, 2.0, 1.0)


def columns(*numbers: int) -> Mask:
    """A mask of one row that holds these columns."""
    mask_zyx = np.zeros(SHAPE, bool)
    mask_zyx[1, 2, list(numbers)] = True
    return mask_zyx


def probability(**of_columns: float) -> TumourProbability:
    """Probabilities of one row by column, given as `c3=0.5`."""
    probability_zyx = np.zeros(SHAPE, np.float32)
    for name, value in of_columns.items():
        probability_zyx[1, 2, int(name[1:])] = value
    return TumourProbability(probability_zyx, inside_liver=True, min_lesion_voxels=1)


LIVER = np.ones(SHAPE, bool)
PREDICTED = columns(0, 1, 4)
CASE = SegmentedCase(
    CaseIdentity("a", "p", "CT", "", "s"),
    LabelPair(LIVER, LIVER),
    LabelPair(columns(1, 2, 7, 8, 11), PREDICTED),
    SPACING_MM,
    distances_known=True,
    tumour_probability=probability(c0=0.75, c1=0.5, c4=0.875, c8=0.25),
)


def rows(case: SegmentedCase) -> tuple[LesionRow, ...]:
    return score_case(case).lesion_rows


def test_every_lesion_has_a_row_also_a_missed_one() -> None:
    found = [(row.kind, row.lesion, row.matched, row.iou, row.confidence) for row in rows(CASE)]
    assert found == [
        ("reference", 1, True, pytest.approx(1 / 3), 0.75),
        ("reference", 2, False, 0, 0.25),  # overlapped by a candidate alone
        ("reference", 3, False, 0, None),
        ("predicted", 1, True, pytest.approx(1 / 3), 0.75),
        ("predicted", 2, False, 0, 0.875),
    ]


def test_a_lesion_has_its_size_and_diameters() -> None:
    first = rows(CASE)[0]
    assert first.volume_ml == pytest.approx(2 * 10 / 1000)
    assert first.equivalent_diameter_mm == pytest.approx((6 * 20 / np.pi) ** (1 / 3))
    # the outline of two voxels of 1 × 2 mm in a row is a hexagon, 2 mm long and high: its diagonal, and what crosses it
    assert first.longest_axial_diameter_mm == pytest.approx(math.hypot(2, 1))
    assert first.perpendicular_diameter_mm == pytest.approx(4 / math.hypot(2, 1))
    assert first.size == "<10 mm"


# the predicted columns 5 to 11 share three with the first lesion, whose they become, and both of the second lesion
SHARED = replace(
    CASE,
    tumour=LabelPair(columns(*range(8), 10, 11), columns(*range(4), *range(5, 12))),
    tumour_probability=probability(**dict.fromkeys((f"c{n}" for n in (*range(4), *range(5, 12))), 0.75)),
)


@pytest.mark.parametrize("case", [CASE, SHARED])
def test_the_rows_give_the_counts_of_the_case(case: SegmentedCase) -> None:
    scores, lesions = score_case(case), rows(case)
    for iou_above, detection in zip(IOU_THRESHOLDS, scores.lesions or (), strict=True):
        above = {
            kind: [row.matched if iou_above == 0 else (row.iou or 0) > iou_above for row in lesions if row.kind == kind]
            for kind in ("reference", "predicted")
        }
        assert above["reference"].count(True) == detection.counts.true_positives
        assert above["reference"].count(False) == detection.counts.false_negatives
        assert above["predicted"].count(False) == detection.counts.false_positives


def test_a_lesion_under_a_component_of_another_is_matched_as_the_curve_finds_it() -> None:
    scores = score_case(SHARED)
    assert [(row.kind, row.matched, row.iou) for row in scores.lesion_rows] == [
        ("reference", True, pytest.approx(7 / 12)),
        ("reference", True, 0),  # no component is its own
        ("predicted", True, pytest.approx(7 / 12)),
        ("predicted", True, pytest.approx(7 / 12)),
    ]
    assert scores.candidates is not None
    assert scores.candidates.reference_confidences == (0.75, 0.75)


def test_what_is_unknown_is_empty() -> None:
    unknown = rows(replace(CASE, tumour=LabelPair(None, PREDICTED), distances_known=False))
    assert [(row.kind, row.volume_ml, row.size, row.longest_axial_diameter_mm) for row in unknown] == [
        ("predicted", None, None, None)
    ] * 2
    assert {(row.matched, row.iou) for row in unknown} == {(None, None)}
    assert [row.confidence for row in unknown] == [0.75, 0.875]
    assert {row.confidence for row in rows(replace(CASE, tumour_probability=None))} == {None}
    absent = rows(replace(CASE, tumour=LabelPair(columns(), PREDICTED)))
    assert [(row.kind, row.matched) for row in absent] == [("predicted", False)] * 2


def test_the_table_of_no_lesions_has_its_columns() -> None:
    assert lesions_table([]).columns.tolist() == [item.name for item in fields(LesionRow)]
    assert lesions_table(rows(CASE))["kind"].tolist() == ["reference"] * 3 + ["predicted"] * 2
