"""What promotion reads in the table of scores of a report."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from hepar.evaluation.label_pairs import CaseIdentity, LabelPair, SegmentedCase
from hepar.evaluation.lesions import LesionCounts
from hepar.evaluation.report_folder import Report
from hepar.evaluation.scores import score_case, scores_table
from hepar.imaging.masks import Mask
from hepar.registry.case_results import CaseResult, case_results


def box(start: int, stop: int) -> Mask:
    mask_zyx = np.zeros((10, 10, 10), bool)
    mask_zyx[start:stop, start:stop, start:stop] = True
    return mask_zyx


def segmented(name: str, tumour: Mask | None, predicted: Mask, distances_known: bool = True) -> SegmentedCase:
    """A case of 10 mm voxels whose liver is predicted exactly."""
    identity = CaseIdentity(name, f"0{name}", "CT", "", "lits")
    liver = LabelPair(box(0, 10), box(0, 10))
    return SegmentedCase(identity, liver, LabelPair(tumour, predicted), (10.0, 10.0, 10.0), distances_known)


def read_back(folder: Path, *cases: SegmentedCase) -> tuple[CaseResult, ...]:
    Report(folder).save({}, {}, scores_table([score_case(case) for case in cases]), pd.DataFrame({"case_id": []}))
    return case_results(Report(folder).cases())


def test_scores_survive_the_table_with_unknown_and_tumour_free_cases_apart(tmp_path: Path) -> None:
    nothing = box(0, 0)
    found, unknown, specific, false, nominal = read_back(
        tmp_path,
        segmented("1", box(1, 3) | box(6, 8), box(1, 3) | box(4, 5)),  # one of two lesions found, and a false one
        segmented("2", None, box(1, 3)),
        segmented("3", nothing, nothing),
        segmented("4", nothing, box(1, 3)),
        segmented("5", nothing, box(1, 3), distances_known=False),
    )
    dice = 2 * 8 / (16 + 9)
    assert found == CaseResult("1", "01", "CT", "lits", 1.0, dice, LesionCounts(1, 1, 1), None, None)
    assert (found.recall, found.false_lesions, found.specificity, found.tumour_free) == (0.5, 1.0, None, False)
    assert unknown == CaseResult("2", "02", "CT", "lits", 1.0, None, None, None, None)
    assert (unknown.recall, unknown.false_lesions, unknown.tumour_free) == (None, None, False)
    assert specific == CaseResult("3", "03", "CT", "lits", 1.0, None, LesionCounts(0, 0, 0), True, 0.0)
    assert (specific.recall, specific.false_lesions, specific.specificity) == (None, 0.0, 1.0)
    assert false == CaseResult("4", "04", "CT", "lits", 1.0, None, LesionCounts(0, 0, 1), False, 8.0)
    assert (false.specificity, false.tumour_free) == (0.0, True)
    assert (nominal.specific, nominal.false_positive_ml) == (False, None)


def test_a_table_of_tumour_free_cases_alone_is_read_alike(tmp_path: Path) -> None:
    (only,) = read_back(tmp_path, segmented("3", box(0, 0), box(0, 0)))
    assert only.specific is True


def test_a_table_without_a_column_is_refused(tmp_path: Path) -> None:
    table = scores_table([score_case(segmented("1", None, box(0, 0)))])
    with pytest.raises(KeyError, match="liver_dice"):
        case_results(table.drop(columns="liver_dice"))
