"""Candidates beside the predicted lesions, on a row of voxels."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from hepar.evaluation.candidates import LesionCandidates
from hepar.evaluation.label_pairs import CaseIdentity, LabelPair, SegmentedCase, TumourProbability
from hepar.evaluation.scores import score_case
from hepar.imaging.masks import Mask

WIDTH = 16


def columns(*numbers: int) -> Mask:
    mask_zyx = np.zeros((1, 1, WIDTH), bool)
    mask_zyx[0, 0, list(numbers)] = True
    return mask_zyx


def case(
    reference: Mask | None, probabilities: list[float], inside_liver: bool = True, min_voxels: float = 1
) -> SegmentedCase:
    """A case whose predicted lesions are the voxels above one half. The liver leaves out column 11 and the last two."""
    probability_zyx = np.zeros((1, 1, WIDTH), np.float32)
    probability_zyx[0, 0, : len(probabilities)] = probabilities
    liver_zyx = columns(*(number for number in range(WIDTH - 2) if number != 11))
    predicted_zyx = (probability_zyx > 0.5) & (liver_zyx if inside_liver else True)
    return SegmentedCase(
        CaseIdentity("a", "p", "CT", "", "s"),
        LabelPair(liver_zyx, liver_zyx),
        LabelPair(reference, predicted_zyx),
        (1.0, 1.0, 1.0),
        True,
        TumourProbability(probability_zyx, inside_liver, min_voxels),
    )


def candidates(*arguments: object, **options: object) -> LesionCandidates:
    found = score_case(case(*arguments, **options)).candidates  # type: ignore[arg-type]
    assert found is not None
    return found


def test_a_component_of_low_probability_is_a_candidate_unless_it_touches_a_predicted_lesion() -> None:
    found = candidates(columns(6), [0.25, 0.75, 0.25, 0, 0, 0.25, 0.5, 0, 0.0625, 0, 0.75])
    # the predicted lesions are columns 1 and 10, columns 0 and 2 are the fringe of the first, column 8 is too unlikely
    assert found.confidences == (0.75, 0.75, 0.5)
    assert found.references == 1
    assert found.ious == {(0, 2): 1 / 2}
    assert found.overlapping == (False, False, True)
    assert found.reference_confidences == (0.5,)


def test_candidates_lie_in_the_predicted_liver_and_are_no_smaller_than_a_lesion() -> None:
    row = [0.25, 0, 0.25, 0.25, 0, 0, 0, 0, 0, 0, 0, 0.375, 0, 0, 0, 0.5]
    assert candidates(columns(), row).confidences == (0.25, 0.25)
    assert candidates(columns(), row, min_voxels=2).confidences == (0.25,)
    assert candidates(columns(), row, inside_liver=False).confidences == (0.25, 0.25, 0.375, 0.5)


def test_a_lesion_has_the_highest_confidence_of_what_overlaps_it() -> None:
    found = candidates(columns(0, 1, 2, 3, 9), [0.75, 0, 0, 0.875, 0.875])
    assert found.reference_confidences == (0.8125 + 0.0625, None)


def test_matches_are_one_to_one_in_the_order_of_confidence() -> None:
    # the first lesion has IoU 1/2 and 1/4 with its candidates; the less confident one is larger but comes too late
    pair = LesionCandidates((0.6, 0.9, 0.3), 2, {(0, 0): 0.5, (0, 1): 0.25, (1, 2): 0.05})
    assert pair.matched(0.0) == (False, True, True)
    assert pair.matched(0.1) == (False, True, False)
    assert pair.matched(0.3) == (True, False, False)
    assert pair.overlapping == (True, True, True)


def test_a_candidate_takes_the_lesion_of_highest_iou_that_is_free() -> None:
    wide = LesionCandidates((0.9, 0.8), 2, {(0, 0): 0.3, (1, 0): 0.4, (1, 1): 0.6})
    assert wide.matched(0.0) == (True, False)
    both = LesionCandidates((0.9, 0.8), 2, {(0, 0): 0.3, (1, 0): 0.4, (0, 1): 0.2, (1, 1): 0.6})
    assert both.matched(0.0) == (True, True)


def test_without_probabilities_or_reference_there_are_no_candidates() -> None:
    known = case(columns(0), [0.75])
    assert score_case(replace(known, tumour_probability=None)).candidates is None
    unknown = score_case(case(None, [0.75]))
    assert (unknown.candidates, unknown.reliability) == (None, None)


def test_the_curve_passes_through_the_point_at_which_the_case_was_scored() -> None:
    scores = score_case(case(columns(0, 4, 8), [0.75, 0, 0.875, 0, 0.25, 0, 0, 0, 0, 0.25]))
    assert scores.lesions is not None
    assert scores.candidates is not None
    counts, confident = scores.lesions[0].counts, [c > 0.5 for c in scores.candidates.confidences]
    found = [c is not None and c > 0.5 for c in scores.candidates.reference_confidences]
    assert (sum(found), found.count(False)) == (counts.true_positives, counts.false_negatives) == (1, 2)
    false = [not hit for hit, sure in zip(scores.candidates.overlapping, confident, strict=True) if sure]
    assert sum(false) == counts.false_positives == 1


def test_the_liver_bounds_where_probabilities_matter() -> None:
    """A case that was cut to its liver has the same candidates, and a voxel far from it is not among its voxels."""
    scores = score_case(case(columns(0), [0.75] + [0] * 14 + [0.875]))
    assert scores.reliability is not None
    assert sum(scores.reliability.samples) == WIDTH - 3
    assert scores.reliability.positives[7] == 1
    assert scores.reliability.probability_sums[7] == pytest.approx(0.75)
