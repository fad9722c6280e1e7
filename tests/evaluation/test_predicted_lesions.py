"""The table of predicted lesions."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from hepar.evaluation.label_pairs import CaseIdentity, LabelPair, SegmentedCase
from hepar.evaluation.predicted_lesions import COLUMNS, lesion_rows, lesions_table
from hepar.imaging.masks import Mask
from hepar.imaging.volumes import Geometry
from hepar.inference.lesions import measure_lesions

GEOMETRY = Geometry((2, 4, 9), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0), (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0))


def columns(*numbers: int) -> Mask:
    """A mask of one row that holds these columns."""
    mask_zyx = np.zeros(GEOMETRY.size_zyx, bool)
    mask_zyx[0, 1, list(numbers)] = True
    return mask_zyx


PREDICTED = columns(0, 1, 4, 7, 8)
PROBABILITY = np.where(PREDICTED, 0.75, 0.0).astype(np.float32)
LESIONS = measure_lesions(PREDICTED, PROBABILITY, GEOMETRY)
CASE = SegmentedCase(
    CaseIdentity("a", "p", "CT", "", "s"),
    LabelPair(None, PREDICTED),
    LabelPair(columns(1, 2, 3, 8), PREDICTED),
    GEOMETRY.spacing_zyx_mm,
    distances_known=True,
)


def test_a_lesion_overlaps_the_reference_if_they_share_a_voxel() -> None:
    rows = lesion_rows(CASE, LESIONS)
    assert [(row["case_id"], row["lesion"], row["volume_ml"], row["overlaps_reference"]) for row in rows] == [
        ("a", 1, 0.002, True),
        ("a", 2, 0.001, False),
        ("a", 3, 0.002, True),
    ]
    assert {row["confidence"] for row in rows} == {0.75}


def test_an_unknown_reference_and_a_nominal_voxel_size_are_not_zero() -> None:
    unknown = replace(CASE, tumour=LabelPair(None, PREDICTED), distances_known=False)
    assert {(row["volume_ml"], row["overlaps_reference"]) for row in lesion_rows(unknown, LESIONS)} == {(None, None)}
    absent = replace(CASE, tumour=LabelPair(columns(), PREDICTED))
    assert {row["overlaps_reference"] for row in lesion_rows(absent, LESIONS)} == {False}


def test_the_table_of_no_lesions_has_its_columns() -> None:
    assert lesion_rows(CASE, ()) == []
    assert lesions_table([]).columns.tolist() == list(COLUMNS)
    assert len(lesions_table(lesion_rows(CASE, LESIONS))) == 3
