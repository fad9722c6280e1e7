"""Surface distances of shapes that can be measured with a ruler."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from hepar.evaluation.surface import image_diagonal_mm, surface_scores, surface_voxels

SHAPE = (5, 6, 7)
MASKS = arrays(np.bool_, SHAPE)
SPACING_MM = (3.0, 2.0, 1.0)


def voxel(z: int, y: int, x: int) -> np.ndarray:
    mask_zyx = np.zeros(SHAPE, dtype=bool)
    mask_zyx[z, y, x] = True
    return mask_zyx


def brute_force_distances_mm(one_zyx: np.ndarray, other_zyx: np.ndarray) -> np.ndarray:
    """Distance of each surface voxel of one mask to the nearest of the other, over all pairs."""
    surfaces = []
    for mask_zyx in (one_zyx, other_zyx):
        neighbours = [(1, 0, 0), (-1, 0, 0), (0, 1, 0), (0, -1, 0), (0, 0, 1), (0, 0, -1)]
        padded_zyx = np.pad(mask_zyx, 1)
        surfaces.append(
            [
                np.multiply(index, SPACING_MM)
                for index in np.argwhere(mask_zyx)
                if not all(padded_zyx[tuple(index + 1 + step)] for step in np.array(neighbours))
            ]
        )
    return np.array([min(math.dist(here, there) for there in surfaces[1]) for here in surfaces[0]])


@pytest.mark.parametrize(
    ("end", "spacing_mm"),
    [((2, 3, 5), (1.0, 1.0, 1.0)), ((2, 4, 3), (5.0, 2.0, 1.0)), ((3, 3, 3), (2.0, 9.0, 9.0))],
)
def test_two_voxels_2_mm_apart(end: tuple[int, int, int], spacing_mm: tuple[float, float, float]) -> None:
    scores = surface_scores(voxel(2, 3, 3), voxel(*end), spacing_mm)
    assert scores is not None
    assert (scores.hd95_mm, scores.assd_mm, scores.mssd_mm) == (2, 2, 2)
    assert scores.nsd == 1
    assert not scores.one_empty


def test_nsd_tolerance_is_inclusive_even_for_spacings_in_single_precision() -> None:
    apart = voxel(2, 3, 3), voxel(2, 3, 5)
    rounded_mm = float(np.float32(1.0000001))
    assert surface_scores(*apart, (1.0, 1.0, rounded_mm)).nsd == 1
    assert surface_scores(*apart, (1.0, 1.0, 1.01)).nsd == 0


def test_hd95_is_the_larger_of_both_directions() -> None:
    reference_zyx = np.zeros((1, 1, 30), dtype=bool)
    reference_zyx[0, 0, 0] = True
    prediction_zyx = np.zeros_like(reference_zyx)
    prediction_zyx[0, 0, :21] = True
    # every voxel of a line one voxel thick is surface: 0, 1, …, 20 mm one way, 0 mm the other way
    scores = surface_scores(reference_zyx, prediction_zyx, (1.0, 1.0, 1.0))
    swapped = surface_scores(prediction_zyx, reference_zyx, (1.0, 1.0, 1.0))
    assert scores is not None
    assert scores.hd95_mm == 19
    assert scores.mssd_mm == 20
    assert scores.assd_mm == pytest.approx(sum(range(21)) / 22)
    assert scores.nsd == pytest.approx((1 + 3) / 22)
    assert swapped == scores


def test_the_inside_of_a_cube_is_not_surface() -> None:
    mask_zyx = np.zeros(SHAPE, dtype=bool)
    mask_zyx[1:4, 1:4, 1:4] = True
    surface_zyx = surface_voxels(mask_zyx)
    assert np.argwhere(mask_zyx & ~surface_zyx).tolist() == [[2, 2, 2]]
    assert np.count_nonzero(surface_zyx) == 27 - 1


def test_voxels_at_the_edge_of_the_image_are_surface() -> None:
    full_zyx = np.ones((3, 3, 3), dtype=bool)
    assert np.count_nonzero(surface_voxels(full_zyx)) == 26


def test_exactly_one_empty_gives_the_image_diagonal() -> None:
    empty_zyx = np.zeros(SHAPE, dtype=bool)
    diagonal_mm = math.sqrt((5 * 3) ** 2 + (6 * 2) ** 2 + (7 * 1) ** 2)
    for pair in ((voxel(1, 1, 1), empty_zyx), (empty_zyx, voxel(1, 1, 1))):
        scores = surface_scores(*pair, SPACING_MM)
        assert scores is not None
        assert scores.one_empty
        assert scores.nsd == 0
        assert scores.hd95_mm == scores.assd_mm == scores.mssd_mm == pytest.approx(diagonal_mm)


def test_both_empty_is_undefined() -> None:
    empty_zyx = np.zeros(SHAPE, dtype=bool)
    assert surface_scores(empty_zyx, empty_zyx, SPACING_MM) is None


@settings(deadline=None, max_examples=60)
@given(MASKS, MASKS)
def test_agrees_with_brute_force(one_zyx: np.ndarray, other_zyx: np.ndarray) -> None:
    scores = surface_scores(one_zyx, other_zyx, SPACING_MM)
    if scores is None or scores.one_empty:
        return
    forward_n_mm = brute_force_distances_mm(one_zyx, other_zyx)
    backward_n_mm = brute_force_distances_mm(other_zyx, one_zyx)
    both_n_mm = np.concatenate([forward_n_mm, backward_n_mm])
    assert scores.hd95_mm == pytest.approx(max(np.percentile(forward_n_mm, 95), np.percentile(backward_n_mm, 95)))
    assert scores.assd_mm == pytest.approx(both_n_mm.mean())
    assert scores.mssd_mm == pytest.approx(both_n_mm.max())
    assert scores.nsd == pytest.approx((both_n_mm <= 2.0001).mean())


@settings(deadline=None)
@given(MASKS, MASKS, st.tuples(*(st.integers(0, 3) for _ in SHAPE)))
def test_distances_are_invariant_to_translation(
    one_zyx: np.ndarray, other_zyx: np.ndarray, before: tuple[int, int, int]
) -> None:
    scores = surface_scores(one_zyx, other_zyx, SPACING_MM)
    if scores is None or scores.one_empty:
        return
    moved = [np.pad(mask_zyx, [(pad, 3 - pad) for pad in before]) for mask_zyx in (one_zyx, other_zyx)]
    again = surface_scores(moved[0], moved[1], SPACING_MM)
    assert again is not None
    assert again.hd95_mm == pytest.approx(scores.hd95_mm)
    assert again.assd_mm == pytest.approx(scores.assd_mm)
    assert again.nsd == scores.nsd


@settings(deadline=None)
@given(MASKS, MASKS)
def test_distances_are_symmetric(one_zyx: np.ndarray, other_zyx: np.ndarray) -> None:
    forward, backward = surface_scores(one_zyx, other_zyx, SPACING_MM), surface_scores(other_zyx, one_zyx, SPACING_MM)
    if forward is None or backward is None:
        assert forward is backward
        return
    assert forward.hd95_mm == pytest.approx(backward.hd95_mm)
    assert forward.assd_mm == pytest.approx(backward.assd_mm)
    assert forward.nsd == backward.nsd


@pytest.mark.parametrize("spacing_mm", [(1.0, 0.0, 1.0), (1.0, -1.0, 1.0), (1.0, math.nan, 1.0)])
def test_a_spacing_that_is_not_positive_is_refused(spacing_mm: tuple[float, float, float]) -> None:
    with pytest.raises(ValueError, match="spacing"):
        surface_scores(voxel(1, 1, 1), voxel(1, 1, 1), spacing_mm)


def test_diagonal_of_a_box() -> None:
    assert image_diagonal_mm((3, 4, 12), (1.0, 1.0, 1.0)) == 13
