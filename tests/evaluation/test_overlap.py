"""Overlap of masks whose voxels can be counted by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from hepar.evaluation.overlap import (
    count_overlap,
    dice,
    global_dice,
    relative_volume_difference,
    volumetric_overlap_error,
)

SHAPE = (4, 5, 6)
MASKS = arrays(np.bool_, SHAPE)
EMPTY_ZYX = np.zeros(SHAPE, dtype=bool)


def row(start: int, stop: int) -> np.ndarray:
    """A mask zyx with voxels start…stop-1 of one row."""
    mask_zyx = EMPTY_ZYX.copy()
    mask_zyx[1, 2, start:stop] = True
    return mask_zyx


def test_four_voxels_against_two_of_them() -> None:
    reference_zyx, prediction_zyx = row(0, 4), row(2, 4)
    assert dice(reference_zyx, prediction_zyx) == pytest.approx(2 * 2 / (4 + 2))
    assert relative_volume_difference(reference_zyx, prediction_zyx) == -0.5
    assert volumetric_overlap_error(reference_zyx, prediction_zyx) == 0.5


def test_volume_difference_is_positive_for_oversegmentation() -> None:
    assert relative_volume_difference(row(2, 4), row(0, 5)) == 1.5


def test_both_empty_is_undefined() -> None:
    assert dice(EMPTY_ZYX, EMPTY_ZYX) is None
    assert relative_volume_difference(EMPTY_ZYX, EMPTY_ZYX) is None
    assert volumetric_overlap_error(EMPTY_ZYX, EMPTY_ZYX) is None


def test_exactly_one_empty_is_the_worst_value() -> None:
    assert dice(row(0, 2), EMPTY_ZYX) == 0
    assert dice(EMPTY_ZYX, row(0, 2)) == 0
    assert volumetric_overlap_error(EMPTY_ZYX, row(0, 2)) == 1
    assert relative_volume_difference(row(0, 2), EMPTY_ZYX) == -1
    assert relative_volume_difference(EMPTY_ZYX, row(0, 2)) is None


def test_global_dice_pools_voxels_and_counts_false_positives() -> None:
    perfect = count_overlap(row(0, 4), row(0, 4))
    missed = count_overlap(row(0, 1), EMPTY_ZYX)
    false_positive = count_overlap(EMPTY_ZYX, row(0, 3))
    assert global_dice([perfect, missed]) == pytest.approx(8 / 9)
    assert global_dice([perfect, missed, false_positive]) == pytest.approx(8 / 12)
    assert global_dice([]) is None


@given(MASKS, MASKS)
def test_dice_is_symmetric_and_bounded(one_zyx: np.ndarray, other_zyx: np.ndarray) -> None:
    value = dice(one_zyx, other_zyx)
    assert value == dice(other_zyx, one_zyx)
    assert value is None or 0 <= value <= 1


@given(MASKS, MASKS, st.tuples(*(st.integers(0, length) for length in SHAPE)))
def test_overlap_is_invariant_to_translation(
    one_zyx: np.ndarray, other_zyx: np.ndarray, shift: tuple[int, int, int]
) -> None:
    moved = [np.roll(mask_zyx, shift, axis=(0, 1, 2)) for mask_zyx in (one_zyx, other_zyx)]
    assert count_overlap(*moved) == count_overlap(one_zyx, other_zyx)


@pytest.mark.parametrize("wrong_zyx", [EMPTY_ZYX.astype(np.uint8), EMPTY_ZYX[0], EMPTY_ZYX[:, :, :-1]])
def test_masks_that_cannot_be_compared_are_refused(wrong_zyx: np.ndarray) -> None:
    with pytest.raises(ValueError, match="mask"):
        dice(EMPTY_ZYX, wrong_zyx)
