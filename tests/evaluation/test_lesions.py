"""Lesions on a line, whose IoU can be counted by eye."""

from __future__ import annotations

import re
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis.extra.numpy import arrays

from hepar.evaluation.lesions import (
    IOU_THRESHOLDS,
    LesionCounts,
    detect_lesions,
    match_lesions,
)
from hepar.imaging.masks import equivalent_diameter_mm, lesion_size

MASKS = arrays(np.bool_, (3, 5, 6))


def line(drawing: str) -> np.ndarray:
    """A mask of one row from a drawing: `##.#` has two lesions."""
    return np.array([[[character == "#" for character in drawing]]])


def counts(reference: str, prediction: str, iou_above: float) -> tuple[int, int, int]:
    """True positives, false negatives and false positives of two drawings."""
    found = detect_lesions(match_lesions(line(reference), line(prediction)), iou_above, None).counts
    return found.true_positives, found.false_negatives, found.false_positives


def test_true_positive_false_negative_and_false_positive() -> None:
    assert counts("##..##....", "##......##", 0) == (1, 1, 1)


def test_lesions_without_overlap_are_not_detected() -> None:
    assert counts("##...", "..##.", 0) == (0, 1, 1)


@pytest.mark.parametrize("iou_above", [0.1, 0.5])
def test_iou_at_the_threshold_is_not_detected(iou_above: float) -> None:
    # IoU 1/2 and 1/10, then one voxel more
    at, above = {0.1: ("#.........", "##........"), 0.5: ("##...", "###..")}[iou_above]
    whole = "##########" if iou_above == 0.1 else "####."
    assert counts(whole, at, iou_above) == (0, 1, 1)
    assert counts(whole, above, iou_above) == (1, 0, 0)


def test_fragments_of_one_lesion_are_merged() -> None:
    # each fragment alone has IoU 4/10, together 8/10
    assert counts("##########", "####..####", 0.5) == (1, 0, 0)


def test_lesions_under_one_prediction_are_merged_and_both_detected() -> None:
    # each lesion alone has IoU 4/10, together 8/10
    assert counts("####..####", "##########", 0.5) == (2, 0, 0)


def test_a_prediction_joins_the_lesion_with_the_largest_overlap() -> None:
    matching = match_lesions(line("####.##."), line("#######."))
    assert [(group.reference_labels, group.prediction_labels) for group in matching.groups] == [((1, 2), (1,))]
    # the second lesion has a better prediction of its own, so it is not merged with the first
    reference_zyx, prediction_zyx = np.zeros((1, 3, 8), dtype=bool), np.zeros((1, 3, 8), dtype=bool)
    reference_zyx[0, 0, :] = True
    reference_zyx[0, 2, :4] = True
    prediction_zyx[0, 0, :7] = True
    prediction_zyx[0, 1:3, 0] = True
    prediction_zyx[0, 2, 2:4] = True
    groups = match_lesions(reference_zyx, prediction_zyx).groups
    assert [(group.reference_labels, group.prediction_labels) for group in groups] == [
        ((1,), (1,)),
        ((2,), (2,)),
    ]
    assert groups[0].iou == pytest.approx(7 / 10)
    assert groups[1].iou == pytest.approx(2 / 4)


def test_any_overlap_finds_a_lesion_whose_counterpart_joined_another() -> None:
    # the second lesion lies in the second component, which shares three voxels with the first lesion and two with it
    reference, prediction = "########..##", "####.#######"
    assert counts(reference, prediction, 0) == (2, 0, 0)
    # 7 of 12 voxels of the first lesion and both components agree; the second lesion has no component of its own
    assert [counts(reference, prediction, iou_above) for iou_above in (0.1, 0.5)] == [(1, 1, 0)] * 2
    by_size = detect_lesions(match_lesions(line(reference), line(prediction)), 0, 1000.0).by_size
    # 8 voxels of 1000 mm3 are a ball of 24.8 mm, 2 voxels one of 15.6 mm
    assert by_size is not None
    assert [by_size[size].true_positives for size in ("<10 mm", "10-20 mm", ">20 mm")] == [0, 1, 1]


def test_diagonal_neighbours_are_two_lesions() -> None:
    mask_zyx = np.zeros((1, 2, 2), dtype=bool)
    mask_zyx[0, 0, 0] = mask_zyx[0, 1, 1] = True
    assert len(match_lesions(mask_zyx, mask_zyx).reference_voxels) == 2


def test_lesion_size_is_the_diameter_of_a_ball_of_equal_volume() -> None:
    assert equivalent_diameter_mm(4 / 3 * np.pi * 5**3) == pytest.approx(10)
    assert [lesion_size(diameter) for diameter in (9.99, 10, 20, 20.01)] == [
        "<10 mm",
        "10-20 mm",
        "10-20 mm",
        ">20 mm",
    ]


def test_references_and_false_positives_are_each_binned_by_their_own_size() -> None:
    # 4 voxels of 1000 mm3 are a ball of 19.7 mm, 1 voxel one of 12.4 mm, 8 voxels one of 24.8 mm
    matching = match_lesions(line("####...........#"), line("##...########..."))
    by_size = detect_lesions(matching, 0, 1000.0).by_size
    assert by_size == {
        "<10 mm": LesionCounts(0, 0, 0),
        "10-20 mm": LesionCounts(1, 1, 0),
        ">20 mm": LesionCounts(0, 0, 1),
    }


def test_without_a_voxel_size_there_are_no_size_bins() -> None:
    assert detect_lesions(match_lesions(line("##"), line("##")), 0, None).by_size is None


def test_ratios_without_a_denominator_are_undefined() -> None:
    none = detect_lesions(match_lesions(line("..."), line("...")), 0, 1.0).counts
    assert (none.f1, none.sensitivity, none.precision) == (None, None, None)
    false_positives = detect_lesions(match_lesions(line("..."), line("#.#")), 0, 1.0).counts
    assert (false_positives.f1, false_positives.sensitivity, false_positives.precision) == (0, None, 0)


def test_ratios_of_counts() -> None:
    some = LesionCounts(true_positives=3, false_negatives=1, false_positives=2)
    assert (some.f1, some.sensitivity, some.precision) == (6 / 9, 3 / 4, 3 / 5)


@given(MASKS, MASKS)
def test_every_component_is_in_one_group(reference_zyx: np.ndarray, prediction_zyx: np.ndarray) -> None:
    matching = match_lesions(reference_zyx, prediction_zyx)
    for side, sizes in (("reference", matching.reference_voxels), ("prediction", matching.prediction_voxels)):
        labels = [label for group in matching.groups for label in getattr(group, f"{side}_labels")]
        assert sorted(labels) == list(range(1, len(sizes) + 1))
    assert sum(matching.reference_voxels) == np.count_nonzero(reference_zyx)
    assert sum(group.intersection_voxels for group in matching.groups) <= np.count_nonzero(
        reference_zyx & prediction_zyx
    )
    assert all(0 <= group.iou <= 1 for group in matching.groups)


def test_any_overlap_is_a_shared_voxel() -> None:
    """All pairs of rows of five voxels; in `###.#` and `#.###` the last lesion has no component of its own."""

    def split(drawing: str, other: str) -> tuple[int, int]:
        """The number of lesions that share a voxel with the other row, and of those that share none."""
        lesions = [range(*lesion.span()) for lesion in re.finditer("#+", drawing)]
        touching = sum(any(other[column] == "#" for column in lesion) for lesion in lesions)
        return touching, len(lesions) - touching

    drawings = ["".join(row) for row in product(".#", repeat=5)]
    for reference, prediction in product(drawings, repeat=2):
        _, false = split(prediction, reference)
        assert counts(reference, prediction, 0) == (*split(reference, prediction), false), (reference, prediction)


@given(MASKS)
def test_a_perfect_prediction_detects_every_lesion(mask_zyx: np.ndarray) -> None:
    matching = match_lesions(mask_zyx, mask_zyx)
    for iou_above in IOU_THRESHOLDS:
        assert detect_lesions(matching, iou_above, None).counts == LesionCounts(len(matching.reference_voxels), 0, 0)


@given(MASKS, MASKS)
def test_matching_is_invariant_to_translation(reference_zyx: np.ndarray, prediction_zyx: np.ndarray) -> None:
    moved = [np.pad(mask_zyx, ((1, 0), (2, 3), (0, 2))) for mask_zyx in (reference_zyx, prediction_zyx)]
    assert match_lesions(moved[0], moved[1]) == match_lesions(reference_zyx, prediction_zyx)
