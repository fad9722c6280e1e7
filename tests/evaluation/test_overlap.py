"""Overlap of boxes whose voxels can be counted by hand."""

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
EMPTY = np.zeros(SHAPE, dtype=bool)


def row(start: int, stop: int) -> np.ndarray:
    """A mask with voxels start…stop-1 of one row."""
    mask = EMPTY.copy()
    mask[1, 2, start:stop] = True
    return mask


def test_four_voxels_against_two_of_them() -> None:
    reference, prediction = row(0, 4), row(2, 4)
    assert dice(reference, prediction) == pytest.approx(2 * 2 / (4 + 2))
    assert relative_volume_difference(reference, prediction) == -0.5
    assert volumetric_overlap_error(reference, prediction) == 0.5


def test_volume_difference_is_positive_for_too_large() -> None:
    assert relative_volume_difference(row(2, 4), row(0, 5)) == 1.5


def test_both_empty_is_not_defined() -> None:
    assert dice(EMPTY, EMPTY) is None
    assert relative_volume_difference(EMPTY, EMPTY) is None
    assert volumetric_overlap_error(EMPTY, EMPTY) is None


def test_exactly_one_empty_is_the_worst_value() -> None:
    assert dice(row(0, 2), EMPTY) == 0
    assert dice(EMPTY, row(0, 2)) == 0
    assert volumetric_overlap_error(EMPTY, row(0, 2)) == 1
    assert relative_volume_difference(row(0, 2), EMPTY) == -1
    assert relative_volume_difference(EMPTY, row(0, 2)) is None


def test_global_dice_weighs_voxels_and_sees_a_false_positive() -> None:
    perfect = count_overlap(row(0, 4), row(0, 4))
    missed = count_overlap(row(0, 1), EMPTY)
    invented = count_overlap(EMPTY, row(0, 3))
    assert global_dice([perfect, missed]) == pytest.approx(8 / 9)
    assert global_dice([perfect, missed, invented]) == pytest.approx(8 / 12)
    assert global_dice([]) is None


@given(MASKS, MASKS)
def test_dice_is_symmetric_and_bounded(one: np.ndarray, other: np.ndarray) -> None:
    value = dice(one, other)
    assert value == dice(other, one)
    assert value is None or 0 <= value <= 1


@given(MASKS, MASKS, st.tuples(*(st.integers(0, length) for length in SHAPE)))
def test_overlap_does_not_depend_on_the_place(one: np.ndarray, other: np.ndarray, shift: tuple[int, int, int]) -> None:
    moved = [np.roll(mask, shift, axis=(0, 1, 2)) for mask in (one, other)]
    assert count_overlap(*moved) == count_overlap(one, other)


@pytest.mark.parametrize("wrong", [EMPTY.astype(np.uint8), EMPTY[0], EMPTY[:, :, :-1]])
def test_masks_that_cannot_be_compared_are_refused(wrong: np.ndarray) -> None:
    with pytest.raises(ValueError, match="mask"):
        dice(EMPTY, wrong)
