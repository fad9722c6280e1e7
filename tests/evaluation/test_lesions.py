"""Lesions on a line: every IoU can be counted by eye."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis.extra.numpy import arrays

from hepar.evaluation.lesions import (
    IOU_THRESHOLDS,
    LesionCounts,
    detect_lesions,
    equivalent_diameter_mm,
    match_lesions,
    size_bin,
)

MASKS = arrays(np.bool_, (3, 5, 6))


def line(drawing: str) -> np.ndarray:
    """A mask of one row from a drawing: ``##.#`` has two lesions."""
    return np.array([[[character == "#" for character in drawing]]])


def counts(reference: str, prediction: str, iou_above: float) -> tuple[int, int, int]:
    """True positives, false negatives and false positives of two drawings."""
    found = detect_lesions(match_lesions(line(reference), line(prediction)), iou_above, None).counts
    return found.true_positives, found.false_negatives, found.false_positives


def test_found_missed_and_invented() -> None:
    assert counts("##..##....", "##......##", 0) == (1, 1, 1)


def test_overlap_of_nothing_is_no_detection() -> None:
    assert counts("##...", "..##.", 0) == (0, 1, 1)


@pytest.mark.parametrize("iou_above", [0.1, 0.5])
def test_the_threshold_itself_is_not_enough(iou_above: float) -> None:
    # IoU 1/2 and 1/10, then one voxel more
    at, above = {0.1: ("#.........", "##........"), 0.5: ("##...", "###..")}[iou_above]
    whole = "##########" if iou_above == 0.1 else "####."
    assert counts(whole, at, iou_above) == (0, 1, 1)
    assert counts(whole, above, iou_above) == (1, 0, 0)


def test_pieces_of_one_lesion_are_merged() -> None:
    # each piece alone has IoU 4/10, together 8/10
    assert counts("##########", "####..####", 0.5) == (1, 0, 0)


def test_lesions_under_one_prediction_are_merged_and_both_found() -> None:
    # each lesion alone has IoU 4/10, together 8/10
    assert counts("####..####", "##########", 0.5) == (2, 0, 0)


def test_a_prediction_joins_the_lesion_that_it_covers_most() -> None:
    matching = match_lesions(line("####.##."), line("#######."))
    assert [(group.reference_labels, group.prediction_labels) for group in matching.groups] == [((1, 2), (1,))]
    # the second lesion has a better prediction of its own, so it is not merged with the first
    reference, prediction = np.zeros((1, 3, 8), dtype=bool), np.zeros((1, 3, 8), dtype=bool)
    reference[0, 0, :] = True
    reference[0, 2, :4] = True
    prediction[0, 0, :7] = True
    prediction[0, 1:3, 0] = True
    prediction[0, 2, 2:4] = True
    groups = match_lesions(reference, prediction).groups
    assert [(group.reference_labels, group.prediction_labels) for group in groups] == [
        ((1,), (1,)),
        ((2,), (2,)),
    ]
    assert groups[0].iou == pytest.approx(7 / 10)
    assert groups[1].iou == pytest.approx(2 / 4)


def test_diagonal_neighbours_are_two_lesions() -> None:
    mask = np.zeros((1, 2, 2), dtype=bool)
    mask[0, 0, 0] = mask[0, 1, 1] = True
    assert len(match_lesions(mask, mask).reference_voxels) == 2


def test_sizes_go_by_the_diameter_of_the_ball_of_that_volume() -> None:
    assert equivalent_diameter_mm(4 / 3 * np.pi * 5**3) == pytest.approx(10)
    assert [size_bin(diameter) for diameter in (9.99, 10, 20, 20.01)] == [
        "<10 mm",
        "10-20 mm",
        "10-20 mm",
        ">20 mm",
    ]


def test_by_size_counts_references_by_their_size_and_inventions_by_theirs() -> None:
    # 4 voxels of 1000 mm3 are a ball of 19.7 mm, 1 voxel one of 12.4 mm, 8 voxels one of 24.8 mm
    matching = match_lesions(line("####...........#"), line("##...########..."))
    by_size = detect_lesions(matching, 0, 1000.0).by_size
    assert by_size == {
        "<10 mm": LesionCounts(0, 0, 0),
        "10-20 mm": LesionCounts(1, 1, 0),
        ">20 mm": LesionCounts(0, 0, 1),
    }


def test_without_a_voxel_size_nothing_is_sorted_by_size() -> None:
    assert detect_lesions(match_lesions(line("##"), line("##")), 0, None).by_size is None


def test_nothing_to_count_has_no_ratio() -> None:
    none = detect_lesions(match_lesions(line("..."), line("...")), 0, 1.0).counts
    assert (none.f1, none.sensitivity, none.precision) == (None, None, None)
    invented = detect_lesions(match_lesions(line("..."), line("#.#")), 0, 1.0).counts
    assert (invented.f1, invented.sensitivity, invented.precision) == (0, None, 0)


def test_ratios_of_counts() -> None:
    some = LesionCounts(true_positives=3, false_negatives=1, false_positives=2)
    assert (some.f1, some.sensitivity, some.precision) == (6 / 9, 3 / 4, 3 / 5)


@given(MASKS, MASKS)
def test_every_component_is_in_one_group_and_iou_is_what_the_masks_say(
    reference: np.ndarray, prediction: np.ndarray
) -> None:
    matching = match_lesions(reference, prediction)
    for side, sizes in (("reference", matching.reference_voxels), ("prediction", matching.prediction_voxels)):
        labels = [label for group in matching.groups for label in getattr(group, f"{side}_labels")]
        assert sorted(labels) == list(range(1, len(sizes) + 1))
    assert sum(matching.reference_voxels) == np.count_nonzero(reference)
    assert sum(group.intersection_voxels for group in matching.groups) <= np.count_nonzero(reference & prediction)
    assert all(0 <= group.iou <= 1 for group in matching.groups)


@given(MASKS)
def test_a_perfect_prediction_finds_every_lesion(mask: np.ndarray) -> None:
    matching = match_lesions(mask, mask)
    for iou_above in IOU_THRESHOLDS:
        assert detect_lesions(matching, iou_above, None).counts == LesionCounts(len(matching.reference_voxels), 0, 0)


@given(MASKS, MASKS)
def test_matching_does_not_depend_on_the_place(reference: np.ndarray, prediction: np.ndarray) -> None:
    moved = [np.pad(mask, ((1, 0), (2, 3), (0, 2))) for mask in (reference, prediction)]
    assert match_lesions(moved[0], moved[1]) == match_lesions(reference, prediction)
